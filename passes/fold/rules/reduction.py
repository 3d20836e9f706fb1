"""Reductions and the changes of shape around them."""

from __future__ import annotations

from itertools import compress, product

import numpy as np
import onnx_graphsurgeon as gs

from graphopt.passes.fold.rules.narrow_conv import axes_of
from graphopt.passes.fold.rules.rule import Outcome, Rule
from graphopt.passes.fold.rules.sketch import Sketch, merge
from graphopt.passes.fold.workbench import Workbench, is_standard

_REDUCTIONS = frozenset(
    {"ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceMax", "ReduceMean", "ReduceMin", "ReduceProd",
     "ReduceSum", "ReduceSumSquare"}
)  # fmt: skip
_POOLS = {"GlobalAveragePool": "ReduceMean", "GlobalMaxPool": "ReduceMax"}
_MAX_FREE = 4  # axes of size 1 that are weighed
Dims = tuple[int | str, ...]


class KeptAxes(Rule):
    """``Reshape(Reduce(x)) -> Reduce(x)`` that keeps the reduced axes, or drops them, as the reshape wants it.

    So for Squeeze, Unsqueeze and Flatten, and for global pools, which become ReduceMean and ReduceMax. Nobody else may
    read the reduction, and the shapes must be known, be it by symbols.
    """

    name = "kept-axes"
    ops = frozenset({"Reshape", "Squeeze", "Unsqueeze", "Flatten"})

    def apply(self, node: gs.Node, bench: Workbench) -> Outcome:
        """Replace both nodes by a reduction."""
        first = bench.producer(node.inputs[0])
        if first is None or not is_standard(first) or not bench.only_reader(node, node.inputs[0]):
            return False
        axes, wanted = reduced_axes(first, bench), bench.values.dims(node.outputs[0])
        dims = None if axes is None else bench.values.dims(first.inputs[0])
        if axes is None or dims is None or wanted is None:
            return False
        found = _axes_for(wanted, dims, axes)
        if found is None:
            return False
        op, (reduced, kept) = _POOLS.get(first.op, first.op), found
        return merge([node, first], _reduction(op, first.inputs[0], reduced, bench.opset(node), kept=kept), bench)


class ReduceSqueezed(Rule):
    """``Reduce(Squeeze(x, s), a) -> Reduce(x, a and some of s)``: the squeezed axes have nothing to reduce.

    Nobody else may read what is in between, and the shapes must be known, be it by symbols.
    """

    name = "reduce-squeezed"
    ops = _REDUCTIONS

    def apply(self, node: gs.Node, bench: Workbench) -> Outcome:
        """Let the reduction read the tensor with all its axes."""
        first = bench.producer(node.inputs[0])
        if first is None or first.op != "Squeeze" or not bench.only_reader(node, node.inputs[0]):
            return False
        squeezed, axes = axes_of(first, bench), reduced_axes(node, bench)
        dims, wanted = bench.values.dims(first.inputs[0]), bench.values.dims(node.outputs[0])
        if squeezed is None or axes is None or dims is None or wanted is None:
            return False
        left = [axis for axis in range(len(dims)) if axis not in squeezed]
        found = _axes_for(wanted, dims, [left[axis] for axis in axes])
        if found is None:
            return False
        reduced, kept = found
        return merge([node, first], _reduction(node.op, first.inputs[0], reduced, bench.opset(node), kept=kept), bench)


def reduced_axes(node: gs.Node, bench: Workbench) -> list[int] | None:
    """Return the axes that a reduction or a global pool reduces; None for another node, or where it is not known."""
    shape = bench.types[node.inputs[0]].shape if node.inputs else None
    if shape is None:
        return None
    if node.op in _POOLS:
        return list(range(2, len(shape)))
    if node.op not in _REDUCTIONS or not is_standard(node):
        return None
    given = node.attrs.get("axes")
    if not isinstance(given, list):
        has_input = len(node.inputs) > 1 and not node.inputs[1].is_empty()
        given = bench.ints(node.inputs[1]) if has_input else None
    return sorted(axis % len(shape) for axis in given) if given else None


def _axes_for(wanted: Dims, dims: Dims, axes: list[int]) -> tuple[list[int], bool] | None:
    """Return over which axes to reduce, and whether to keep them, so that the result has the wanted shape.

    An axis of size 1 can be reduced or not: there is nothing to reduce.

    Args:
        wanted: Shape of the result.
        dims: Shape of what is reduced.
        axes: Axes that must be reduced, those of size 1 aside.
    """
    needed = [axis for axis in axes if dims[axis] != 1]
    free = [axis for axis, size in enumerate(dims) if size == 1][:_MAX_FREE]
    for chosen in product((True, False), repeat=len(free)):
        reduced = sorted([*needed, *compress(free, chosen)])
        for kept in (False, True):
            if reduced and _result(dims, reduced, kept=kept) == wanted:
                return reduced, kept
    return None


def _result(dims: Dims, axes: list[int], *, kept: bool) -> Dims:
    if kept:
        return tuple(1 if axis in axes else size for axis, size in enumerate(dims))
    return tuple(size for axis, size in enumerate(dims) if axis not in axes)


def _reduction(op: str, source: gs.Tensor, axes: list[int], opset: int, *, kept: bool) -> Sketch:
    """Return a reduction in the form that the operator set has."""
    attrs = {"keepdims": int(kept)}
    if opset >= (13 if op == "ReduceSum" else 18):
        return Sketch(op, [source, np.array(axes, np.int64)], "axes", attrs)
    return Sketch(op, [source], attrs={**attrs, "axes": axes})
