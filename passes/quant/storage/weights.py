"""Which weights can be stored in a few bits, and how their users read them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import onnx_graphsurgeon as gs

from graphopt.base import Skip
from graphopt.ir.graph import constants, payload_bytes, walk_graphs
from graphopt.layers import LinearLayer, linear_layer
from graphopt.model import Model
from graphopt.passes.quant.nodes.units import name_of

Role = Literal["matrix", "table", "other"]
"""What a kernel of its own exists for: the weight of a MatMul or Gemm, and a table whose rows Gather reads."""

_LEAST = 1024  # bytes; smaller weights are not worth the nodes that decode them
_RECURRENT = ("LSTM", "GRU", "RNN")
_WEIGHTED = {"Conv": (1,), "ConvTranspose": (1,), **dict.fromkeys(_RECURRENT, (1, 2))}  # inputs that hold them


@dataclass(frozen=True, eq=False)
class Use:
    """One reading of a weight.

    Attributes:
        node: MatMul, Gemm, Gather, Conv, ConvTranspose, LSTM, GRU or RNN.
        index: Which input of the node.
        scope: The graph or body that the node is in.
        role: What the node does with it.
        turned: Whether it is stored as [inputs, rows].
    """

    node: gs.Node
    index: int
    scope: gs.Graph
    role: Role
    turned: bool


@dataclass(frozen=True, eq=False)
class Weight:
    """A weight with everything that reads it.

    Attributes:
        constant: The weight, float32.
        uses: Every reading of it.
        layer: The layer that it is fitted to, the first of the main graph; None if nothing is known of its inputs.
        groups: Parts with inputs of their own: groups of a convolution, else 1.
    """

    constant: gs.Constant
    uses: tuple[Use, ...]
    layer: LinearLayer | None
    groups: int

    @property
    def turned(self) -> bool:
        """Whether it is stored as [inputs, rows]."""
        return self.uses[0].turned

    @property
    def row_axes(self) -> int:
        """How many leading axes are rows: [directions, gates] of a recurrent weight, else one."""
        return 2 if self.uses[0].node.op in _RECURRENT else 1

    @property
    def shape(self) -> tuple[int, ...]:
        """Its shape with the rows first."""
        shape = tuple(self.constant.shape)
        return shape[::-1] if self.turned else shape

    def matrix(self) -> np.ndarray:
        """Return it as [groups, rows, inputs], float64; a row is what shares a scale where there are no blocks."""
        values = self.constant.values.T if self.turned else self.constant.values
        rows = int(np.prod(self.shape[: self.row_axes])) // self.groups
        return np.ascontiguousarray(values, np.float64).reshape(self.groups, rows, -1)

    def stored(self, matrix: np.ndarray) -> np.ndarray:
        """Return a matrix [groups, rows, inputs] in the shape of the weight, float32; the inverse of `matrix`."""
        values = matrix.reshape(self.shape)
        return np.ascontiguousarray(values.T if self.turned else values, np.float32)


def find_weights(model: Model) -> tuple[list[Weight], list[Skip]]:
    """Return the weights that can be stored in a few bits, in order of first use, and why others cannot."""
    found, skipped = [], []
    shown = {id(tensor) for scope in walk_graphs(model.graph) for tensor in scope.outputs}
    uses = _uses(model)
    for constant in constants(model.graph):
        readings = uses.get(id(constant), [])
        if not any(reading is not None for reading in readings) or payload_bytes(constant) < _LEAST:
            continue
        reason = _reason(constant, readings, shown)
        if reason:
            skipped.append(Skip(constant.name, reason))
            continue
        known = tuple(reading for reading in readings if reading is not None)
        found.append(Weight(constant, known, _layer(known, model.graph), _groups(known)))
    return found, skipped


def _uses(model: Model) -> dict[int, list[Use | None]]:
    """Return every reading of each constant by its id; None stands for one that is not understood."""
    uses: dict[int, list[Use | None]] = {}
    for scope in walk_graphs(model.graph):
        for node in scope.nodes:
            if node.op == "Transpose" and isinstance(node.inputs[0], gs.Constant):
                uses.setdefault(id(node.inputs[0]), []).extend(_turned_uses(node, scope))
                continue
            for index, tensor in enumerate(node.inputs):
                if isinstance(tensor, gs.Constant):
                    uses.setdefault(id(tensor), []).append(_use(node, index, scope, len(tensor.shape)))
    return uses


def _turned_uses(node: gs.Node, scope: gs.Graph) -> Iterator[Use | None]:
    """Yield the readings behind a Transpose of a matrix, as readings of the matrix itself; None if one is not known."""
    output = node.outputs[0]
    readers = [
        (reader, index) for reader in output.outputs for index, item in enumerate(reader.inputs) if item is output
    ]
    plain = list(node.attrs.get("perm", [1, 0])) == [1, 0] and len(node.inputs[0].shape) == 2
    inside = {id(item) for item in scope.nodes}
    for reader, index in readers:
        use = _use(reader, index, scope, 2)
        if not plain or use is None or use.role != "matrix" or id(reader) not in inside:
            yield None
            continue
        yield Use(reader, index, scope, "matrix", not use.turned)
    if not readers:
        yield None


def _use(node: gs.Node, index: int, scope: gs.Graph, rank: int) -> Use | None:
    """Return the reading of a constant of some rank, or None if the node does with it what is not understood."""
    if node.domain not in (None, "", "ai.onnx"):
        return None
    if node.op == "Gather" and index == 0 and rank == 2 and int(node.attrs.get("axis", 0)) == 0:
        return None if isinstance(node.inputs[1], gs.Constant) else Use(node, index, scope, "table", turned=False)
    if node.op in ("MatMul", "Gemm") and index == 1 and rank == 2:
        turned = not (node.op == "Gemm" and node.attrs.get("transB", 0))
        return Use(node, index, scope, "matrix", turned)
    if index in _WEIGHTED.get(node.op, ()) and rank >= 2:
        return Use(node, index, scope, "other", turned=False)
    return None


def _reason(constant: gs.Constant, readings: Sequence[Use | None], shown: set[int]) -> str:
    """Return why a weight stays as it is, or an empty text."""
    known = [reading for reading in readings if reading is not None]
    if id(constant) in shown:
        return "it is a graph output"
    if np.dtype(constant.dtype) != np.float32:
        return f"it is {np.dtype(constant.dtype).name}, not float32"
    if len(known) < len(readings):
        return "an operator reads it that is neither layer nor table"
    if len({reading.turned for reading in known}) > 1:
        return f"{name_of(known[0].node)} and {name_of(known[-1].node)} read it in two orientations"
    if len({_groups((reading,)) for reading in known}) > 1:
        return "convolutions with different groups read it"
    return "" if np.isfinite(constant.values).all() else "it holds NaN or infinities"


def _layer(uses: Sequence[Use], graph: gs.Graph) -> LinearLayer | None:
    """Return the first layer of the main graph that reads the weight directly."""
    for use in uses:
        layer = linear_layer(use.node) if use.scope is graph else None
        if layer is not None:
            return layer
    return None


def _groups(uses: Sequence[Use]) -> int:
    return max(int(use.node.attrs.get("group", 1)) if use.node.op == "Conv" else 1 for use in uses)
