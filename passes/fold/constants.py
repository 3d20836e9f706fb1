"""Everything that depends on constants only, computed once and for all."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence

import numpy as np
import onnx_graphsurgeon as gs

from graphopt.base import Skip
from graphopt.ir.graph import payload_bytes
from graphopt.passes.fold.evaluate import evaluate
from graphopt.passes.fold.sizes import constant_cost, node_cost, predicted_cost
from graphopt.passes.fold.workbench import Workbench, is_standard, label

SMALL = 1024  # bytes; by so much a single result may be larger than what it replaces, as long as the file is not
_MAX_STEP = 1 << 28  # bytes; larger tensors are not made even as steps on the way
RANDOM = {
    "Bernoulli",
    "Dropout",
    "Multinomial",
    "RandomNormal",
    "RandomNormalLike",
    "RandomUniform",
    "RandomUniformLike",
}
_QUANTIZED = {"DequantizeLinear", "QuantizeLinear", "DynamicQuantizeLinear"}
_NO_TENSORS = {
    "ConcatFromSequence", "Optional", "OptionalGetElement", "OptionalHasElement", "SequenceAt", "SequenceConstruct",
    "SequenceEmpty", "SequenceErase", "SequenceInsert", "SequenceLength", "SequenceMap", "SplitToSequence",
}  # fmt: skip
_LEFT_ALONE = RANDOM | _QUANTIZED | _NO_TENSORS | {"Constant"}
_GROWING = {"ConstantOfShape", "Expand", "EyeLike", "Range", "Tile", "OneHot", "Resize", "Upsample", "Pad"}


def fold_constants(bench: Workbench, allowance: Callable[[], int]) -> tuple[int, list[Skip]]:
    """Replace what is computed from constants by its value, where that does not make the file larger.

    All values are computed by ONNX Runtime in one session (one for each operator set version). Left alone are random
    operators, quantization (a quantized model stays one), and results larger than the nodes and weights that they make
    superfluous: what is small as a formula stays a formula.

    Args:
        bench: The graph; up to date.
        allowance: Tells how many bytes the results may add in all.

    Returns:
        How many tensors were replaced, and what was left alone.
    """
    candidates, skips = constant_nodes(bench)
    if not candidates:
        return 0, skips
    selection = _Selection(candidates, bench, allowance())
    chosen = selection.choose()
    found: dict[int, np.ndarray] = {}
    reasons: dict[int, str] = {}
    for opset in sorted({bench.opset(node) for node in candidates}):
        nodes = [node for node in candidates if bench.opset(node) == opset]
        made = {id(tensor) for node in nodes for tensor in node.outputs}
        values, refused = evaluate(nodes, [tensor for tensor in chosen if id(tensor) in made], bench)
        found |= values
        reasons |= refused
    count = 0
    for tensor in chosen:
        if id(tensor) in reasons:
            selection.decline(tensor, reasons[id(tensor)])
        elif selection.still_fits(tensor, found[id(tensor)]):
            bench.make_constant(tensor, found[id(tensor)])
            count += 1
    return count, skips + selection.skips


def constant_nodes(bench: Workbench) -> tuple[list[gs.Node], list[Skip]]:
    """Return the nodes that may be computed ahead of time, in topological order, and those that are too large to be."""
    available: set[int] = set()
    found: list[gs.Node] = []
    skips: list[Skip] = []
    for node in bench.nodes():
        inputs = [tensor for tensor in node.inputs if not tensor.is_empty()]
        if not inputs or not is_standard(node) or node.op in _LEFT_ALONE or not bench.opset(node):
            continue
        if any(isinstance(value, (gs.Graph, gs.Node.AttributeRef)) for value in node.attrs.values()):
            continue
        if not all(id(tensor) in available or bench.constant(tensor) is not None for tensor in inputs):
            continue
        reason = _unbounded(node, bench)
        if reason:
            skips.append(Skip(label(node), reason))
            continue
        found.append(node)
        available.update(id(tensor) for tensor in node.outputs if not tensor.is_empty())
    return found, skips


def _unbounded(node: gs.Node, bench: Workbench) -> str:
    """Return why the node's results may be too large even to compute."""
    costs = [predicted_cost(tensor.name, bench.types[tensor]) for tensor in node.outputs]
    if node.op in _GROWING and None in costs:
        return "the size of its result is not known"
    largest = max((cost for cost in costs if cost is not None), default=0)
    return f"its value would take {largest} bytes" if largest > _MAX_STEP else ""


