"""Why a node that could run in integers does not: the rule of ONNX Runtime's that its surroundings break."""

from __future__ import annotations

from collections import defaultdict

import numpy as np
import onnx

from graphopt.targets import Kernel, Target

_QUANTIZE, _DEQUANTIZE = "QuantizeLinear", "DequantizeLinear"


class Refusals:
    """Looks at the nodes of one optimized graph.

    Args:
        graph: As ONNX Runtime runs it.
        target: Whose kernels count.
        opset: Of the default domain.
    """

    def __init__(self, graph: onnx.GraphProto, target: Target, opset: int) -> None:
        self._target = target
        self._opset = opset
        self._makers = {name: node for node in graph.node for name in node.output}
        self._outputs = {item.name for item in graph.output}
        self._stored = {item.name: item for item in graph.initializer}
        self._readers: dict[str, list[onnx.NodeProto]] = defaultdict(list)
        for node in graph.node:
            for name in node.input:
                self._readers[name].append(node)

    def reason(self, node: onnx.NodeProto, conversion: onnx.NodeProto) -> str:
        """Return why a conversion beside a node is inside an integer region, or nothing if it is at a border.

        Inside are a conversion that undoes another, and one beside a float node that has an integer kernel and integers
        on all sides.
        """
        if node.op_type in (_QUANTIZE, _DEQUANTIZE) and node.op_type != conversion.op_type:
            return f"'{node.name}' turns it straight back"
        kernel = self._kernel(node)
        if kernel is None or not self._has_integers(node, kernel):
            return ""
        return f"'{node.name}' ({node.op_type}) has no integer kernel: {self.rule(node, kernel)}"

    def moves(self, node: onnx.NodeProto) -> bool:
        """Whether a node's operator can move integers without looking at them."""
        return self._target.kernel(node.op_type, "pass-through", self._opset) is not None

    def rule(self, node: onnx.NodeProto, kernel: Kernel) -> str:
        """Return the rule that a node breaks, as far as it can be told from its surroundings."""
        if any(name in self._outputs for name in node.output):
            return "its output is also an output of the model"
        if any(len(self._readers[name]) > 1 for name in node.output):
            return "its output has several readers before it is quantized"
        before = [self._makers[name] for name in node.input if name in self._makers]
        behind = [reader for name in node.output for reader in self._readers[name]]
        types = {self._zero_type(item) for item in (*before, *behind) if item.op_type in (_QUANTIZE, _DEQUANTIZE)}
        if kernel.weighted is None and len(types) > 1:
            return "its inputs and outputs have different integer types"
        if kernel.form == "pass-through" and len({self._parameters(item) for item in (*before[:1], *behind)}) > 1:
            return "its input and output have different scales or zero points"
        return self._weight_rule(node, kernel) or "no rule of ONNX Runtime's takes it"

    def _weight_rule(self, node: onnx.NodeProto, kernel: Kernel) -> str:
        if kernel.weighted is None or len(node.input) <= kernel.weighted:
            return ""
        weight = self._makers.get(node.input[kernel.weighted])
        if weight is None or weight.op_type != _DEQUANTIZE or weight.input[1] not in self._stored:
            return ""
        scale = self._stored[weight.input[1]]
        axis = next((item.i for item in weight.attribute if item.name == "axis"), 1)
        wanted = kernel.weight_axis
        if node.op_type == "Gemm" and any(item.name == "transB" and item.i for item in node.attribute):
            wanted = 1 - (wanted or 0)
        if int(np.prod(scale.dims)) > 1 and axis != wanted:
            return f"its weight has scales along axis {axis}, where {wanted} is expected"
        return ""

    def _kernel(self, node: onnx.NodeProto) -> Kernel | None:
        if node.domain not in ("", "ai.onnx"):
            return None
        static = self._target.kernel(node.op_type, "static", self._opset)
        return static or self._target.kernel(node.op_type, "pass-through", self._opset)

    def _has_integers(self, node: onnx.NodeProto, kernel: Kernel) -> bool:
        """Whether a node reads nothing but integers, constants aside, and, where its kernel needs it, writes them."""
        names = node.input[:1] if kernel.form == "pass-through" else node.input
        sources = [self._makers[name].op_type for name in names if name in self._makers]
        computed = [name for name in names if name and name not in self._stored]
        if not sources or len(sources) < len(computed) or set(sources) != {_DEQUANTIZE}:
            return False
        if kernel.weighted is not None and self._source(node, kernel.weighted) != _DEQUANTIZE:
            return False
        readers = [reader.op_type for name in node.output for reader in self._readers[name]]
        return kernel.float_output or (bool(readers) and set(readers) == {_QUANTIZE})

    def _source(self, node: onnx.NodeProto, index: int) -> str:
        maker = self._makers.get(node.input[index]) if index < len(node.input) else None
        return "" if maker is None else maker.op_type

    def _zero_type(self, conversion: onnx.NodeProto) -> int:
        stored = self._stored.get(conversion.input[2]) if len(conversion.input) > 2 else None
        return onnx.TensorProto.UINT8 if stored is None else stored.data_type

    def _parameters(self, conversion: onnx.NodeProto) -> tuple[str, ...]:
        return tuple(
            self._stored[name].SerializeToString().hex() if name in self._stored else name
            for name in conversion.input[1:3]
        )
