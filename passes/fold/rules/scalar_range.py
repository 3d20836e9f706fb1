"""Bounds of a range in the form that the standard asks for."""

from __future__ import annotations

import onnx_graphsurgeon as gs

from graphopt.passes.fold.rules.rule import Outcome, Rule
from graphopt.passes.fold.workbench import Workbench


class ScalarRange(Rule):
    """``Range(a, b, c)`` of constants ``-> Range(squeeze(a), squeeze(b), squeeze(c))`` where some have one axis.

    Such a model is not valid, but ONNX Runtime takes it as long as one of the bounds is computed. Other rules may make
    the last of them a constant, and then it does not.
    """

    name = "scalar-range"
    ops = frozenset({"Range"})

    def apply(self, node: gs.Node, bench: Workbench) -> Outcome:
        """Give the node scalars."""
        bounds = [bench.small_array(tensor) for tensor in node.inputs]
        found = [values for values in bounds if values is not None and values.size == 1]
        if len(found) != len(bounds) or not any(values.ndim for values in found):
            return False
        for index, values in enumerate(found):
            if values.ndim:
                bench.set_input(node, index, bench.new_constant("scalar", values.reshape(()), node))
        return True
