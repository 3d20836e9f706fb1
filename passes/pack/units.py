"""The weights of size mode, each seen as a matrix a group whose rows have a scale of their own."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import onnx_graphsurgeon as gs

from graphopt.ir.graph import walk_nodes
from graphopt.layers import LinearLayer, linear_layer
from graphopt.model import Model

_SPARSE = (
    0.3  # zeros among all weights, from which on they are kept: with fewer, a bit for each costs more than it saves
)
_SHORT_ROW = 24  # elements; with fewer the scales would be a large part of what is stored


@dataclass(frozen=True, eq=False)
class Unit:
    """One weight and how it is read as [groups, rows, inputs].

    Attributes:
        constant: The weight.
        order: Permutation of its axes that brings the rows to the front.
        groups: Groups of rows.
        rows: Rows of each group; every row has a scale.
        layer: The linear layer of the main graph that uses it first; None where nothing is known about its inputs.
        scale: Factors of whole numbers that the weight must consist of, [groups, rows, 1]; None for any values.
    """

    constant: gs.Constant
    order: tuple[int, ...]
    groups: int
    rows: int
    layer: LinearLayer | None = None
    scale: np.ndarray | None = None

    @property
    def name(self) -> str:
        """Name of the weight."""
        return str(self.constant.name)

    @property
    def size(self) -> int:
        """Elements."""
        return math.prod(self.constant.shape)

    @cached_property
    def is_sparse(self) -> bool:
        """Whether so many weights are zero that they should stay zero."""
        return self.scale is None and 0 < self._kept <= (1 - _SPARSE) * self.size

    @property
    def coded(self) -> int:
        """Elements that have codes: of a sparse weight, those that are not zero."""
        return self._kept if self.is_sparse else self.size

    @cached_property
    def _kept(self) -> int:
        return int(np.count_nonzero(self.constant.values))

    def matrix(self) -> np.ndarray:
        """Return the weight as [groups, rows, inputs]."""
        moved = np.transpose(self.constant.values, self.order)
        return np.ascontiguousarray(moved).reshape(self.groups, self.rows, -1)

    def stored(self, matrix: np.ndarray) -> np.ndarray:
        """Return a matrix [groups, rows, inputs] in the shape of the weight; the inverse of `matrix`."""
        shape = [self.constant.shape[axis] for axis in self.order]
        return np.ascontiguousarray(np.transpose(matrix.reshape(shape), np.argsort(self.order)))

    def stored_scale(self, scale: np.ndarray) -> np.ndarray:
        """Return scales [groups, rows, 1] in a shape that broadcasts to the weight."""
        shape = self.constant.shape
        kept, held = [1] * len(shape), 1
        for axis in self.order:
            if held == scale.size:
                break
            kept[axis] = shape[axis]
            held *= shape[axis]
        moved = [kept[axis] for axis in self.order]
        return np.ascontiguousarray(np.transpose(scale.reshape(moved), np.argsort(self.order)))


def find_units(model: Model, candidates: Sequence[gs.Constant]) -> list[Unit]:
    """Return the weights that can be rounded, in graph order of their first users.

    The codes of a shared weight can follow only one of its users, the first linear layer of the main graph if any.

    Args:
        model: Its main graph's layers are those whose inputs can be looked at.
        candidates: Float32 weights of two axes and more are taken, unless they hold NaN or infinities.
    """
    wanted = {id(constant) for constant in candidates if _fits(constant)}
    inner = {id(node) for node in model.graph.nodes}
    found: dict[int, Unit] = {}
    for node in walk_nodes(model.graph):
        for index, tensor in enumerate(node.inputs):
            if id(tensor) not in wanted:
                continue
            known = found.get(id(tensor))
            if known is None or (known.layer is None and id(node) in inner):
                unit = _unit(node, index, tensor, id(node) in inner)
                found[id(tensor)] = unit if known is None or unit.layer is not None else known
    return list(found.values())


def _fits(constant: gs.Constant) -> bool:
    return bool(constant.dtype == np.float32 and len(constant.shape) > 1 and np.isfinite(constant.values).all())


def _unit(node: gs.Node, index: int, constant: gs.Constant, in_main_graph: bool) -> Unit:
    layer = linear_layer(node) if index == 1 else None
    axes = tuple(range(len(constant.shape)))
    if layer is not None:
        order = axes[::-1] if layer.transposed else axes
        return Unit(constant, order, layer.groups, layer.rows, layer if in_main_graph else None)
    if node.op == "ConvTranspose" and index == 1:  # [inputs, rows / group, ...]
        return Unit(constant, (1, 0, *axes[2:]), 1, constant.shape[1])
    rows = math.prod(constant.shape[:-1] if constant.shape[-1] >= _SHORT_ROW else constant.shape[:1])
    return Unit(constant, axes, 1, rows)
