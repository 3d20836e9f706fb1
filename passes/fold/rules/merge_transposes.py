"""Two transpositions in a row become one."""

from __future__ import annotations

import onnx_graphsurgeon as gs

from graphopt.passes.fold.rules.rule import Outcome, Rule
from graphopt.passes.fold.workbench import Workbench, is_standard


class MergeTransposes(Rule):
    """``Transpose(Transpose(x, p), q) -> Transpose(x, p[q])``, where nobody else reads the inner result."""

    name = "merge-transposes"
    ops = frozenset({"Transpose"})

    def apply(self, node: gs.Node, bench: Workbench) -> Outcome:
        """Let the node take its producer's input."""
        first = bench.producer(node.inputs[0])
        if first is None or first.op != "Transpose" or not is_standard(first):
            return False
        if not bench.only_reader(node, node.inputs[0]):
            return False
        inner, outer = permutation(first, bench), permutation(node, bench)
        if inner is None or outer is None:
            return False
        node.attrs["perm"] = [inner[axis] for axis in outer]
        bench.set_input(node, 0, first.inputs[0])
        bench.remove(first)
        return True


def permutation(node: gs.Node, bench: Workbench) -> list[int] | None:
    """Return where each axis of a Transpose's result comes from; None where that is not known."""
    perm = node.attrs.get("perm")
    if isinstance(perm, list):
        return perm
    shape = bench.types[node.inputs[0]].shape
    return None if "perm" in node.attrs or shape is None else list(reversed(range(len(shape))))
