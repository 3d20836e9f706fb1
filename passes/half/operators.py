"""Which operators compute in fp16 on GPUs, and which of their inputs stay in float."""

from __future__ import annotations

import onnx_graphsurgeon as gs

from graphopt.ir.graph import bodies

_ALL: frozenset[int] = frozenset()
KERNELS: dict[str, frozenset[int]] = {
    **dict.fromkeys(
        (
            *("Conv", "ConvTranspose", "Gemm", "MatMul", "LSTM", "GRU"),
            *("Add", "Sub", "Mul", "Div", "Neg", "Abs", "Pow", "Sqrt", "Reciprocal", "Exp", "Erf", "Max", "Min"),
            *("Relu", "LeakyRelu", "PRelu", "Clip", "Elu", "Selu", "Softplus", "HardSigmoid", "HardSwish"),
            *("Sigmoid", "Tanh", "Gelu", "Mish", "Softmax", "LogSoftmax"),
            *("BatchNormalization", "InstanceNormalization", "LayerNormalization", "GroupNormalization"),
            *("MaxPool", "AveragePool", "GlobalMaxPool", "GlobalAveragePool"),
            *("ReduceMean", "ReduceMax", "ReduceMin", "ReduceSum", "ReduceL2", "Greater", "Less", "Where"),
            *("Concat", "Split", "Slice", "Gather", "GatherElements", "GatherND", "Pad", "Tile", "Expand", "Identity"),
            *(
                "Reshape",
                "Flatten",
                "Squeeze",
                "Unsqueeze",
                "Transpose",
                "Shape",
                "Size",
                "DepthToSpace",
                "SpaceToDepth",
                "Dropout",
            ),
        ),
        _ALL,
    ),
    "Resize": frozenset({1, 2}),  # region and scales are float by definition (opset 10: scales are input 1)
}
"""Operator -> positions of float inputs that stay float; standard operators with fp16 kernels in the CUDA provider."""

_COUNTING = frozenset({"Range", "CumSum", "TopK", "ArgMax", "ArgMin", "NonMaxSuppression", "Unique", "OneHot", "Mod"})


def refusal(node: gs.Node) -> str:
    """Return why a node stays in float whatever its tensors hold, or an empty text."""
    if bodies(node):
        return "what is inside a body stays in float"
    if node.domain not in (None, "", "ai.onnx"):
        return f"nothing is known of {node.domain}:{node.op} in fp16"
    if node.op in _COUNTING:
        return f"{node.op} counts or orders, for which fp16 has too few digits"
    return "" if node.op in KERNELS else f"{node.op} has no fp16 kernel, or needs 32 bits"
