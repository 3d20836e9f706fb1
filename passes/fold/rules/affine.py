"""Arithmetic with constants moves into the linear operator before it."""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs

from graphopt.passes.fold.rules.linear import Linear, absorb, bias_growth, linear
from graphopt.passes.fold.rules.rule import Outcome, Rule, done
from graphopt.passes.fold.workbench import Workbench


class Affine(Rule):
    """``(W x + b) * c -> (W c) x + b c``, ``(W x + b) + c -> W x + (b + c)``, so for Div and Sub; c per output channel.

    After Conv, ConvTranspose, Gemm, and for factors MatMul, whose output nobody else reads; a factor needs a constant
    weight that nobody else uses.
    """

    name = "affine"
    ops = frozenset({"Mul", "Add", "Div", "Sub"})

    def apply(self, node: gs.Node, bench: Workbench) -> Outcome:
        """Merge the node into its producer."""
        if len(node.inputs) != 2:
            return False
        for index in (0, 1):
            place = linear(bench.producer(node.inputs[index]), bench)
            values = bench.small_array(node.inputs[1 - index])
            if place is not None and values is not None and values.dtype.kind in "fV":
                return _merge(node, index, place, values, bench)
        return False


def _merge(node: gs.Node, index: int, place: Linear, values: np.ndarray, bench: Workbench) -> Outcome:
    if not bench.only_reader(node, node.inputs[index]):
        return f"the output of {place.node.op} is used elsewhere too"
    operand = place.per_channel(values)
    if operand is None:
        return "its constant varies along more than the output channels"
    affine = scale_and_shift(node.op, index, operand)
    if affine is None:
        return "it divides by the output, or by zero"
    if affine[1] is not None and place.node.op == "MatMul":
        return False
    growth = 0 if affine[1] is None else bias_growth(place, node, bench)
    if growth > max(bench.budget, 0):
        return f"as a bias it would take {growth} bytes more"
    return done(absorb(place, *affine, bench) or bench.bypass(node, node.inputs[index]))


def scale_and_shift(op: str, index: int, operand: np.ndarray) -> tuple[np.ndarray | None, np.ndarray | None] | None:
    """Return what ``op`` does to the tensor at input `index`, as scale and shift."""
    if op == "Mul":
        return operand, None
    if op == "Add":
        return None, operand
    if op == "Sub":
        return (None, -operand) if index == 0 else (np.full_like(operand, -1.0), operand)
    if index == 1 or not operand.all():
        return None
    return 1.0 / operand, None
