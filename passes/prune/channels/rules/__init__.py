"""Along which axes channels go through each operator.

A rule reads the layouts of a node's inputs, ties, cuts and counts, and says what is followed in the outputs. An
operator without a rule is a boundary: the channels that it reads stay, and the report names it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import onnx_graphsurgeon as gs

from graphopt.passes.prune.channels.rules.linear import conv, conv_transpose, gemm, matmul
from graphopt.passes.prune.channels.rules.pointwise import (
    batch_norm,
    elementwise,
    layer_norm,
    quantize,
    softmax,
    window,
)
from graphopt.passes.prune.channels.rules.recurrent import recurrent
from graphopt.passes.prune.channels.rules.reshaping import expand, pad, regroup, reshape, resize, transpose
from graphopt.passes.prune.channels.rules.selection import argument, concat, gather, reduce, shape_of, slice_, split
from graphopt.passes.prune.channels.tracker import Tracker

Rule = Callable[[gs.Node, Tracker], None]

_ELEMENTWISE = (
    "Abs Acos Acosh Add And Asin Asinh Atan Atanh BitShift BitwiseAnd BitwiseNot BitwiseOr BitwiseXor Cast CastLike "
    "Ceil Celu Clip Cos Cosh Div Dropout Elu Equal Erf Exp Floor Gelu Greater GreaterOrEqual HardSigmoid HardSwish "
    "Identity IsInf IsNaN LeakyRelu Less LessOrEqual Log Max Mean Min Mish Mod Mul Neg Not Or PRelu Pow Reciprocal "
    "Relu Round Selu Shrink Sigmoid Sign Sin Sinh Softplus Softsign Sqrt Sub Sum Tan Tanh ThresholdedRelu Where Xor"
)
_WINDOWS = "AveragePool GlobalAveragePool GlobalLpPool GlobalMaxPool LpPool MaxPool"
_REDUCTIONS = (
    "ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum ReduceSumSquare"
)

RULES: Mapping[str, Rule] = {
    "Conv": conv,
    "ConvTranspose": conv_transpose,
    "Gemm": gemm,
    "MatMul": matmul,
    **dict.fromkeys(("LSTM", "GRU", "RNN"), recurrent),
    **dict.fromkeys(_ELEMENTWISE.split(), elementwise),
    **dict.fromkeys(_WINDOWS.split(), window),
    **dict.fromkeys(_REDUCTIONS.split(), reduce),
    **dict.fromkeys(("ArgMax", "ArgMin"), argument),
    **dict.fromkeys(("BatchNormalization", "InstanceNormalization"), batch_norm),
    **dict.fromkeys(("LayerNormalization", "RMSNormalization"), layer_norm),
    **dict.fromkeys(("Softmax", "LogSoftmax", "Hardmax"), softmax),
    **dict.fromkeys(("QuantizeLinear", "DequantizeLinear"), quantize),
    **dict.fromkeys(("Resize", "Upsample"), resize),
    **dict.fromkeys(("Flatten", "Squeeze", "Unsqueeze"), regroup),
    "Reshape": reshape,
    "Transpose": transpose,
    "Expand": expand,
    "Pad": pad,
    "Concat": concat,
    "Split": split,
    "Slice": slice_,
    "Gather": gather,
    "Shape": shape_of,
}
