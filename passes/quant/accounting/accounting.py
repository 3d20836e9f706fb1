"""What became of integers, read from the graph that ONNX Runtime makes: which nodes run in them, and every conversion.

ONNX Runtime keeps the names of nodes, but for what it appends, and most names of tensors. So a conversion that was
written is looked for by its name; where it is no more, its place is: by its integers, and by the nodes it stood beside.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import onnx

from graphopt.ir.graph import walk_nodes
from graphopt.model import Model
from graphopt.passes.quant.accounting.refusals import Refusals
from graphopt.passes.quant.accounting.views import CONVERSIONS, View, called, is_integer, node_name, nodes, plain_name
from graphopt.passes.quant.nodes.units import name_of
from graphopt.runtime.lending import lend
from graphopt.runtime.session import optimized_model
from graphopt.targets import Target

Became = Literal["kernel", "moved", "border", "left", "gone"]
_MEANING: dict[Became, str] = {
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
    return conversions(lend(model).rest, optimized_model(model), target, model.opset)


def conversions(
    written: onnx.ModelProto, optimized: onnx.ModelProto, target: Target, opset: int
) -> tuple[Conversion, ...]:
    """Return what became of each conversion of a model in the graph that was made of it."""
    final = View(optimized.graph)
    ledger = _Ledger(View(written.graph), final, Refusals(final, target, opset))
    return tuple(ledger.entry(node) for node in nodes(written.graph) if node.op_type in CONVERSIONS)


def summary(found: Iterable[Conversion]) -> str:
    """Return one line with counts."""
    counts = Counter(item.became for item in found)
    if not counts:
        return "no QuantizeLinear or DequantizeLinear"
    parts = (f"{counts[became]} {meaning}" for became, meaning in _MEANING.items() if counts[became])
    return f"of {sum(counts.values())} QuantizeLinear and DequantizeLinear: {', '.join(parts)}"


class _Ledger:
    def __init__(self, written: View, final: View, refusals: Refusals) -> None:
        self._written = written
        self._final = final
        self._refusals = refusals

    def entry(self, node: onnx.NodeProto) -> Conversion:
        """Look for what is left of a conversion, then for what its neighbours have become."""
        name = node_name(node)
        verdicts = [self._standing(item) for item in self._final.conversions[node.op_type, plain_name(name)]]
        left = [verdict for verdict in verdicts if verdict[0] == "left"]
        became, detail = (left or verdicts or [self._absorbed(node)])[0]
        return Conversion(name, node.op_type, became, detail)

    def _standing(self, node: onnx.NodeProto) -> tuple[Became, str]:
        """Tell whether a conversion that still is there is at a border, and if not, what went wrong."""
        refusal = self._refusals.inside(node)
        if refusal:
            return "left", refusal
        names = ", ".join(sorted(map(called, self._final.beside(node))))
        return "border", names or ("an output" if node.op_type == "DequantizeLinear" else "an input") + " of the model"

    def _absorbed(self, node: onnx.NodeProto) -> tuple[Became, str]:
        """Return the verdict on a conversion that is no more, from what its neighbours have become."""
        dequantizes = node.op_type == "DequantizeLinear"
        codes = node.input[0] if dequantizes else node.output[0]
        neighbours = self._written.beside(node) if dequantizes else self._across(node)
        maker = self._final.makers.get(codes)
        now = [found for found in map(self._now, neighbours) if found is not None and self._takes_integers(found)]
        beside = [*([] if maker is None else [maker]), *self._final.readers[codes], *now]
        kernels = [item for item in beside if is_integer(item)]
        moving = [item for item in beside if item.op_type not in CONVERSIONS]
        merged = [item for item in neighbours if self._refusals.moves(item)]  # with one of ONNX Runtime's own
        found = kernels or moving or merged
        became: Became = "kernel" if kernels else "moved" if found else "gone"
        return became, ", ".join(sorted(set(map(called, found))))

    def _across(self, node: onnx.NodeProto) -> list[onnx.NodeProto]:
        """Return who makes what a node quantizes, and who reads it."""
        direct = self._written.readers[node.output[0]]
        behind = [reader for item in direct for reader in self._written.readers[item.output[0]]]
        return [*self._written.beside(node), *direct, *behind]

    def _now(self, node: onnx.NodeProto) -> onnx.NodeProto | None:
        """Return what a written node has become, if it is still known by its name or outputs."""
        found = self._final.named.get(plain_name(node_name(node)))
        return found or next((self._final.makers[name] for name in node.output if name in self._final.makers), None)

    def _takes_integers(self, node: onnx.NodeProto) -> bool:
        return is_integer(node) or self._refusals.moves(node)


@dataclass(frozen=True)
class Audit:
    """What the runtime made of a quantized model.

    Attributes:
        unfused: By name of the nodes that were to run in integers but do not, the rule that failed.
        kernels: Integer nodes by operator.
        borders: QuantizeLinear and DequantizeLinear between float and integers.
        inside: Those inside an integer region.
        beside: By name of the nodes that run in integers next to one of these which ONNX Runtime itself has put inside,
            as by a Transpose that it carried across a border, the rule that fails there.
    """

    unfused: Mapping[str, str]
    kernels: Mapping[str, int]
    borders: int
    inside: int
    beside: Mapping[str, str] = field(default_factory=dict)

    @property
    def integer(self) -> int:
        """Nodes that run in integers."""
        return sum(self.kernels.values())

    def describe(self) -> str:
        """Return one line for the report."""
        kernels = ", ".join(f"{count} {op}" for op, count in sorted(self.kernels.items()))
        return f"ONNX Runtime runs {kernels or 'no integer kernel'}"


def audit(model: Model, names: Iterable[str], target: Target) -> Audit:
    """Let ONNX Runtime optimize the model and look at the result.

    Args:
        model: The quantized model.
        names: Names of the nodes that should run in integers.
        target: Whose kernels count.

    Raises:
        ModelError: ONNX Runtime does not take the model.
    """
    wanted = {plain_name(name): name for name in names}
    graph = optimized_model(model).graph
    view = View(graph)
    refusals = Refusals(view, target, model.opset)
    unfused: dict[str, str] = {}
    for plain, node in view.named.items():
        rule = refusals.broken(node) if plain in wanted else ""
        if rule:
            unfused[wanted[plain]] = rule
    kernels = Counter(node.op_type for node in nodes(graph) if is_integer(node))
    standing = [node for node in nodes(graph) if node.op_type in CONVERSIONS]
    inside = [(node, rule) for node in standing if (rule := refusals.inside(node))]
    return Audit(unfused, dict(kernels), len(standing) - len(inside), len(inside), _beside(model, view, inside, wanted))


def _beside(
    model: Model, view: View, inside: Sequence[tuple[onnx.NodeProto, str]], wanted: Mapping[str, str]
) -> dict[str, str]:
    """Return which of the wanted nodes write or read a conversion that is inside by a node of ONNX Runtime's own."""
    found: dict[str, str] = {}
    if not inside:
        return found
    own = {plain_name(name_of(node)) for node in walk_nodes(model.graph) if node.outputs}
    for conversion, rule in inside:
        if all(plain_name(node_name(node)) not in own for node in view.beside(conversion)):
            kernels = (plain_name(node_name(node)) for node in view.behind(conversion) if is_integer(node))
            found.update({wanted[plain]: rule for plain in kernels if plain in wanted})
    return found
