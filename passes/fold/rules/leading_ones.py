"""Axes of size 1 in front, which broadcasting adds by itself."""

from __future__ import annotations

import onnx_graphsurgeon as gs

from graphopt.passes.fold.rules.rule import Outcome, Rule, done
from graphopt.passes.fold.values import BROADCASTING
from graphopt.passes.fold.workbench import Workbench, is_standard


class LeadingOnes(Rule):
    """``f(Unsqueeze(x, leading axes), z) -> f(x, z)`` for elementwise f and z of at least the unsqueezed rank.

    So for a Reshape that does the same. All readers must be such operators.
    """

    name = "leading-ones"
    ops = frozenset({"Unsqueeze", "Reshape"})

    def apply(self, node: gs.Node, bench: Workbench) -> Outcome:
        """Let the readers have the tensor without the axes."""
        before, after = bench.values.dims(node.inputs[0]), bench.values.dims(node.outputs[0])
        output = node.outputs[0]
        if before is None or after is None or len(after) <= len(before) or bench.is_result(output):
            return False
        if after != (*[1] * (len(after) - len(before)), *before):
            return False
        if not output.outputs or not all(_broadcasts(user, output, len(after), bench) for user in output.outputs):
            return False
        return done(bench.bypass(node, node.inputs[0]))


def _broadcasts(user: gs.Node, tensor: gs.Tensor, rank: int, bench: Workbench) -> bool:
    """Return whether an elementwise operator has another operand of at least this rank."""
    if user.op not in BROADCASTING or not is_standard(user):
        return False
    shapes = [bench.types[other].shape for other in user.inputs if other is not tensor]
    return any(shape is not None and len(shape) >= rank for shape in shapes)
