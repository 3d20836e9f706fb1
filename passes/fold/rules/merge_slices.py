"""Two slices in a row become one."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs

from graphopt.passes.fold.rules.rule import Outcome, Rule
from graphopt.passes.fold.rules.sketch import Sketch, merge
from graphopt.passes.fold.workbench import Workbench, is_standard

_OPSET = 10  # the first in which the bounds are inputs


@dataclass(frozen=True)
class Cut:
    """What a Slice takes: for each of its axes a start, an end and a step."""

    starts: list[int]
    ends: list[int]
    axes: list[int]
    steps: list[int]


class MergeSlices(Rule):
    """``Slice(Slice(x, axes a), axes b) -> Slice(x, axes a and b)`` for different axes and constant bounds.

    Nobody else may read what the inner one makes.
    """

    name = "merge-slices"
    ops = frozenset({"Slice"})

    def apply(self, node: gs.Node, bench: Workbench) -> Outcome:
        """Replace both nodes."""
        first = bench.producer(node.inputs[0])
        if first is None or first.op != "Slice" or not is_standard(first) or bench.opset(node) < _OPSET:
            return False
        if not bench.only_reader(node, node.inputs[0]):
            return False
        inner, outer = cut_of(first, bench), cut_of(node, bench)
        if inner is None or outer is None or set(inner.axes) & set(outer.axes):
            return False
        pairs = (
            (inner.starts, outer.starts),
            (inner.ends, outer.ends),
            (inner.axes, outer.axes),
            (inner.steps, outer.steps),
        )
        bounds = [np.array(a + b, np.int64) for a, b in pairs]
        return merge([node, first], Sketch("Slice", [first.inputs[0], *bounds], "slice"), bench)


def cut_of(node: gs.Node, bench: Workbench) -> Cut | None:
    """Return what a Slice takes, with its axes counted from the front; None where that is not known."""
    shape = bench.types[node.inputs[0]].shape
    starts, ends = _numbers(node, 1, "starts", bench), _numbers(node, 2, "ends", bench)
    if shape is None or starts is None or ends is None or len(starts) != len(ends):
        return None
    axes = _numbers(node, 3, "axes", bench) if _has(node, 3, "axes") else list(range(len(starts)))
    steps = _numbers(node, 4, "steps", bench) if _has(node, 4, "steps") else [1] * len(starts)
    if axes is None or steps is None or not len(axes) == len(steps) == len(starts):
        return None
    return Cut(starts, ends, [axis % len(shape) for axis in axes], steps)


def _has(node: gs.Node, position: int, attribute: str) -> bool:
    return attribute in node.attrs or (len(node.inputs) > position and not node.inputs[position].is_empty())


def _numbers(node: gs.Node, position: int, attribute: str, bench: Workbench) -> list[int] | None:
    if isinstance(node.attrs.get(attribute), list):
        return list(node.attrs[attribute])
    return bench.ints(node.inputs[position]) if len(node.inputs) > position else None
