"""Scaling and shifting the output channels of a linear operator by changing its weight and bias."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs

from graphopt.ir.graph import Constant
from graphopt.passes.fold.sizes import array_cost, constant_cost, node_cost
from graphopt.passes.fold.workbench import Workbench

_BIAS = "bias000"  # as long as the name of a new bias
LINEAR = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})


@dataclass(frozen=True)
class Linear:
    """A node ``y = op(x, W) + b``.

    Attributes:
        node: Conv, ConvTranspose, Gemm, or MatMul with a matrix as weight.
        rank: Rank of y; None where it is not known.
        axis: Axis of y that the channels lie along, counted from the end.
        channels: Number of output channels.
        weight_shape: Shape of W: (out, in/group, ...) of a Conv, (in, out/group, ...) of a ConvTranspose, (in, out) or
            transposed of a Gemm, (in, out) of a MatMul.
    """

    node: gs.Node
    rank: int | None
    axis: int
    channels: int
    weight_shape: tuple[int, ...]

    def per_channel(self, values: np.ndarray) -> np.ndarray | None:
        """Return an operand of an elementwise operation on y as one float64 number a channel.

        Args:
            values: Anything that broadcasts.

        Returns:
            Shape (channels,); None if it varies along another axis or would enlarge y.
        """
        if values.size == 1 and (values.ndim == 0 or (self.rank is not None and values.ndim <= self.rank)):
            return np.full(self.channels, np.float64(values.reshape(())))
        position = values.ndim + self.axis
        if position < 0 or (self.rank is None and values.ndim > 1) or (self.rank or 1) < values.ndim:
            return None
        if values.size != values.shape[position] or values.shape[position] != self.channels:
            return None
        return values.reshape(-1).astype(np.float64)

    def scaled_weight(self, weight: np.ndarray, scale: np.ndarray) -> np.ndarray:
        """Return W with each output channel multiplied.

        Args:
            weight: W.
            scale: Shape (channels,).
        """
        if self.node.op == "ConvTranspose":
            group = int(self.node.attrs.get("group", 1))
            ins, outs = weight.shape[0], weight.shape[1]
            grouped = weight.reshape(group, ins // group, outs, -1)
            return _multiply(grouped, scale.reshape(group, 1, outs, 1)).reshape(weight.shape)
        first = self.node.op == "Conv" or (self.node.op == "Gemm" and bool(self.node.attrs.get("transB", 0)))
        factor = scale.reshape(-1, *[1] * (weight.ndim - 1)) if first else scale
        return _multiply(weight, factor)


def linear(node: gs.Node | None, bench: Workbench) -> Linear | None:
    """Return the node as a linear operator, or None."""
    if node is None or node.op not in LINEAR or (node.domain or "") not in ("", "ai.onnx") or len(node.inputs) < 2:
        return None
    shape = bench.types[node.inputs[1]].shape
    if shape is None or not all(isinstance(size, int) for size in shape):
        return None
    sizes = tuple(size for size in shape if isinstance(size, int))
    if node.op == "Conv":
        return Linear(node, len(sizes), 1 - len(sizes), sizes[0], sizes)
    if node.op == "ConvTranspose":
        return Linear(node, len(sizes), 1 - len(sizes), sizes[1] * int(node.attrs.get("group", 1)), sizes)
    if len(sizes) != 2:
        return None
    if node.op == "Gemm":
        return Linear(node, 2, -1, sizes[0 if node.attrs.get("transB", 0) else 1], sizes)
    output = bench.types[node.outputs[0]].shape
    return Linear(node, None if output is None else len(output), -1, sizes[1], sizes)


def absorb(place: Linear, scale: np.ndarray | None, shift: np.ndarray | None, bench: Workbench) -> str:
    """Change weight and bias so that the node computes ``y * scale + shift``.

    Args:
        place: The node; nobody but the caller's may read its output.
        scale: Shape (channels,), float64; None for one.
        shift: Shape (channels,), float64; None for zero.
        bench: The graph.

    Returns:
        Why it cannot be done; empty if it was.
    """
    node = place.node
    if shift is not None and node.op == "MatMul":
        return "a MatMul has no bias"
    dtype = bench.types[node.inputs[1]].dtype
    if dtype is None or not _is_float(dtype):
        return "its weight is no float tensor"
    bias, reason = _bias(place, bench)
    if reason:
        return reason
    weight = None
    if scale is not None:
        constant = node.inputs[1]
        if not isinstance(constant, Constant):
            return "its weight is computed at run time"
        if bench.uses(constant) != 1:
            return "its weight is used elsewhere too"
        weight = place.scaled_weight(constant.values, scale)
        bias = bias * scale
    with np.errstate(over="ignore"):
        new_bias = (bias if shift is None else bias + shift).astype(dtype)
    if not _finite(new_bias) or (weight is not None and not _finite(weight)):
        return "the merged weights would not be finite"
    if weight is not None:
        constant.values = weight
    if shift is not None or has_bias(node):
        _set_bias(place, new_bias, bench)
    return ""


def bias_growth(place: Linear, node: gs.Node, bench: Workbench) -> int:
    """Return about how many bytes more the file takes if a bias comes to an operator and a node beside it goes.

    Args:
        place: The operator.
        node: Goes, with the constants that nobody else reads.
        bench: The graph.
    """
    if has_bias(place.node):
        return 0
    freed = [tensor for tensor in node.inputs if isinstance(tensor, gs.Constant) and bench.uses(tensor) == 1]
    bias = np.empty(place.channels, bench.types[place.node.inputs[1]].dtype or np.float32)
    return array_cost(_BIAS, bias) + len(_BIAS) - node_cost(node) - sum(map(constant_cost, freed))


def has_bias(node: gs.Node) -> bool:
    """Return whether a linear operator has a bias now."""
    return node.op != "MatMul" and len(node.inputs) > 2 and not node.inputs[2].is_empty()


def _bias(place: Linear, bench: Workbench) -> tuple[np.ndarray, str]:
    """Return the present bias, shape (channels,), with Gemm's beta multiplied in; or why it cannot be told."""
    none = np.zeros(place.channels)
    if not has_bias(place.node):
        return none, ""
    values = bench.array(place.node.inputs[2])
    if values is None:
        return none, "its bias is computed at run time"
    if place.node.op != "Gemm":
        return values.reshape(-1).astype(np.float64), ""
    bias = place.per_channel(values)
    if bias is None:
        return none, "its bias differs between rows"
    return bias * float(place.node.attrs.get("beta", 1.0)), ""


