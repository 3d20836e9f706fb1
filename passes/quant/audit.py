"""Which nodes of a quantized model really run in integers, read from the graph that ONNX Runtime makes of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from graphopt.model import Model
from graphopt.passes.quant.refusals import Refusals
from graphopt.passes.quant.views import CONVERSIONS, View, is_integer, nodes, plain_name
from graphopt.runtime.session import optimized_model
from graphopt.targets import Target


@dataclass(frozen=True)
class Audit:
    """What the runtime made of a quantized model.

    Attributes:
        unfused: By name of the nodes that were to run in integers but do not, the rule that failed.
        kernels: Integer nodes by operator.
        borders: QuantizeLinear and DequantizeLinear between float and integers.
        inside: Those inside an integer region.
    """

    unfused: Mapping[str, str]
    kernels: Mapping[str, int]
    borders: int
    inside: int

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
    inside = sum(bool(refusals.inside(node)) for node in standing)
    return Audit(unfused, dict(kernels), len(standing) - inside, inside)
