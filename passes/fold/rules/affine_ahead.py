"""Scaling and shifting per channel move into the linear operator after them."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import onnx_graphsurgeon as gs

from graphopt.ir.graph import Constant
from graphopt.passes.fold.rules.affine import scale_and_shift as arithmetic
from graphopt.passes.fold.rules.batch_norm import scale_and_shift as normalization
from graphopt.passes.fold.rules.batch_norm import trains
from graphopt.passes.fold.rules.linear import Linear, absorb, bias_growth, linear
from graphopt.passes.fold.rules.rule import Outcome, Rule, done
from graphopt.passes.fold.workbench import Workbench

Affine = tuple[np.ndarray | None, np.ndarray | None]


class AffineAhead(Rule):
    """``W (k x + c) + b -> (W k) x + (W c + b)`` for k and c per channel of x, also of a BatchNormalization.

    Before Conv, ConvTranspose, Gemm and MatMul that alone read it, with a constant weight that nobody else uses. A
    shift needs an operator with a bias, and no padding: the zeros around an image are not shifted.
    """

    name = "affine-ahead"
    ops = frozenset({"Mul", "Add", "Div", "Sub", "BatchNormalization"})
    late = True

    def apply(self, node: gs.Node, bench: Workbench) -> Outcome:
        """Merge the node into its only reader."""
        output = node.outputs[0]
        place = linear(output.outputs[0], bench) if len(output.outputs) == 1 else None
        if place is None or place.node.inputs[0] is not output or not bench.only_reader(place.node, output):
            return False
        ahead = _inputs_of(place, output, bench)
        found = None if ahead is None else _affine(node, ahead, bench)
        if ahead is None or found is None:
            return False
        source, (scale, shift) = found
        weight = place.node.inputs[1]
        if not isinstance(weight, Constant) or bench.uses(weight) != 1:
            return "the weight of the operator after it is computed, or used elsewhere too"
        if shift is not None and not _takes_shift(place.node):
            return "the operator after it has no bias, or pads"
        if shift is not None and bias_growth(place, node, bench) > max(bench.budget, 0):
            return "a bias would make the file larger"
        values, extra = ahead.scaled(weight.values, scale), None
        if shift is not None:
            extra = ahead.shifted(weight.values, shift)
        if not np.isfinite(values).all():
            return "the merged weights would not be finite"
        reason = absorb(place, None, extra, bench) if extra is not None else ""
        if reason:
            return reason
        weight.values = values
        return done(bench.bypass(node, source))


@dataclass(frozen=True)
class _Inputs:
    """The input side of a linear operator.

    Attributes:
        place: As `Linear`, but of the input: rank, axis and number of its channels.
        groups: Groups of channels.
        first: Whether the weight has the input's channels on its first axis (of each group), else on its second.
    """

    place: Linear
    groups: int
    first: bool

    def scaled(self, weight: np.ndarray, scale: np.ndarray | None) -> np.ndarray:
        """Return the weight with each input channel multiplied; scale has shape (channels,)."""
        if scale is None:
            return weight
        product: np.ndarray = self._grouped(weight) * self._factor(scale)
        with np.errstate(over="ignore"):
            return product.astype(weight.dtype).reshape(weight.shape)

    def shifted(self, weight: np.ndarray, shift: np.ndarray) -> np.ndarray:
        """Return what a shift of the input, of shape (channels,), adds to each output channel."""
        alpha = float(self.place.node.attrs.get("alpha", 1.0)) if self.place.node.op == "Gemm" else 1.0
        product = self._grouped(weight) * self._factor(shift)
        total: np.ndarray = product.sum(axis=(1, 3) if self.first else (2, 3)).reshape(-1)
        return alpha * total

    def _grouped(self, weight: np.ndarray) -> np.ndarray:
        """Return the weight in float64 as (groups, first, second, rest)."""
        rows, columns = weight.shape[:2]
        return weight.astype(np.float64).reshape(self.groups, rows // self.groups, columns, -1)

    def _factor(self, values: np.ndarray) -> np.ndarray:
        grouped = values.reshape(self.groups, -1)
        return grouped[:, :, None, None] if self.first else grouped[:, None, :, None]


def _inputs_of(place: Linear, tensor: gs.Tensor, bench: Workbench) -> _Inputs | None:
    """Return the input side of a linear operator; None where it is transposed."""
    node, shape = place.node, place.weight_shape
    known = bench.types[tensor].shape
    rank = None if known is None else len(known)
    if node.op in ("Conv", "ConvTranspose"):
        groups = int(node.attrs.get("group", 1))
        first = node.op == "ConvTranspose"
        channels = shape[0] if first else shape[1] * groups
        return _Inputs(replace(place, rank=len(shape), axis=1 - len(shape), channels=channels), groups, first)
    if node.attrs.get("transA", 0):
        return None
    first = not node.attrs.get("transB", 0)
    return _Inputs(replace(place, rank=rank, axis=-1, channels=shape[0 if first else 1]), 1, first)


def _affine(node: gs.Node, ahead: _Inputs, bench: Workbench) -> tuple[gs.Tensor, Affine] | None:
    """Return x, and k and c, each of shape (channels,) or None for 1 and 0, of a node that computes k x + c."""
    if node.op == "BatchNormalization":
        found = None if trains(node, bench) else normalization(node, bench)
        fits = found is not None and found[0].shape == (ahead.place.channels,) and np.isfinite(found).all()
        return (node.inputs[0], found) if found is not None and fits else None
    for index in (0, 1) if len(node.inputs) == 2 else ():
        values = bench.small_array(node.inputs[1 - index])
        if values is None or values.dtype.kind not in "fV":
            continue
        operand = ahead.place.per_channel(values)
        affine = None if operand is None else arithmetic(node.op, index, operand)
        return None if affine is None else (node.inputs[index], affine)
    return None


def _takes_shift(node: gs.Node) -> bool:
    if node.op == "Gemm":
        return True
    return node.op == "Conv" and node.attrs.get("auto_pad", "NOTSET") in ("NOTSET", "VALID") and not _pads(node)


def _pads(node: gs.Node) -> bool:
    return node.attrs.get("auto_pad", "NOTSET") == "NOTSET" and any(node.attrs.get("pads", ()))