def _set_bias(place: Linear, bias: np.ndarray, bench: Workbench) -> None:
    node = place.node
    old = node.inputs[2] if has_bias(node) else None
    if isinstance(old, Constant) and bench.uses(old) == 1 and tuple(old.shape) == bias.shape:
        old.values = bias
    else:
        bench.set_input(node, 2, bench.new_constant("bias", bias, node))
    if node.op == "Gemm" and node.attrs.get("beta", 1.0) != 1.0:
        node.attrs["beta"] = 1.0


def _multiply(weight: np.ndarray, factor: np.ndarray) -> np.ndarray:
    """Multiply in float64 without holding the whole weight in it."""
    if weight.dtype.kind != "f":
        with np.errstate(over="ignore", invalid="ignore"):
            product: np.ndarray = (weight.astype(np.float64) * factor).astype(weight.dtype)
        return product
    out = np.empty(weight.shape, weight.dtype)
    with np.errstate(over="ignore", invalid="ignore", under="ignore"):
        np.multiply(weight, factor, out=out, dtype=np.float64, casting="same_kind")
    return out


def _is_float(dtype: np.dtype) -> bool:
    return dtype.kind == "f" or dtype.name == "bfloat16"


def _finite(values: np.ndarray) -> bool:
    return bool(np.isfinite(values).all())
