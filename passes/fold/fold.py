"""The pass: rules until nothing changes, and constants in bulk."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import onnx_graphsurgeon as gs

from graphopt.base import Pass, PassReport, Skip
from graphopt.context import Context
from graphopt.ir.clean import clean
from graphopt.ir.graph import declared, walk_graphs
from graphopt.model import Model
from graphopt.passes.fold.constants import fold_constants
from graphopt.passes.fold.cse import merge_equal_nodes
from graphopt.passes.fold.functions import inline_functions
from graphopt.passes.fold.notes import drop_notes
from graphopt.passes.fold.rules import Rule
from graphopt.passes.fold.rules.installed import installed_rules, summaries
from graphopt.passes.fold.sizes import file_bytes
from graphopt.passes.fold.workbench import Workbench, is_standard, label

CONSTANTS = "constants"  # what is computed in bulk rather than by a rule
FUNCTIONS = "functions"  # the same for functions that are called once
EQUAL = "equal-nodes"  # the same for nodes that compute the same
NOTES = "notes"  # the same for what exporters note down
UNUSED = "unused"  # nodes and weights that no output depends on always go
_MAX_ROUNDS = 50


@dataclass(frozen=True)
class Fold(Pass):
    """Compute constants ahead, drop what does nothing, merge what can be one node.

    The result computes the same as the model, up to the rounding of floats where weights are merged. The file never
    becomes larger: what is small as a formula stays a formula.

    Attributes:
        without: Rules to switch off, joined by "+".
        max_growth: Bytes that the file may become larger by.
        max_opset: Operator set up to which the model may be raised where a fused operator needs it; 0 for none.
    """

    name: ClassVar[str] = "fold"
    lossless: ClassVar[bool] = True

    without: str = ""
    max_growth: int = 0
    max_opset: int = 20

    def __post_init__(self) -> None:
        known = rule_names()
        unknown = [name for name in self._switched_off if name not in known]
        if unknown:
            raise ValueError(f"there is no rule '{unknown[0]}' to go without; the rules are: {', '.join(known)}")
        if self.max_growth < 0:
            raise ValueError(f"max-growth is {self.max_growth}; it must be a number of bytes, 0 or more")

    @property
    def _switched_off(self) -> tuple[str, ...]:
        return tuple(name for name in self.without.split("+") if name)

    @classmethod
    def parts(cls) -> Mapping[str, str]:
        """Return the rules by name, each with what it does."""
        return {
            CONSTANTS: "What is computed from constants only is computed ahead, where that makes the file no larger.",
            FUNCTIONS: "The nodes of a function that is called from one place take the place of the call.",
            EQUAL: "Nodes with the same operator, attributes and inputs become one.",
            NOTES: "Stack traces and module paths that torch.onnx leaves on nodes, bodies and inner tensors go.",
            **summaries(),
        }

    def run(self, model: Model, context: Context) -> PassReport:
        """Rewrite the model until no rule fits."""
        return _Run(model, self._switched_off, self.max_growth, self.max_opset).report()


def rule_names() -> tuple[str, ...]:
    """Return the names that `without` takes."""
    return (CONSTANTS, FUNCTIONS, EQUAL, NOTES, *(rule.name for rule in installed_rules()))


class _Run:
    """One run of the pass over one model."""

    def __init__(self, model: Model, without: tuple[str, ...], max_growth: int, max_opset: int) -> None:
        self._model = model
        self._limit = file_bytes(model) + max_growth
        self._bench = Workbench(model, max_growth, max_opset)
        used = [rule for rule in installed_rules() if rule.name not in without]
        self._rules = _by_operator(rule for rule in used if not rule.late)
        self._late_rules = _by_operator(rule for rule in used if rule.late)
        self._without = without
        self._counts: Counter[str] = Counter()
        self._declined: dict[tuple[int, str], tuple[gs.Node, str]] = {}
        self._bulk_skips: list[Skip] = []
        self._kept_functions: list[Skip] = []

    def report(self) -> PassReport:
        """Rewrite and report."""
        self._inline_functions()
        for _ in range(_MAX_ROUNDS):
            before = self._counts.total()
            self._bench.refresh()
            self._declined.clear()
            self._apply(self._rules)
            if self._counts.total() == before:
                self._merge_equal_nodes()
            if self._counts.total() == before:
                self._fold_constants()
            if self._counts.total() == before:
                self._bench.touch(self._bench.nodes())
                self._apply(self._late_rules)
            if self._counts.total() == before:
                break
        skips = self._skips()
        notes = 0 if NOTES in self._without else drop_notes(self._model)
        if notes:
            self._counts[NOTES] += notes
        stored = unused_weights(self._model)
        if stored:
            self._counts[UNUSED] += len(stored)
            clean(self._model.graph)
        metrics = {name: float(count) for name, count in sorted(self._counts.items())}
        return PassReport(self._counts.total(), skips, metrics)

    def _apply(self, rules: Mapping[str, Sequence[Rule]]) -> None:
        while (node := self._bench.next()) is not None:
            if self._bench.is_unused(node):
                self._bench.remove(node)
                self._counts[UNUSED] += 1
                continue
            if not is_standard(node):
                continue
            for rule in rules.get(node.op, ()):
                outcome = rule.apply(node, self._bench)
                if outcome is True:
                    self._counts[rule.name] += 1
                    break
                if outcome is not False:
                    self._declined[id(node), rule.name] = (node, f"{rule.name}: {outcome}")

    def _inline_functions(self) -> None:
        if FUNCTIONS in self._without or not self._model.graph.functions:
            return
        self._bench.refresh()
        count, self._kept_functions = inline_functions(self._bench)
        if count:
            self._counts[FUNCTIONS] += count

    def _merge_equal_nodes(self) -> None:
        if EQUAL in self._without:
            return
        count = merge_equal_nodes(self._bench)
        if count:
            self._counts[EQUAL] += count

    def _fold_constants(self) -> None:
        if CONSTANTS in self._without:
            return
        count, self._bulk_skips = fold_constants(self._bench, lambda: max(self._limit - file_bytes(self._model), 0))
        if count:
            self._counts[CONSTANTS] += count

    def _skips(self) -> tuple[Skip, ...]:
        """Return what the last round left alone, in graph order."""
        place = {id(node): index for index, node in enumerate(self._bench.nodes())}
        declined = sorted(
            (place[number], rule, Skip(label(node), reason))
            for (number, rule), (node, reason) in self._declined.items()
            if number in place
        )
        return (*(skip for *_, skip in declined), *self._bulk_skips, *self._kept_functions)


def _by_operator(rules: Iterable[Rule]) -> dict[str, list[Rule]]:
    """Return the rules that start at each operator."""
    found: dict[str, list[Rule]] = {}
    for rule in rules:
        for op in sorted(rule.ops):
            found.setdefault(op, []).append(rule)
    return found


def unused_weights(model: Model) -> list[gs.Constant]:
    """Return the initializers that nobody reads."""
    roots = (model.graph, *model.graph.functions)
    scopes = [graph for root in roots for graph in walk_graphs(root)]
    results = {id(tensor) for graph in scopes for tensor in graph.outputs}
    stored = [constant for graph in scopes for constant in declared(graph)]
    return [constant for constant in stored if not constant.outputs and id(constant) not in results]
