"""Which operator runs in which integer form on ONNX Runtime's CPU provider, and under which conditions.

The tables are data: a pass asks for the kernels of an operator and checks the named conditions on its node. What has no
line here has no kernel, and stays float. Sources: the selectors in ONNX Runtime's
``qdq_selector_action_transformer.cc`` and ``qdq_selectors.cc``, its MLAS dispatch (``mlas/lib/platform.cpp``), and what
the installed runtime does with a node of each kind.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Form = Literal["static", "pass-through", "dynamic", "weight-only"]


@dataclass(frozen=True)
class Kernel:
    """One line of the table: an operator in one integer form.

    Attributes:
        op: ONNX operator type, default domain.
        form: "static": DequantizeLinear before, QuantizeLinear after; "pass-through": the same, and the integers only
            move, so input and output have one scale and zero point; "dynamic": ranges are found at run time;
            "weight-only": integers are only stored, and what is read of them is turned into floats.
        becomes: What the runtime makes of it; empty where Q and DQ are only dropped.
        weighted: Position of the input that must be a constant weight; None if all inputs are activations.
        weight_axis: Axis of that weight with one scale per index; None for one scale for all. For Gemm it holds for
            transB = 0; with transB = 1 it is the other one.
        float_output: Whether the output may stay float.
        first_opset: Lowest opset in which the pattern is recognized.
        last_opset: Highest one, or None.
        conditions: Names of further conditions; see `CONDITIONS`.
    """

    op: str
    form: Form
    becomes: str
    weighted: int | None = None
    weight_axis: int | None = None
    float_output: bool = False
    first_opset: int = 10
    last_opset: int | None = None
    conditions: tuple[str, ...] = ()


@dataclass(frozen=True)
class Convention:
    """How a target wants integers written.

    Attributes:
        signed: Activations are int8 around zero; else uint8 with any zero point.
        integer_bias: Biases are int32 in units of both scales; else they stay float.
        stores_outputs: All readers of what an integer node stores see the stored value; else only integer nodes do.
        absorbs_clamps: A ReLU or Clip behind a node is left to the rounding to unsigned integers.
    """

    signed: bool = False
    integer_bias: bool = True
    stores_outputs: bool = True
    absorbs_clamps: bool = True


X86 = Convention()
CONDITIONS = {
    "same-type": "all quantized inputs and outputs have one integer type",
    "bias-unit-beta": "beta is 1 when there is a bias, and alpha is 1",
    "constant-weight": "the weight is stored in the file and does not depend on inputs",
    "matrix-weight": "the weight has two axes",
    "positive-scale": "the scale is positive, so that order is kept",
    "one-parameter-set": "every output has the scale and zero point of the input",
    "single-activation": "only the first input is quantized; the others are indices, shapes or float parameters",
    "spatial": "NCHW layout with at least one spatial axis",
    "wide-channels": "at least 16 channels in and out: below, integers are slower there",
    "skip-input": "only the input that does not come from a convolution or matrix product is quantized",
    "forward-layout": "layout attribute 0 and default activation functions",
}
"""Name -> meaning of each condition."""


def _static(op: str, becomes: str, *conditions: str, **rest: object) -> Kernel:
    return Kernel(op, "static", becomes, conditions=conditions, **rest)  # type: ignore[arg-type]


def _moves(op: str, *conditions: str, **rest: object) -> Kernel:
    return Kernel(op, "pass-through", "", conditions=("one-parameter-set", *conditions), **rest)  # type: ignore[arg-type]


CPU_KERNELS: tuple[Kernel, ...] = (
    # ConvSelector, weight per axis 0; a bias must be int32 with scale s_x * s_w
    _static("Conv", "QLinearConv", "same-type", "constant-weight", weighted=1, weight_axis=0),
    # MatMulSelector; without Q behind it MatMulIntegerToFloat. Weight per last axis (operators/matmul.py)
    _static("MatMul", "QLinearMatMul", "same-type", "matrix-weight", weighted=1, weight_axis=1, float_output=True),
    # GemmSelector; Q behind it is optional. Weight per axis 1 (operators/gemm.py)
    _static("Gemm", "com.microsoft.QGemm", "same-type", "bias-unit-beta", weighted=1, weight_axis=1, float_output=True),
    # BinarySelector: two DQ and one Q of one type; Sub and Div have no line
    _static("Add", "com.microsoft.QLinearAdd", "same-type"),
    _static("Mul", "com.microsoft.QLinearMul", "same-type"),
    # UnarySelector
    _static("AveragePool", "com.microsoft.QLinearAveragePool", "same-type", "spatial"),
    _static("GlobalAveragePool", "com.microsoft.QLinearGlobalAveragePool", "same-type", "spatial"),
    _static("LeakyRelu", "com.microsoft.QLinearLeakyRelu", "same-type"),
    _static("Sigmoid", "com.microsoft.QLinearSigmoid", "same-type"),
    _static("Softmax", "com.microsoft.QLinearSoftmax", "same-type"),
    # VariadicSelector: scales may differ
    _static("Concat", "com.microsoft.QLinearConcat", "same-type"),
    # DropQDQ: equal parameters on both sides
    _moves("MaxPool", "positive-scale", first_opset=12, last_opset=21),  # registered for MaxPool-12 only
    _moves("Reshape", "single-activation"),
    _moves("Transpose", "single-activation"),
    _moves("Squeeze", "single-activation"),
    _moves("Unsqueeze", "single-activation"),
    _moves("Flatten", "single-activation"),
    _moves("Slice", "single-activation"),
    _moves("Gather", "single-activation"),
    _moves("Expand", "single-activation"),
    _moves("Tile", "single-activation"),
    _moves("Resize", "single-activation"),
    # MatMulInteger with DynamicQuantizeLinear, fused to DynamicQuantizeMatMul or MatMulIntegerToFloat
    Kernel("MatMul", "dynamic", "com.microsoft.DynamicQuantizeMatMul", weighted=1, weight_axis=1, float_output=True,
           first_opset=11, conditions=("constant-weight", "matrix-weight")),
    Kernel("Gemm", "dynamic", "com.microsoft.DynamicQuantizeMatMul", weighted=1, weight_axis=1, float_output=True,
           first_opset=11, conditions=("constant-weight", "bias-unit-beta")),
    # DynamicQuantizeLSTM: weights transposed, one scale per column; there is no such kernel for GRU and RNN
    Kernel("LSTM", "dynamic", "com.microsoft.DynamicQuantizeLSTM", weighted=1, weight_axis=1, float_output=True,
           conditions=("constant-weight", "forward-layout")),
    # Gather takes int8; DequantizeLinear on the rows that were read, one scale per column
    Kernel("Gather", "weight-only", "Gather", weighted=0, weight_axis=1, float_output=True, first_opset=13,
           conditions=("constant-weight", "matrix-weight")),
)  # fmt: skip