class _Selection:
    """Chooses among the constant tensors those whose values take no more room than what they replace."""

    def __init__(self, candidates: Sequence[gs.Node], bench: Workbench, allowance: int) -> None:
        self._bench = bench
        self._candidates = candidates
        self._allowance = allowance
        self._ids = {id(node) for node in candidates}
        self._uses: dict[int, int] = {}
        self._replaced: set[int] = set()
        self._dead: set[int] = set()
        self._unsure: set[int] = set()
        self.skips: list[Skip] = []

    def choose(self) -> list[gs.Tensor]:
        """Return the tensors to compute."""
        frontier = [tensor for node in self._candidates for tensor in node.outputs if self._is_frontier(tensor)]
        chosen: list[gs.Tensor] = []
        for group in self._groups(frontier):
            chosen.extend(group if self._fits_together(group) else self._choose_singly(group))
        return chosen

    def _choose_singly(self, group: Sequence[gs.Tensor]) -> list[gs.Tensor]:
        """Return those of a group that fit on their own, or what goes into them where that is small."""
        chosen: list[gs.Tensor] = []
        queue = deque(group)
        seen = {id(tensor) for tensor in group}
        while queue:
            tensor = queue.popleft()
            if self._accept(tensor):
                chosen.append(tensor)
                continue
            for source in tensor.inputs[0].inputs:
                if id(source) not in seen and source.inputs and id(source.inputs[0]) in self._ids:
                    seen.add(id(source))
                    queue.append(source)
        return chosen

    def _groups(self, frontier: Sequence[gs.Tensor]) -> list[list[gs.Tensor]]:
        """Return the tensors by what they are computed from: those that share a step or a large weight go together."""
        parent: dict[int, int] = {}

        def find(key: int) -> int:
            while parent.setdefault(key, key) != key:
                parent[key] = parent[parent[key]]
                key = parent[key]
            return key

        for node in self._candidates:
            for tensor in (*node.inputs, *node.outputs):
                small = isinstance(tensor, gs.Constant) and payload_bytes(tensor) <= SMALL
                if not tensor.is_empty() and not small:
                    parent[find(id(tensor))] = find(id(node))
        groups: dict[int, list[gs.Tensor]] = {}
        for tensor in frontier:
            groups.setdefault(find(id(tensor)), []).append(tensor)
        return list(groups.values())

    def decline(self, tensor: gs.Tensor, reason: str) -> None:
        """Note why a tensor is left alone."""
        self.skips.append(Skip(label(tensor.inputs[0]), reason))

    def still_fits(self, tensor: gs.Tensor, values: np.ndarray) -> bool:
        """Judge a tensor whose size was not known before it was computed."""
        if id(tensor) not in self._unsure:
            return True
        growth = self._bench.value_cost(tensor, values) - self._freed([tensor])[0]
        if growth <= 0 or growth <= min(SMALL, self._allowance):
            self._allowance -= max(growth, 0)
            return True
        self.decline(tensor, _too_large(growth))
        return False

    def _is_frontier(self, tensor: gs.Tensor) -> bool:
        if tensor.is_empty() or not self._bench.uses(tensor):
            return False
        return self._bench.is_result(tensor) or any(id(user) not in self._ids for user in tensor.outputs)

    def _fits_together(self, tensors: Sequence[gs.Tensor]) -> bool:
        """Take all tensors if together they fit: several may share what only all of them make superfluous."""
        costs = [self._bench.predicted_cost(tensor) for tensor in tensors]
        freed, dead, uses = self._freed(tensors)
        if None in costs or sum(cost for cost in costs if cost is not None) > freed:
            return False
        self._take(tensors, dead, uses)
        return True

    def _accept(self, tensor: gs.Tensor) -> bool:
        cost = self._bench.predicted_cost(tensor)
        freed, dead, uses = self._freed([tensor])
        growth = (cost or 0) - freed
        if growth > 0 and growth > min(SMALL, self._allowance):
            self.decline(tensor, _too_large(growth))
            return False
        if cost is None:
            self._unsure.add(id(tensor))
            return True
        self._allowance -= max(growth, 0)
        self._take([tensor], dead, uses)
        return True

    def _take(self, tensors: Sequence[gs.Tensor], dead: set[int], uses: dict[int, int]) -> None:
        self._replaced.update(id(tensor) for tensor in tensors)
        self._dead |= dead
        self._uses |= uses

    def _freed(self, tensors: Iterable[gs.Tensor]) -> tuple[int, set[int], dict[int, int]]:
        """Return the bytes of nodes and weights that nobody needs once the tensors are constants, and what changes."""
        tensors = list(tensors)
        replaced = self._replaced | {id(tensor) for tensor in tensors}
        dead: set[int] = set()
        uses: dict[int, int] = {}
        freed = 0
        stack = [tensor.inputs[0] for tensor in tensors]
        while stack:
            node = stack.pop()
            outputs = [tensor for tensor in node.outputs if id(tensor) not in replaced]
            if id(node) in dead | self._dead or any(self._remaining(tensor, uses) for tensor in outputs):
                continue
            dead.add(id(node))
            freed += node_cost(node)
            for tensor in node.inputs:
                uses[id(tensor)] = self._remaining(tensor, uses) - 1
                if uses[id(tensor)] == 0 and isinstance(tensor, gs.Constant):
                    freed += constant_cost(tensor)
                elif uses[id(tensor)] == 0 and tensor.inputs:
                    stack.append(tensor.inputs[0])
        return freed, dead, uses

    def _remaining(self, tensor: gs.Tensor, uses: dict[int, int]) -> int:
        if id(tensor) in uses:
            return uses[id(tensor)]
        return self._uses.get(id(tensor), self._bench.uses(tensor))


def _too_large(growth: int) -> str:
    return f"its value would take {growth} bytes more than what it is computed from"
