"""Joined parts of what is joined are joined at once."""

from __future__ import annotations

import onnx_graphsurgeon as gs

from graphopt.passes.fold.rules.match import made_by
from graphopt.passes.fold.rules.rule import Outcome, Rule
from graphopt.passes.fold.workbench import Workbench


class MergeConcats(Rule):
    """``Concat(a, Concat(b, c), d) -> Concat(a, b, c, d)`` along one axis, where nobody else reads the inner result."""

    name = "merge-concats"
    ops = frozenset({"Concat"})

    def apply(self, node: gs.Node, bench: Workbench) -> Outcome:
        """Let the node read what its producers join."""
        inner = [made_by(tensor, "Concat", bench) for tensor in node.inputs]
        if not any(inner):
            return False
        axis = _axis(node, bench)
        merged = [
            made if made is not None and bench.only_reader(node, tensor) and _axis(made, bench) == axis else None
            for made, tensor in zip(inner, node.inputs, strict=True)
        ]
        if not any(merged):
            return "the parts are used elsewhere too, or joined along another axis"
        inputs = [
            part
            for made, tensor in zip(merged, list(node.inputs), strict=True)
            for part in (made.inputs if made is not None else (tensor,))
        ]
        node.inputs.clear()
        node.inputs.extend(inputs)
        for made in filter(None, merged):
            bench.remove(made)
        bench.touch([node])
        return True


def _axis(node: gs.Node, bench: Workbench) -> int:
    """Return the axis, counted from the front where the rank is known."""
    axis = int(node.attrs.get("axis", 1))  # before operator set 4 it could be left out
    ranks = [len(shape) for tensor in node.inputs if (shape := bench.types[tensor].shape)]
    return axis % ranks[0] if ranks else axis
