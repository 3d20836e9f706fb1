"""What became of the integers: the graph that ONNX Runtime really runs is searched for what did not fuse."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from graphopt.model import Model
from graphopt.runtime.session import op_counts, optimized_model

_INTEGER_OPS = ("QLinear", "QGemm", "MatMulInteger", "DynamicQuantize", "ConvInteger", "MatMulNBits", "QAttention")


@dataclass(frozen=True)
class Audit:
    """What the runtime made of a quantized model.

    Attributes:
        unfused: Names of the nodes that were to run in integers but still read a DequantizeLinear.
        integer: Nodes that run in integers.
        quantizers: QuantizeLinear and DequantizeLinear that are left, as conversions between float and integer parts.
    """

    unfused: frozenset[str]
    integer: int
    quantizers: int


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
    restored = {name for node in proto.graph.node if node.op_type == "DequantizeLinear" for name in node.output}
    unfused = frozenset(
        node.name for node in proto.graph.node if node.name in wanted and any(name in restored for name in node.input)
    )
    counts = op_counts(proto)
    integer = sum(count for op, count in counts.items() if op.rpartition(":")[2].startswith(_INTEGER_OPS))
    return Audit(unfused, integer, counts["QuantizeLinear"] + counts["DequantizeLinear"])
