"""Zeros where zeros are the default."""

from __future__ import annotations

import onnx_graphsurgeon as gs

from graphopt.ir.graph import Variable
from graphopt.passes.fold.rules.rule import Outcome, Rule
from graphopt.passes.fold.workbench import Workbench, is_standard

_OPTIONAL = {"LSTM": (3, 5, 6), "GRU": (3, 5), "RNN": (3, 5), "Conv": (2,), "ConvTranspose": (2,), "Gemm": (2,)}
_KEEPS_ZEROS = frozenset(
    {"Slice", "Reshape", "Transpose", "Unsqueeze", "Squeeze", "Expand", "Gather", "Identity", "Tile"}
)
_DEPTH = 8  # nodes between the operator and the zeros


class ZeroState(Rule):
    """``LSTM(x, W, R, b, , 0, 0) -> LSTM(x, W, R, b)``: without initial states and biases, zeros are taken.

    So for GRU, RNN, Conv, ConvTranspose and, from operator set 11 on, Gemm. The zeros may be a weight, or what
    ConstantOfShape makes, in any shape.
    """

    name = "zero-state"
    ops = frozenset(_OPTIONAL)

    def apply(self, node: gs.Node, bench: Workbench) -> Outcome:
        """Leave out the inputs that are zeros."""
        if node.op == "Gemm" and bench.opset(node) < 11:
            return False
        zeros = [
            index
            for index in _OPTIONAL[node.op]
            if index < len(node.inputs) and not node.inputs[index].is_empty() and _is_zero(node.inputs[index], bench)
        ]
        for index in zeros:
            bench.set_input(node, index, Variable(""))
        while node.inputs and node.inputs[-1].is_empty():
            node.inputs.pop()
        return bool(zeros)


def _is_zero(tensor: gs.Tensor, bench: Workbench) -> bool:
    for _ in range(_DEPTH):
        values = bench.small_array(tensor)
        if values is not None:
            return values.dtype.kind in "fV" and not values.any()
        producer = bench.producer(tensor)
        if producer is None or not is_standard(producer) or not producer.inputs:
            return False
        if producer.op == "ConstantOfShape":
            value = producer.attrs.get("value")
            return value is None or (isinstance(value, gs.Constant) and not value.values.any())
        if producer.op not in _KEEPS_ZEROS:
            return False
        tensor = producer.inputs[0]
    return False
