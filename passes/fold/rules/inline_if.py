"""A choice that is already made."""

from __future__ import annotations

import onnx_graphsurgeon as gs

from graphopt.ir.graph import Node
from graphopt.passes.fold.rules.rule import Outcome, Rule
from graphopt.passes.fold.workbench import Workbench


class InlineIf(Rule):
    """``If(constant, then, else) -> the nodes of the branch taken``, in the place of the If.

    The If's outputs keep their names; what the branch computes inside is renamed where its name is taken.
    """

    name = "inline-if"
    ops = frozenset({"If"})

    def apply(self, node: gs.Node, bench: Workbench) -> Outcome:
        """Move the nodes of the branch into the graph around it."""
        condition = bench.small_array(node.inputs[0]) if node.inputs else None
        if condition is None or condition.size != 1:
            return False
        branch = node.attrs.get("then_branch" if condition.reshape(()) else "else_branch")
        if not isinstance(branch, gs.Graph) or len(branch.outputs) < len(node.outputs):
            return False
        graph, targets = bench.graph_of(node), list(node.outputs)
        moved = {id(inner) for inner in bench.move_out(branch, node)}
        bench.remove(node)
        made: dict[int, gs.Tensor] = {}
        for source, target in zip(branch.outputs, targets, strict=False):
            if target.is_empty():
                continue
            producer = bench.producer(source)
            if producer is not None and id(producer) in moved:
                bench.take_over(producer, source, target)
                made[id(source)] = target
            else:  # a value from outside the branch, or one that it gives out twice
                bench.put(Node("Identity", "", {}, [made.get(id(source), source)], [target]), graph)
        return True
