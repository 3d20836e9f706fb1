"""Linear layers as matrices: what second-order methods need to know of Conv, Gemm and MatMul.

A layer computes, for each group, ``y = W x`` with ``W`` of shape [rows, inputs]. For a convolution the inputs are the
patch under the kernel, channel by channel (im2col), and a depthwise convolution is one group a channel.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs

from graphopt.model import Model

_FLOATS = frozenset(map(np.dtype, (np.float16, np.float32, np.float64)))


@dataclass(frozen=True, eq=False)
class LinearLayer:
    """A node with a constant weight, seen as a matrix a group.

    Attributes:
        node: Conv, Gemm or MatMul of the main graph.
        weight: Its weight; other nodes may use it too.
        groups: Independent groups; 1 unless it is a grouped convolution.
        transposed: Whether the stored weight is [inputs, rows] (MatMul, Gemm without transB).
    """

    node: gs.Node
    weight: gs.Constant
    groups: int
    transposed: bool

    @property
    def name(self) -> str:
        """The node's name, or its first output's where it has none."""
        return str(self.node.name or self.node.outputs[0].name)

    @property
    def input(self) -> gs.Tensor:
        """The tensor whose second moment matters."""
        return self.node.inputs[0]

    @property
    def inputs(self) -> int:
        """Columns of each group's matrix."""
        return int(np.prod(self.weight.shape) // (self.groups * self.rows)) if np.prod(self.weight.shape) else 0

    @property
    def rows(self) -> int:
        """Rows of each group's matrix."""
        return int(self.weight.shape[1] if self.transposed else self.weight.shape[0] // self.groups)

    def matrix(self, values: np.ndarray | None = None) -> np.ndarray:
        """Return weights (the layer's own by default) as [groups, rows, inputs], in float64."""
        values = self.weight.values if values is None else values
        matrix = values.T if self.transposed else values
        return np.ascontiguousarray(matrix, np.float64).reshape(self.groups, self.rows, -1)

    def stored(self, matrix: np.ndarray) -> np.ndarray:
        """Return a matrix [groups, rows, inputs] in shape and type of the weight; the inverse of `matrix`."""
        flat = matrix.reshape(self.groups * self.rows, -1)
        values = flat.T if self.transposed else flat.reshape(self.weight.shape)
        return np.ascontiguousarray(values, self.weight.dtype)


def linear_layers(model: Model) -> tuple[LinearLayer, ...]:
    """Return the linear layers of the main graph in graph order.

    A layer is left out when its weight is no constant of a floating type, when a MatMul's weight is no matrix, and when
    a Gemm transposes its input.
    """
    found = (linear_layer(node) for node in model.graph.nodes)
    return tuple(layer for layer in found if layer is not None)


def linear_layer(node: gs.Node) -> LinearLayer | None:
    """Return the node as a linear layer, or None if it is none."""
    if node.op not in ("Conv", "Gemm", "MatMul") or node.domain not in (None, "", "ai.onnx") or len(node.inputs) < 2:
        return None
    weight = node.inputs[1]
    if not isinstance(weight, gs.Constant) or np.dtype(weight.dtype) not in _FLOATS or 0 in weight.shape:
        return None
    if node.op == "Conv":
        return LinearLayer(node, weight, int(node.attrs.get("group", 1)), transposed=False)
    if len(weight.shape) != 2 or node.attrs.get("transA", 0):
        return None
    return LinearLayer(node, weight, 1, transposed=not node.attrs.get("transB", 0))
