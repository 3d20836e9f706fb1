"""Operators whose attributes make them return their input."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from graphopt.passes.fold.rules.rule import Outcome, Rule, done
from graphopt.passes.fold.workbench import Workbench

_LARGEST = 2**31 - 1  # what exporters write for "to the end"; no tensor is as long along one axis
Check = Callable[[gs.Node, Workbench], Outcome]


class NoOp(Rule):
    """``op(x) -> x``, where attributes, types or shapes leave the operator nothing to do.

    - Identity;
    - Dropout outside training, where nobody reads the mask;
    - Cast and CastLike to the type that x has;
    - Transpose that keeps the order of the axes;
    - Slice from the beginning to the largest number;
    - Pad by nothing, Tile by ones, Clip without bounds;
    - Concat, Sum, Mean, Max, Min of a single tensor.

    Left alone where x is an input or a weight and the result is a graph output.
    """

    name = "no-op"

    def apply(self, node: gs.Node, bench: Workbench) -> Outcome:
        """Let the node's users read its input."""
        if not node.inputs or node.inputs[0].is_empty():
            return False
        verdict = CHECKS[node.op](node, bench)
        return done(bench.bypass(node, node.inputs[0])) if verdict is True else verdict


def _identity(node: gs.Node, bench: Workbench) -> Outcome:
    return True


def _dropout(node: gs.Node, bench: Workbench) -> Outcome:
    if len(node.inputs) > 2 and not node.inputs[2].is_empty():
        training = bench.small_array(node.inputs[2])
        if training is None or training.any():
            return "it may drop values: its training mode is not known to be off"
    if any(bench.uses(mask) for mask in node.outputs[1:]):
        return "its mask is used"
    return True


def _cast(node: gs.Node, bench: Workbench) -> Outcome:
    there = bench.types[node.inputs[0]].dtype
    to = node.attrs.get("to")
    return there is not None and isinstance(to, int) and onnx.helper.np_dtype_to_tensor_dtype(there) == to


def _cast_like(node: gs.Node, bench: Workbench) -> Outcome:
    there, wanted = bench.types[node.inputs[0]].dtype, bench.types[node.inputs[1]].dtype
    return there is not None and there == wanted


def _transpose(node: gs.Node, bench: Workbench) -> Outcome:
    perm = node.attrs.get("perm")
    if isinstance(perm, list):
        return perm == sorted(perm)
    shape = bench.types[node.inputs[0]].shape
    return "perm" not in node.attrs and shape is not None and len(shape) < 2


def _pad(node: gs.Node, bench: Workbench) -> Outcome:
    pads = node.attrs.get("pads") if "pads" in node.attrs else _numbers(node, 1, bench)
    return isinstance(pads, list) and not any(pads)


def _tile(node: gs.Node, bench: Workbench) -> Outcome:
    repeats = _numbers(node, 1, bench)
    return repeats is not None and all(repeat == 1 for repeat in repeats)


def _clip(node: gs.Node, bench: Workbench) -> Outcome:
    bounds = [*node.inputs[1:3]]
    if "min" in node.attrs or "max" in node.attrs:
        return False
    return all(bound.is_empty() for bound in bounds) and bench.opset(node) >= 11


def _slice(node: gs.Node, bench: Workbench) -> Outcome:
    starts = node.attrs["starts"] if "starts" in node.attrs else _numbers(node, 1, bench)
    ends = node.attrs["ends"] if "ends" in node.attrs else _numbers(node, 2, bench)
    steps = _numbers(node, 4, bench) if len(node.inputs) > 4 and not node.inputs[4].is_empty() else [1]
    if not (isinstance(starts, list) and isinstance(ends, list) and steps is not None):
        return False
    return not any(starts) and all(end >= _LARGEST for end in ends) and all(step == 1 for step in steps)


def _single(node: gs.Node, bench: Workbench) -> Outcome:
    return len(node.inputs) == 1


def _numbers(node: gs.Node, index: int, bench: Workbench) -> list[int] | None:
    values = bench.small_array(node.inputs[index]) if len(node.inputs) > index else None
    return None if values is None or values.dtype.kind not in "iu" else list(map(int, np.ravel(values)))


CHECKS: dict[str, Check] = {
    "Cast": _cast,
    "CastLike": _cast_like,
    "Clip": _clip,
    "Concat": _single,
    "Dropout": _dropout,
    "Identity": _identity,
    "Max": _single,
    "Mean": _single,
    "Min": _single,
    "Pad": _pad,
    "Slice": _slice,
    "Sum": _single,
    "Tile": _tile,
    "Transpose": _transpose,
}
NoOp.ops = frozenset(CHECKS)
