"""Constant nodes become initializers."""

from __future__ import annotations

import onnx_graphsurgeon as gs

from graphopt.ir.graph import Constant, payload
from graphopt.passes.fold.rules.rule import Outcome, Rule
from graphopt.passes.fold.sizes import constant_cost, node_cost
from graphopt.passes.fold.workbench import Workbench


class LiftConstant(Rule):
    """``Constant(value) -> initializer`` of the same name, for each way the operator has to state a value.

    Left alone where the value is a graph output (an initializer cannot be one everywhere), in functions (which have no
    initializers), and up to IR version 3 (where an initializer is an input).
    """

    name = "lift-constant"
    ops = frozenset({"Constant"})

    def apply(self, node: gs.Node, bench: Workbench) -> Outcome:
        """Replace the node's output by a constant."""
        output = node.outputs[0]
        if bench.is_result(output) or bench.in_function(node):
            return False
        if bench.must_list_initializers(node):
            return "up to IR version 3 an initializer must be a graph input"
        stated = bench.constant(output)
        if stated is None:
            return "it states its value in a way that graphopt does not know"
        constant = Constant(output.name, payload(stated))
        growth = constant_cost(constant) - node_cost(node)
        if growth > max(bench.budget, 0):
            return f"as an initializer it would take {growth} bytes more"
        bench.remove(node)
        bench.budget -= constant_cost(constant)
        bench.redirect(output, constant)
        return True
