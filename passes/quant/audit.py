"""What became of the integers: every Q and DQ of the graph that ONNX Runtime really runs is accounted for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import onnx

from graphopt.model import Model
from graphopt.runtime.session import op_counts, optimized_model

_INTEGER_OPS = ("QLinear", "QGemm", "MatMulInteger", "DynamicQuantize", "ConvInteger", "MatMulNBits", "QAttention")


@dataclass(frozen=True)
class Audit:
    """What the runtime made of a quantized model.

    Attributes:
        unfused: By name of the nodes that were to run in integers but do not, the rule that failed.
        kernels: Integer nodes by operator.
        entries: QuantizeLinear that turn what a float node makes into integers: a border of an integer region.
        exits: DequantizeLinear that turn integers into what a float node reads: a border.
        inside: QuantizeLinear and DequantizeLinear inside an integer region: a DequantizeLinear that only a
            QuantizeLinear reads.
    """

    unfused: Mapping[str, str]
    kernels: Mapping[str, int]
    entries: int
    exits: int
    inside: int

    @property
    def integer(self) -> int:
        """Nodes that run in integers."""
        return sum(self.kernels.values())

    @property
    def quantizers(self) -> int:
        """QuantizeLinear and DequantizeLinear that are left."""
        return self.entries + self.exits + self.inside

    def describe(self) -> str:
        """Return one line for the report."""
        kernels = ", ".join(f"{count} {op}" for op, count in sorted(self.kernels.items()))
        borders = f"{self.entries} conversions into integers and {self.exits} back at their borders"
        return f"ONNX Runtime runs {kernels or 'no integer kernel'}; {borders}, {self.inside} inside"


def audit(model: Model, names: Iterable[str]) -> Audit:
    """Let ONNX Runtime optimize the model and look at the result.

    Args:
        model: The quantized model.
        names: Names of the nodes that should run in integers.

    Raises:
        ModelError: ONNX Runtime does not take the model.
    """
    wanted = frozenset(names)
    proto = optimized_model(model)
    made = {name: node.op_type for node in proto.graph.node for name in node.output}
    unfused = {
        node.name: rule for node in proto.graph.node if node.name in wanted and (rule := _rule(node, made)) is not None
    }
    kernels: Counter[str] = Counter()
    for op, count in op_counts(proto).items():
        plain = op.rpartition(":")[2]
        if plain.startswith(_INTEGER_OPS):
            kernels[plain] += count
    readers: dict[str, set[str]] = {}
    for node in proto.graph.node:
        for name in node.input:
            readers.setdefault(name, set()).add(node.op_type)
    conversions = [node for node in proto.graph.node if node.op_type in ("QuantizeLinear", "DequantizeLinear")]
    inside = [node for node in conversions if _is_inside(node, made, readers)]
    entries, exits = (
        sum(node.op_type == op for node in conversions) - sum(node.op_type == op for node in inside)
        for op in ("QuantizeLinear", "DequantizeLinear")
    )
    return Audit(unfused, dict(kernels), entries, exits, len(inside))


def _is_inside(node: onnx.NodeProto, made: Mapping[str, str], readers: Mapping[str, set[str]]) -> bool:
    """Whether a conversion only undoes or prepares another."""
    if node.op_type == "QuantizeLinear":
        return made.get(node.input[0]) == "DequantizeLinear"
    return readers.get(node.output[0]) == {"QuantizeLinear"}


def _rule(node: onnx.NodeProto, made: Mapping[str, str]) -> str | None:
    """Return what kept a node from an integer kernel; None if it has one, or reads no DequantizeLinear."""
    kinds = [made.get(name, "") for name in node.input if name]
    if "DequantizeLinear" not in kinds:
        return None
    missing = [name for name, kind in zip(node.input, kinds, strict=False) if kind != "DequantizeLinear"]
    if missing:
        return f"its input '{missing[0]}' comes as float"
    return "its output is not quantized, or not with parameters that its rule accepts"
