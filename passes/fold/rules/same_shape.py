"""Operators that only change the shape, and here do not."""

from __future__ import annotations

import onnx_graphsurgeon as gs

from graphopt.passes.fold.rules.rule import Outcome, Rule, done
from graphopt.passes.fold.workbench import Workbench


class SameShape(Rule):
    """``Reshape(x) -> x``, and so for Flatten, Expand, Slice and Squeeze/Unsqueeze of no axis, where the shape stays.

    The shapes must follow from the model's inputs. A reshape may leave one dimension open on either side, since the
    number of elements stays; the others must be numbers above 0 or the same symbol. A slice must step forwards by one.
    """

    name = "same-shape"
    ops = frozenset({"Reshape", "Flatten", "Expand", "Slice", "Squeeze", "Unsqueeze"})

    def apply(self, node: gs.Node, bench: Workbench) -> Outcome:
        """Let the node's users read its input."""
        before, after = bench.values.dims(node.inputs[0]), bench.values.dims(node.outputs[0])
        if node.op == "Expand" and before is not None and _expands_nothing(node, before, bench):
            after = before
        if before is None or after is None or len(before) != len(after):
            return False
        differing = [(old, new) for old, new in zip(before, after, strict=True) if old != new]
        allowed = 1 if node.op in ("Reshape", "Flatten") and 0 not in before and 0 not in after else 0
        if len(differing) > allowed or (node.op == "Slice" and not _steps_by_one(node, bench)):
            return False
        if allowed and differing and any(isinstance(size, str) for size in set(before) & set(after)):
            return False  # a common symbol may be 0, and then the number of elements says nothing
        return done(bench.bypass(node, node.inputs[0]))


def _expands_nothing(node: gs.Node, before: tuple[int | str, ...], bench: Workbench) -> bool:
    """Return whether each size of the target is 1 or what the tensor has there anyway."""
    target = bench.known(node.inputs[1])
    if target is None or target.scalar or len(target.items) > len(before):
        return False
    aligned = before[len(before) - len(target.items) :]
    return all(wanted in (1, size) for wanted, size in zip(target.items, aligned, strict=True))


def _steps_by_one(node: gs.Node, bench: Workbench) -> bool:
    if len(node.inputs) < 5 or node.inputs[4].is_empty():
        return True
    steps = bench.ints(node.inputs[4])
    return steps is not None and all(step == 1 for step in steps)
