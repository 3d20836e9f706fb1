"""Why a node that could run in integers does not: the rule of ONNX Runtime's that its surroundings break."""

from __future__ import annotations

import numpy as np
import onnx

from graphopt.passes.quant.accounting.views import View, is_integer, node_name, plain_name
from graphopt.targets import Kernel, Target

_QUANTIZE, _DEQUANTIZE = "QuantizeLinear", "DequantizeLinear"


class Refusals:
    """Looks at the nodes of one optimized graph.

    Args:
        view: The graph as ONNX Runtime runs it.
        target: Whose kernels count.
        opset: Of the default domain.
    """

    def __init__(self, view: View, target: Target, opset: int) -> None:
        self._view = view
        self._target = target
        self._opset = opset

    def inside(self, conversion: onnx.NodeProto) -> str:
        """Return why a conversion is inside an integer region, or nothing if it is at a border.

        Inside are a conversion that undoes another, and one beside a float node that has an integer kernel and integers
        on all sides.
        """
        for node in self._view.beside(conversion):
            if node.op_type in (_QUANTIZE, _DEQUANTIZE) and node.op_type != conversion.op_type:
                return f"'{plain_name(node_name(node))}' turns it straight back"
            kernel = self._kernel(node)
            if kernel is not None and self._has_integers(node, kernel):
                return f"{node.op_type} '{plain_name(node_name(node))}' stays float: {self._rule(node, kernel)}"
        return ""

    def moves(self, node: onnx.NodeProto) -> bool:
        """Whether a node's operator can move integers without looking at them."""
        return self._target.kernel(node.op_type, "pass-through", self._opset) is not None

    def broken(self, node: onnx.NodeProto) -> str:
        """Return the rule that a node breaks that was to run in integers, or nothing if it does run in integers."""
        sources = [self._source(name) for name in node.input if name]
        if is_integer(node) or _DEQUANTIZE not in sources:
            return ""
        kernel = self._kernel(node)
        if kernel is None:
            return f"{self._target.name} has no integer kernel for {node.op_type}"
        read = [name for name in (node.input[:1] if kernel.form == "pass-through" else node.input) if name]
        real = [name for name in read if self._source(name) != _DEQUANTIZE]
        if real:
            return f"its input '{real[0]}' comes as float"
        if not self._is_quantized(node) and not kernel.float_output:
            return "its output is not quantized"
        return self._rule(node, kernel)

    def _rule(self, node: onnx.NodeProto, kernel: Kernel) -> str:
        """Return the rule that a node breaks, as far as its surroundings tell."""
        view = self._view
        if any(name in view.outputs for name in node.output):
            return "its output is also an output of the model"
        if any(len(view.readers[name]) > 1 for name in node.output):
            return "its output has several readers before it is quantized"
        stored = [name for name in node.input if name in view.stored]
        if kernel.form == "static" and kernel.weighted is None and stored:
            return f"its constant '{stored[0]}' is not quantized"
        before = [view.makers[name] for name in node.input if name in view.makers]
        behind = [reader for name in node.output for reader in view.readers[name]]
        types = {self._zero_type(item) for item in (*before, *behind) if item.op_type in (_QUANTIZE, _DEQUANTIZE)}
        if kernel.weighted is None and len(types) > 1:
            return "its inputs and outputs have different integer types"
        if kernel.form == "pass-through" and len({self._parameters(item) for item in (*before[:1], *behind)}) > 1:
            return "its input and output have different scales or zero points"
        return self._weight_rule(node, kernel) or self._clamp_rule(node, kernel) or "no rule of ONNX Runtime's takes it"

    def _weight_rule(self, node: onnx.NodeProto, kernel: Kernel) -> str:
        """Return whether the scales of a weight lie along another axis than the kernel's."""
        if kernel.weighted is None or self._source(node.input[kernel.weighted]) != _DEQUANTIZE:
            return ""
        weight = self._view.makers[node.input[kernel.weighted]]
        scale = self._view.stored.get(weight.input[1])
        axis = next((item.i for item in weight.attribute if item.name == "axis"), 1)
        wanted = kernel.weight_axis or 0
        if node.op_type == "Gemm" and any(item.name == "transB" and item.i for item in node.attribute):
            wanted = 1 - wanted
        if scale is not None and int(np.prod(scale.dims)) > 1 and axis != wanted:
            return f"its weight has scales along axis {axis}, where {wanted} is expected"
        return ""

    def _clamp_rule(self, node: onnx.NodeProto, kernel: Kernel) -> str:
        """Return whether a float output goes into a clamp that has one reader.

        ONNX Runtime takes such a clamp for a part of the group and looks for the quantized output behind it. With two
        readers, as an output of the model, or behind any other activation the same node becomes an integer kernel.
        """
        behind = self._view.readers[node.output[0]]
        if not kernel.float_output or len(behind) != 1 or behind[0].op_type not in ("Relu", "Clip"):
            return ""
        result = behind[0].output[0]
        if result in self._view.outputs or len(self._view.readers[result]) != 1:
            return ""
        return (
            f"its output is looked for behind the {behind[0].op_type}, which has one reader, and is not quantized there"
        )

    def _kernel(self, node: onnx.NodeProto) -> Kernel | None:
        if node.domain not in ("", "ai.onnx"):
            return None
        static = self._target.kernel(node.op_type, "static", self._opset)
        return static or self._target.kernel(node.op_type, "pass-through", self._opset)

    def _has_integers(self, node: onnx.NodeProto, kernel: Kernel) -> bool:
        """Whether a node reads nothing but integers, constants aside, and, where its kernel needs it, writes them."""
        names = node.input[:1] if kernel.form == "pass-through" else node.input
        sources = {self._source(name) for name in names if name and name not in self._view.stored}
        if sources != {_DEQUANTIZE}:
            return False
        if kernel.weighted is not None and self._source(node.input[kernel.weighted]) != _DEQUANTIZE:
            return False
        return kernel.float_output or self._is_quantized(node)

    def _is_quantized(self, node: onnx.NodeProto) -> bool:
        return {reader.op_type for name in node.output for reader in self._view.readers[name]} == {_QUANTIZE}

    def _source(self, name: str) -> str:
        """Return the operator that makes a tensor, or nothing for what is stored or comes from outside."""
        maker = self._view.makers.get(name)
        return "" if maker is None else maker.op_type

    def _zero_type(self, conversion: onnx.NodeProto) -> int:
        stored = self._view.stored.get(conversion.input[2]) if len(conversion.input) > 2 else None
        return onnx.TensorProto.UINT8 if stored is None else stored.data_type

    def _parameters(self, conversion: onnx.NodeProto) -> tuple[str | bytes, ...]:
        """Return what tells whether two conversions have one scale and zero point."""
        return tuple(map(self._content, conversion.input[1:3]))

    def _content(self, name: str) -> str | bytes:
        """Return the bytes of what is stored under a name; the name where they are not at hand, as of long scales."""
        stored = self._view.stored.get(name)
        if stored is None or onnx.external_data_helper.uses_external_data(stored):
            return name
        return onnx.numpy_helper.to_array(stored).tobytes()
