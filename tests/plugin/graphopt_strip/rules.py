"""An example of a rule of fold that lives in a distribution of its own."""

from __future__ import annotations

import onnx_graphsurgeon as gs

from graphopt.passes.fold import Outcome, Rule, Workbench


class DoubleNegation(Rule):
    """``-(-x) -> x``."""

    name = "double-negation"
    ops = frozenset({"Neg"})

    def apply(self, node: gs.Node, bench: Workbench) -> Outcome:
        """Let the node's users read what was negated twice."""
        first = bench.producer(node.inputs[0])
        if first is None or first.op != "Neg":
            return False
        return bench.bypass(node, first.inputs[0]) or True
