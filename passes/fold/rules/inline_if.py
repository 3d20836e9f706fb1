"""A choice that is already made."""

from __future__ import annotations

import onnx_graphsurgeon as gs

from graphopt.passes.fold.assume import Assumption
from graphopt.passes.fold.rules.inline_body import inline_body
from graphopt.passes.fold.rules.rule import Outcome, Rule
from graphopt.passes.fold.workbench import Workbench

_BRANCHES = ("then_branch", "else_branch")


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
        branch = node.attrs.get(_BRANCHES[0 if condition.reshape(()) else 1])
        return _inline(branch, node, bench) if isinstance(branch, gs.Graph) else False


class OnlyBranch(Rule):
    """``If(c, then, else) -> the nodes of one branch``, where the model cannot run on after the other one.

    Where the branches give out tensors of different ranks, and an operator that runs in any case takes only one of them
    by the ONNX standard. Exporters write such choices for squeezes, before an LSTM say. Where the model failed after
    the other branch, it still may: the branch that is left reads what it did not have to take.
    """

    name = "only-branch"
    ops = frozenset({"If"})

    def apply(self, node: gs.Node, bench: Workbench) -> Outcome:
        """Move the nodes of the branch into the graph around it."""
        branches = [node.attrs.get(name) for name in _BRANCHES]
        graphs = [branch for branch in branches if isinstance(branch, gs.Graph)]
        if len(graphs) != 2 or not _ranks_differ(graphs[0], graphs[1], bench):
            return False
        possible = [branch for branch in graphs if not _is_impossible(branch, node, bench)]
        if len(possible) != 1:
            return "its branches give out different ranks, and both may be right"
        return _inline(possible[0], node, bench)


def _ranks_differ(one: gs.Graph, other: gs.Graph, bench: Workbench) -> bool:
    pairs = zip(one.outputs, other.outputs, strict=False)
    shapes = [(bench.types[mine].shape, bench.types[theirs].shape) for mine, theirs in pairs]
    return any(a is not None and b is not None and len(a) != len(b) for a, b in shapes)


def _is_impossible(branch: gs.Graph, node: gs.Node, bench: Workbench) -> bool:
    assumed = [(target, bench.types[source]) for source, target in zip(branch.outputs, node.outputs, strict=False)]
    return bool(Assumption(assumed, bench).contradicts(bench.graph_of(node)))


def _inline(branch: gs.Graph, node: gs.Node, bench: Workbench) -> bool:
    if len(branch.outputs) < len(node.outputs):
        return False
    results = [pair for pair in zip(branch.outputs, node.outputs, strict=False) if not pair[1].is_empty()]
    inline_body(branch, node, results, bench)
    return True
