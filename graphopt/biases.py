"""Biases: they take up the mean of what rounding does to a layer's output."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs

from graphopt.layers import LinearLayer


@dataclass(frozen=True, eq=False)
class Bias:
    """The bias of one layer.

    Attributes:
        constant: Values, one a row of the layer in their last (or only long) axis.
    """

    constant: gs.Constant

    def shift(self, by: np.ndarray) -> None:
        """Add to the bias, [rows of all groups]."""
        values = self.constant.values
        self.constant.values = (values + by.reshape(values.shape)).astype(values.dtype)


def find_bias(layer: LinearLayer, shown: set[int]) -> Bias | None:
    """Return the bias of a layer that no other node uses, or None.

    Args:
        layer: Conv, Gemm, or MatMul with an Add behind it. Its weight must be used by no other node: the mean of the
            inputs is known of this one only.
        shown: Ids of graph outputs, which must not change.
    """
    if len(layer.weight.outputs) != 1:
        return None
    constant = _added(layer, shown) if layer.node.op == "MatMul" else _own(layer.node)
    if constant is None or len(constant.outputs) != 1 or id(constant) in shown:
        return None
    size = layer.groups * layer.rows
    fits = constant.dtype == np.float32 and int(np.prod(constant.shape)) == size == constant.shape[-1]
    return Bias(constant) if fits else None


def fixed_bias(layer: LinearLayer) -> np.ndarray | None:
    """Return what a layer adds to each of its rows, [groups, rows], or None where no figure says it.

    It is zero for a MatMul and without a bias. It is unknown where the bias is no constant, as one that a caller may
    override, or differs from sample to sample, and where the Gemm has an alpha: it is not its matrix alone then.

    Args:
        layer: Conv, Gemm or MatMul.
    """
    node, size = layer.node, layer.groups * layer.rows
    if node.attrs.get("alpha", 1.0) != 1.0:
        return None
    if node.op == "MatMul" or len(node.inputs) < 3 or node.inputs[2].is_empty():
        return np.zeros((layer.groups, layer.rows))
    bias = node.inputs[2]
    if not isinstance(bias, gs.Constant) or int(np.prod(bias.shape)) not in {1, (bias.shape or (1,))[-1]}:
        return None
    values = float(node.attrs.get("beta", 1.0)) * np.asarray(bias.values, np.float64).ravel()
    return np.broadcast_to(values, size).reshape(layer.groups, layer.rows)


def _own(node: gs.Node) -> gs.Constant | None:
    plain = node.attrs.get("alpha", 1.0) == node.attrs.get("beta", 1.0) == 1.0
    found = node.inputs[2] if len(node.inputs) > 2 and plain else None
    return found if isinstance(found, gs.Constant) and found.shape else None


def _added(layer: LinearLayer, shown: set[int]) -> gs.Constant | None:
    output = layer.node.outputs[0]
    if id(output) in shown or len(output.outputs) != 1 or output.outputs[0].op != "Add":
        return None
    found = [tensor for tensor in output.outputs[0].inputs if isinstance(tensor, gs.Constant)]
    return found[0] if len(found) == 1 and found[0].shape else None
