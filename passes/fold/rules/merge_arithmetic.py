"""Two steps of arithmetic with constants become one."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs

from graphopt.passes.fold.rules.rule import Outcome, Rule
from graphopt.passes.fold.rules.sketch import Sketch, merge
from graphopt.passes.fold.workbench import Workbench, is_standard

_ADDITIVE = frozenset({"Add", "Sub"})
_OPS = _ADDITIVE | {"Mul", "Div"}
_TAME = 2.0**30  # by larger factors a value may overflow on the way, perhaps on purpose


class MergeArithmetic(Rule):
    """``(x * a) * b -> x * (a b)``, ``(x + a) + b -> x + (a + b)`` for constants a and b; so for Div and Sub.

    Nobody else may read the inner result. Integers wrap around alike either way, but are not divided. Sums of floats
    that cancel are left alone: adding a large number and taking it off again rounds, which may be the purpose. So are
    factors beyond 2^30 or 2^-30, which may overflow on the way.
    """

    name = "merge-arithmetic"
    ops = _OPS
    late = True  # first, what is computed twice is computed once

    def apply(self, node: gs.Node, bench: Workbench) -> Outcome:
        """Replace both nodes."""
        outer = _step_of(node, bench)
        first = None if outer is None else bench.producer(outer.source)
        inner = None if first is None else _step_of(first, bench)
        if outer is None or inner is None or first is None or inner.additive != outer.additive:
            return False
        if not bench.only_reader(node, outer.source):
            return "the value in between is used elsewhere too"
        merged = _compose(outer, inner)
        if isinstance(merged, str):
            return merged
        return merge([node, first], _sketch_of(merged), bench)


@dataclass(frozen=True)
class _Step:
    """``sign x + operand`` or ``x^sign * operand``.

    Attributes:
        source: x.
        sign: 1 or -1.
        operand: Any shape, in double precision for floats.
        additive: Which of the two forms it is.
        dtype: Type of x.
    """

    source: gs.Tensor
    sign: int
    operand: np.ndarray
    additive: bool
    dtype: np.dtype


def _step_of(node: gs.Node, bench: Workbench) -> _Step | None:
    """Return what a node does with a constant; None for anything else."""
    if node.op not in _OPS or not is_standard(node) or len(node.inputs) != 2:
        return None
    for index in (0, 1):
        values, source = bench.small_array(node.inputs[1 - index]), node.inputs[index]
        if values is None or bench.constant(source) is not None or values.size == 0:
            continue
        integer = values.dtype.kind in "iu"
        if values.dtype.kind not in "iufV" or (integer and node.op == "Div"):
            return None
        operand, sign = (values if integer else values.astype(np.float64)), 1
        if node.op == "Sub":
            operand, sign = (-operand, 1) if index == 0 else (operand, -1)
        elif node.op == "Div":
            if not operand.all():
                return None
            operand, sign = (1.0 / operand, 1) if index == 0 else (operand, -1)
        return _Step(source, sign, operand, node.op in _ADDITIVE, values.dtype)
    return None


def _compose(outer: _Step, inner: _Step) -> _Step | str:
    """Return both steps in one, or why they are left alone."""
    if outer.dtype.kind in "iu":
        whole = outer.sign * inner.operand + outer.operand if outer.additive else inner.operand * outer.operand
        return _joined(outer, inner, whole.astype(outer.dtype))
    if outer.additive:
        before = outer.sign * inner.operand
        whole = before + outer.operand
        if (2 * np.abs(whole) < np.maximum(np.abs(before), np.abs(outer.operand))).any():
            return "its constants cancel, which rounds and may be meant to"
        return _joined(outer, inner, whole)
    sizes = np.abs(np.concatenate([inner.operand.reshape(-1), outer.operand.reshape(-1)]))
    if (sizes > _TAME).any() or (sizes < 1 / _TAME).any():
        return "its factors are so large or small that a value may overflow on the way"
    return _joined(outer, inner, outer.operand * inner.operand if outer.sign == 1 else outer.operand / inner.operand)


def _joined(outer: _Step, inner: _Step, operand: np.ndarray) -> _Step | str:
    with np.errstate(over="ignore"):
        rounded = np.asarray(operand, outer.dtype)
    if not np.isfinite(rounded.astype(np.float64)).all():
        return "the merged constant would not be finite"
    return _Step(inner.source, outer.sign * inner.sign, rounded, outer.additive, outer.dtype)


def _sketch_of(step: _Step) -> Sketch:
    """Return the node that does the step."""
    if step.sign == 1:
        return Sketch("Add" if step.additive else "Mul", [step.source, step.operand], "factor")
    return Sketch("Sub" if step.additive else "Div", [step.operand, step.source], "factor")
