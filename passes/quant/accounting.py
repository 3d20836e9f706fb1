"""What became of every QuantizeLinear and DequantizeLinear: a line each, read from the graph that really runs.

ONNX Runtime keeps the names of nodes, but for what it appends, and most names of tensors. So a conversion that was
written is looked for by its name; where it is no more, its place is: by its integers, and by the nodes it stood beside.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

import onnx

from graphopt.model import Model
from graphopt.passes.quant.refusals import Refusals
from graphopt.runtime.session import optimized_model
from graphopt.targets import Target

Became = Literal["kernel", "moved", "border", "left", "gone"]
INTEGER_OPS = ("QLinear", "QGemm", "MatMulInteger", "DynamicQuantize", "ConvInteger", "MatMulNBits", "QAttention")
_CONVERSIONS = ("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear")
_APPENDED = re.compile(r"(_token_\d+|_nchwc|_nhwc|_quant|/duplicated)$")  # by ONNX Runtime, to names of nodes
_MEANING = {
    "kernel": "part of an integer kernel",
    "moved": "dropped beside what only moves integers, or carried across it",
    "border": "at a border between float and integers",
    "left": "left inside an integer region",
    "gone": "merged with an equal one or computed at load",
}


@dataclass(frozen=True)
class Conversion:
    """What became of one conversion.

    Attributes:
        node: Its name in the model that was written.
        op: QuantizeLinear, DequantizeLinear or DynamicQuantizeLinear.
        became: "kernel", part of an integer kernel; "moved", dropped beside what only moves integers, or carried across
            it; "border", still there, between a float node and an integer one; "left", still there inside an integer
            region; "gone", merged with an equal one or computed at load.
        detail: The kernel, the float nodes at the border, or the rule that failed.
    """

    node: str
    op: str
    became: Became
    detail: str

    def describe(self) -> str:
        """Return it in words."""
        return f"{_MEANING[self.became]}: {self.detail}" if self.detail else _MEANING[self.became]


def account(model: Model, target: Target) -> tuple[Conversion, ...]:
    """Let ONNX Runtime optimize a quantized model, and tell what became of each conversion, in graph order.

    Raises:
        ModelError: ONNX Runtime does not take the model.
    """
    return conversions(model.to_proto(), optimized_model(model), target, model.opset)


def conversions(
    written: onnx.ModelProto, optimized: onnx.ModelProto, target: Target, opset: int
) -> tuple[Conversion, ...]:
    """Return what became of each conversion of a model in the graph that was made of it."""
    ledger = _Ledger(_View(written.graph), _View(optimized.graph), Refusals(optimized.graph, target, opset))
    return tuple(ledger.fate(node) for node in _nodes(written.graph) if node.op_type in _CONVERSIONS)


def summary(found: Iterable[Conversion]) -> str:
    """Return one line with counts."""
    counts = Counter(item.became for item in found)
    if not counts:
        return "no QuantizeLinear or DequantizeLinear"
    parts = (f"{counts[became]} {meaning}" for became, meaning in _MEANING.items() if counts[became])  # type: ignore[index]
    return f"of {sum(counts.values())} QuantizeLinear and DequantizeLinear: {', '.join(parts)}"


class _View:
    """Who makes and who reads what, bodies included."""

    def __init__(self, graph: onnx.GraphProto) -> None:
        self.makers = {name: node for node in _nodes(graph) for name in node.output}
        self.readers: dict[str, list[onnx.NodeProto]] = defaultdict(list)
        self.named: dict[str, onnx.NodeProto] = {}
        self.conversions: dict[tuple[str, str], list[onnx.NodeProto]] = defaultdict(list)
        for node in _nodes(graph):
            for name in node.input:
                self.readers[name].append(node)
            if node.op_type in _CONVERSIONS:
                self.conversions[node.op_type, _plain(node)].append(node)
            else:
                self.named.setdefault(_plain(node), node)


class _Ledger:
    def __init__(self, written: _View, final: _View, refusals: Refusals) -> None:
        self._written = written
        self._final = final
        self._refusals = refusals

    def fate(self, node: onnx.NodeProto) -> Conversion:
        """Look for what is left of a conversion, then for what its neighbours have become."""
        verdicts = [self._standing(item) for item in self._final.conversions[node.op_type, _plain(node)]]
        left = [verdict for verdict in verdicts if verdict[0] == "left"]
        became, detail = (left or verdicts or [_absorbed(self._beside(node))])[0]
        return Conversion(_name(node), node.op_type, became, detail)

    def _beside(self, node: onnx.NodeProto) -> list[onnx.NodeProto]:
        """Return what the neighbours of a conversion that is no more have become, across other conversions."""
        if node.op_type == "DequantizeLinear":
            codes, neighbours = node.input[0], self._written.readers[node.output[0]]
        else:
            codes, neighbours = node.output[0], self._across(node)
        now = [found for found in map(self._now, neighbours) if found is not None and self._takes_integers(found)]
        maker = self._final.makers.get(codes)
        found = [*([] if maker is None else [maker]), *self._final.readers[codes], *now]
        return [item for item in found if item.op_type not in _CONVERSIONS]

    def _takes_integers(self, node: onnx.NodeProto) -> bool:
        return node.op_type.startswith(INTEGER_OPS) or self._refusals.moves(node)

    def _across(self, node: onnx.NodeProto) -> list[onnx.NodeProto]:
        """Return who makes what a node quantizes, and who reads it."""
        source = self._written.makers.get(node.input[0])
        direct = self._written.readers[node.output[0]]
        behind = [reader for item in direct for reader in self._written.readers[item.output[0]]]
        return [*([] if source is None else [source]), *direct, *behind]

    def _standing(self, node: onnx.NodeProto) -> tuple[Became, str]:
        """Tell whether a conversion that still is there is at a border, and if not, what went wrong."""
        if node.op_type == "DequantizeLinear":
            beside = self._final.readers[node.output[0]]
        else:
            maker = self._final.makers.get(node.input[0])
            beside = [] if maker is None else [maker]
        for other in beside:
            refusal = self._refusals.reason(other, node)
            if refusal:
                return "left", refusal
        names = ", ".join(sorted(_called(other) for other in beside))
        return "border", names or ("an output" if node.op_type == "DequantizeLinear" else "an input") + " of the model"

    def _now(self, node: onnx.NodeProto | None) -> onnx.NodeProto | None:
        """Return what a written node has become, if it is still known by its name or outputs."""
        if node is None or node.op_type in _CONVERSIONS:
            return None
        found = self._final.named.get(_plain(node))
        return found or next((self._final.makers[name] for name in node.output if name in self._final.makers), None)


def _absorbed(beside: Iterable[onnx.NodeProto]) -> tuple[Became, str]:
    """Return the verdict on a conversion that is no more, from what its neighbours have become."""
    beside = list(beside)
    kernels = sorted({_called(node) for node in beside if node.op_type.startswith(INTEGER_OPS)})
    if kernels:
        return "kernel", ", ".join(kernels)
    moving = sorted(set(map(_called, beside)))
    return ("moved", ", ".join(moving)) if moving else ("gone", "")


def _nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    """Yield the nodes of a graph and of the bodies inside it."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            for body in (attribute.g, *attribute.graphs):
                yield from _nodes(body)


def _name(node: onnx.NodeProto) -> str:
    return node.name or next(iter(filter(None, node.output)), "")


def _called(node: onnx.NodeProto) -> str:
    return f"{node.op_type} '{_plain(node)}'"


def _plain(node: onnx.NodeProto) -> str:
    """Return the name of a node without what ONNX Runtime appended."""
    name = _name(node)
    while (shorter := _APPENDED.sub("", name)) != name:
        name = shorter
    return name
