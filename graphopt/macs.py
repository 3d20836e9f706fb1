"""Multiply-accumulate operations per operator, from the shapes of its inputs and outputs.

One MAC is one multiplication and one addition. Counted are the operators whose work is a sum of products: convolutions,
matrix products, recurrent cells, Einsum and attention, also in ONNX Runtime's quantized and fused forms. All others
count 0; biases, activations and elementwise work are small beside them and are memory-bound.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import onnx_graphsurgeon as gs

Shape = tuple[int, ...]
ShapeOf = Callable[[gs.Tensor], Shape | None]
Rule = Callable[[gs.Node, ShapeOf], int | None]


def node_macs(node: gs.Node, shape_of: ShapeOf) -> int | None:
    """Return the MACs of one execution of a node, bodies not included; None where a shape it rests on is unknown.

    Args:
        node: Any node.
        shape_of: Shape of a tensor, or None where it is unknown.
    """
    rule = _RULES.get(node.op) if (node.domain or "") in ("", "ai.onnx", "com.microsoft") else None
    return 0 if rule is None else rule(node, shape_of)


def counts(op: str) -> bool:
    """Whether nodes with this operator have MACs."""
    return op in _RULES


def _shape(tensors: Sequence[gs.Tensor], index: int, shape_of: ShapeOf) -> Shape | None:
    return shape_of(tensors[index]) if index < len(tensors) and not tensors[index].is_empty() else None


def _convolution(weight: int) -> Rule:
    """Every output element sums over the weights of one filter, W[out, in/groups, *kernel]."""

    def macs(node: gs.Node, shape_of: ShapeOf) -> int | None:
        output, kernel = _shape(node.outputs, 0, shape_of), _shape(node.inputs, weight, shape_of)
        return None if output is None or kernel is None else math.prod(output) * math.prod(kernel[1:])

    return macs


def _transposed_convolution(node: gs.Node, shape_of: ShapeOf) -> int | None:
    """Every input element is spread over W[in, out/groups, *kernel]."""
    source, kernel = _shape(node.inputs, 0, shape_of), _shape(node.inputs, 1, shape_of)
    return None if source is None or kernel is None else math.prod(source) * math.prod(kernel[1:])


def _matrix_product(left: int, right: int) -> Rule:
    """Stacks of [m, k] times [k, n], as numpy.matmul: k products for every element of the result."""

    def macs(node: gs.Node, shape_of: ShapeOf) -> int | None:
        a, b = _shape(node.inputs, left, shape_of), _shape(node.inputs, right, shape_of)
        output = _shape(node.outputs, 0, shape_of)
        if output is None and a is not None and b is not None:
            output = _product_shape(a, b)
        depth = a[-1] if a else (b[-2] if b is not None and len(b) > 1 else None)
        return None if output is None or depth is None else math.prod(output) * depth

    return macs


def _product_shape(a: Shape, b: Shape) -> Shape:
    rows, columns = (a[-2:-1] if len(a) > 1 else ()), (b[-1:] if len(b) > 1 else ())
    stack, other = a[:-2], b[:-2]
    width = max(len(stack), len(other))
    stack, other = (1,) * (width - len(stack)) + stack, (1,) * (width - len(other)) + other
    return tuple(x if y == 1 else y for x, y in zip(stack, other, strict=True)) + rows + columns


def _general_product(node: gs.Node, shape_of: ShapeOf) -> int | None:
    """A[m, k] times B[k, n], either one transposed: every element of A meets n columns."""
    a, output = _shape(node.inputs, 0, shape_of), _shape(node.outputs, 0, shape_of)
    b = _shape(node.inputs, 3 if node.op == "QGemm" else 1, shape_of)
    if output is None and b is not None and len(b) == 2:
        output = (b[0 if node.attrs.get("transB", 0) else 1],)
    return None if a is None or output is None else math.prod(a) * output[-1]


def _block_quantized_product(node: gs.Node, shape_of: ShapeOf) -> int | None:
    """A[..., K] times a packed [N, K]: every element of A meets N columns, which is an attribute."""
    a, output = _shape(node.inputs, 0, shape_of), _shape(node.outputs, 0, shape_of)
    columns = output[-1] if output else node.attrs.get("N")
    return None if a is None or columns is None else math.prod(a) * int(columns)


def _recurrent(node: gs.Node, shape_of: ShapeOf) -> int | None:
    """Per step and batch item each weight of W and R is used once; `sequence_lens` is not looked at."""
    steps, weights, recurrent = (_shape(node.inputs, index, shape_of) for index in range(3))
    if steps is None or weights is None or recurrent is None:
        return None
    return math.prod(steps[:2]) * (math.prod(weights) + math.prod(recurrent))


def _einsum(node: gs.Node, shape_of: ShapeOf) -> int | None:
    """One product per operand but the first, for every combination of the subscripts."""
    if len(node.inputs) < 2:
        return 0
    shapes = [shape_of(tensor) for tensor in node.inputs]
    terms = str(node.attrs.get("equation", "")).replace(" ", "").split("->")[0].split(",")
    sizes: dict[str, int] = {}
    for term, shape in zip(terms, shapes, strict=True):
        if shape is None:
            return None
        for label, size in zip(_labels(term, len(shape)), shape, strict=True):
            sizes[label] = max(sizes.get(label, 1), size)
    return math.prod(sizes.values()) * (len(terms) - 1)


def _labels(term: str, rank: int) -> list[str]:
    """Return one label per axis; those of an ellipsis are counted from its end, as broadcasting does."""
    before, ellipsis, after = term.partition("...")
    hidden = rank - len(before) - len(after) if ellipsis else 0
    return [*before, *(f".{index}" for index in range(hidden, 0, -1)), *after]


def _attention(node: gs.Node, shape_of: ShapeOf) -> int | None:
    """Scores Q K^T and their product with V: Y[..., queries, :] over all keys, for ONNX's Attention (opset 23)."""
    query, output = _shape(node.inputs, 0, shape_of), _shape(node.outputs, 0, shape_of)
    key, past = _shape(node.inputs, 1, shape_of), _shape(node.inputs, 4, shape_of)
    if query is None or output is None or key is None or (past is None and _is_given(node, 4)):
        return None
    keys = key[-2] + (past[-2] if past is not None else 0)
    return keys * (math.prod(query) + math.prod(output))


def _is_given(node: gs.Node, index: int) -> bool:
    return index < len(node.inputs) and not node.inputs[index].is_empty()


_RULES: dict[str, Rule] = {
    "Conv": _convolution(1),
    "FusedConv": _convolution(1),
    "ConvInteger": _convolution(1),
    "DeformConv": _convolution(1),
    "QLinearConv": _convolution(3),
    "ConvTranspose": _transposed_convolution,
    "MatMul": _matrix_product(0, 1),
    "MatMulInteger": _matrix_product(0, 1),
    "MatMulIntegerToFloat": _matrix_product(0, 1),
    "DynamicQuantizeMatMul": _matrix_product(0, 1),
    "QLinearMatMul": _matrix_product(0, 3),
    "MatMulNBits": _block_quantized_product,
    "Gemm": _general_product,
    "FusedGemm": _general_product,
    "QGemm": _general_product,
    "LSTM": _recurrent,
    "GRU": _recurrent,
    "RNN": _recurrent,
    "DynamicQuantizeLSTM": _recurrent,
    "Einsum": _einsum,
    "Attention": _attention,
}
