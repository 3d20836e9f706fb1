"""Which outputs are class scores, so that the largest one is the answer."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs

from graphopt.model import Model

_RESHAPING = frozenset({"Reshape", "Squeeze", "Unsqueeze", "Flatten"})
_TRANSPARENT = frozenset({"Identity", "Cast", "CastLike", "QuantizeLinear", "DequantizeLinear", "Dropout"}) | _RESHAPING
_SPREADING = frozenset({"Expand", "Identity"}) | _RESHAPING
_SCALING = frozenset({"Add", "Sub", "Mul", "Div"})
_POOLING = frozenset({"GlobalAveragePool", "ReduceMean", "AveragePool"})
_LINEAR = frozenset({"Gemm", "MatMul", "Conv", "MatMulInteger", "ConvInteger", "QLinearMatMul", "QLinearConv", "QGemm"})


@dataclass(frozen=True)
class Scores:
    """How to read an output as class scores.

    Attributes:
        axis: Axis of the classes.
        merged: Whether the classes are all axes from `axis` on (Softmax before opset 13).
        matrix_only: Whether they are scores only if the output has two axes.
    """

    axis: int = -1
    merged: bool = False
    matrix_only: bool = False

    def rows(self, array: np.ndarray) -> np.ndarray | None:
        """Return the scores as [positions, classes], or None if the array has none."""
        rank = array.ndim
        if rank < 2 or (self.matrix_only and rank != 2) or not -rank <= self.axis < rank or array.size == 0:
            return None
        axis = self.axis % rank
        if self.merged:
            rows = array.reshape(math.prod(array.shape[:axis]), -1)
        else:
            rows = np.moveaxis(array, axis, -1).reshape(-1, array.shape[axis])
        return rows if rows.shape[1] >= 2 else None


def class_scores(model: Model) -> dict[str, Scores]:
    """Return, for each output of the model that is class scores, how to read it.

    Those are: what Softmax or LogSoftmax (or Softmax written in primitives) produces, at every position; what is named
    "logits", along its last axis; and what a linear layer (perhaps averaged over an image, scaled or shifted) produces,
    if it has just two axes [batch, classes]. Conversions and reshapes in between do not matter. A normalized embedding
    is none, nor is anything with fewer than two classes.
    """
    found = {output.name: _scores_of(output, model.opset) for output in model.graph.outputs}
    return {name: scores for name, scores in found.items() if scores is not None}


def same_top(expected: np.ndarray, actual: np.ndarray) -> np.ndarray:
    """Return for each row of two [positions, classes] whether the best class is the same; ties are."""
    if expected.dtype.kind == "V":  # bf16 and fp8: exact in fp32
        expected, actual = expected.astype(np.float32), actual.astype(np.float32)
    row = np.arange(len(expected))
    ours, theirs = expected.argmax(axis=1), actual.argmax(axis=1)
    same: np.ndarray = (ours == theirs) | (expected[row, ours] == expected[row, theirs])
    return same


def _scores_of(output: gs.Tensor, opset: int) -> Scores | None:
    named = "logit" in output.name.lower()
    reshaped = False
    permutations: list[list[int] | None] = []
    tensor = output
    while (node := _producer(tensor)) is not None:
        if node.op in ("Softmax", "LogSoftmax"):
            return _softmax(node, opset, reshaped, permutations)
        if node.op == "Div" and _is_softmax(node):
            return Scores()
        if node.op in _LINEAR:
            return Scores(matrix_only=not named)
        if node.op == "Transpose":
            permutations.append(node.attrs.get("perm"))
        elif node.op not in _TRANSPARENT | _SCALING | _POOLING:
            break
        reshaped = reshaped or node.op in _RESHAPING
        following = _through(node)
        if following is None:
            break
        tensor = following
    return Scores() if named else None


def _producer(tensor: gs.Tensor) -> gs.Node | None:
    return tensor.inputs[0] if tensor.inputs else None


def _through(node: gs.Node) -> gs.Tensor | None:
    """Return the one input that carries the values; None if two do."""
    if node.op not in _SCALING:
        return node.inputs[0] if node.inputs else None
    varying = [tensor for tensor in node.inputs if not isinstance(tensor, gs.Constant) and tensor.inputs]
    return varying[0] if len(varying) == 1 else None


def _is_softmax(node: gs.Node) -> bool:
    """Whether a Div is the end of Exp(x) / ReduceSum(Exp(x)), as some exporters write Softmax."""
    above, below = (_producer(tensor) for tensor in node.inputs)
    while below is not None and below.op in _SPREADING:
        below = _producer(below.inputs[0])
    if above is None or below is None or above.op != "Exp" or below.op != "ReduceSum":
        return False
    return _producer(below.inputs[0]) is above


def _softmax(node: gs.Node, opset: int, reshaped: bool, permutations: list[list[int] | None]) -> Scores:
    if reshaped:
        return Scores()
    merged = opset < 13
    axis = int(node.attrs.get("axis", 1 if merged else -1))
    for permutation in reversed(permutations):
        if permutation is None:
            return Scores()
        axis, merged = permutation.index(axis % len(permutation)), False
    return Scores(axis, merged)
