"""Columns of what linear layers read and give, and their moments, as nodes of a graph."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from graphopt.ir.exporter import unique_name
from graphopt.ir.graph import Constant, Node, Variable, tensor_names
from graphopt.layers import LinearLayer

_FILLS, _STEPS = 9, 10  # opsets since which there is ConstantOfShape, and Slice has steps


class ColumnBuilder:
    """Adds nodes that show the inputs of layers as columns, and their moments, to a graph.

    Attributes:
        graph: What is added to.
    """

    def __init__(self, graph: gs.Graph) -> None:
        self.graph = graph
        self._taken = tensor_names(graph)

    def columns(self, layer: LinearLayer, kept: int) -> gs.Tensor:
        """Return what a layer reads as columns, [groups, inputs, positions], of which at most so many are kept."""
        return self._patches(layer, kept) if layer.node.op == "Conv" else self._features(layer, kept)

    def targets(self, tensor: gs.Tensor, layer: LinearLayer, rows: np.ndarray, kept: int) -> str:
        """Make some rows of a tensor, thinned as the columns of a layer are, an output of the graph; return its name.

        Args:
            tensor: What stands for the output of the layer, with the axes of the layer's output.
            layer: The layer, maybe one of another model.
            rows: Channels that are wanted, [rows]; the output is float32 [rows, positions].
            kept: As for `columns`.
        """
        shown = self._rows(tensor, layer, rows, kept)
        self.graph.outputs.append(shown)
        return str(shown.name)

    def remainder(self, targets: gs.Tensor, tensor: gs.Tensor, layer: LinearLayer, kept: int) -> gs.Tensor:
        """Return targets [groups, rows, positions] less a tensor with the axes of the layer's output."""
        rows = self._rows(tensor, layer, np.arange(layer.groups * layer.rows), kept)
        shape = self._const(np.array([layer.groups, layer.rows, -1]))
        return self._node("Sub", [targets, self._node("Reshape", [rows, shape])])

    def _rows(self, tensor: gs.Tensor, layer: LinearLayer, rows: np.ndarray, kept: int) -> gs.Tensor:
        """Return some channels of a tensor at the positions of the layer's columns, float32 [rows, positions]."""
        axis = 1 if layer.node.op == "Conv" else -1
        chosen = self._node("Gather", [self._float(tensor), self._const(rows)], axis=axis)
        if layer.node.op == "Conv":
            whole = self._node("Reshape", [chosen, self._const(np.array([0, len(rows), -1]))])
            whole = self._node("Transpose", [self._thin(whole, 2, kept)], perm=[1, 0, 2])
        else:
            whole = self._node("Reshape", [chosen, self._const(np.array([1, -1, len(rows)]))])
            whole = self._node("Transpose", [self._thin(whole, 1, kept)], perm=[2, 0, 1])
        return self._node("Reshape", [whole, self._const(np.array([len(rows), -1]))], dtype=np.float32)

    def received(self, layer: LinearLayer) -> tuple[str, gs.Tensor]:
        """Add an input for the targets of a layer; return its name and the targets as [groups, rows, positions]."""
        rows = layer.groups * layer.rows
        fed = Variable(unique_name("moment/target", self._taken), dtype=np.float32, shape=[rows, None])
        self.graph.inputs.append(fed)
        shape = self._const(np.array([layer.groups, layer.rows, -1]))
        return fed.name, self._node("Reshape", [fed, shape])

    def product(self, left: gs.Tensor, right: gs.Tensor) -> str:
        """Make the sum over positions of ``l r^T`` an output of the graph; return its name."""
        return self._shown(self._node("MatMul", [left, self._node("Transpose", [right], perm=[0, 2, 1])], np.float32))

    def total(self, columns: gs.Tensor) -> str:
        """Make the sum over positions, [groups, rows, 1], an output of the graph; return its name."""
        if self.graph.opset < _FILLS:
            return self._shown(self._node("ReduceSum", [columns], np.float32, axes=[2], keepdims=1))
        whole = self._node("Gather", [self._node("Shape", [columns]), self._const(np.array([2]))])
        column = self._node("Concat", [whole, self._const(np.array([1]))], axis=0)
        one = self._node("ConstantOfShape", [column], value=Constant("", np.ones(1, np.float32)))
        return self._shown(self._node("MatMul", [columns, one], np.float32))  # no ReduceSum: its axes moved in opset 13

    def energy(self, columns: gs.Tensor) -> str:
        """Make the sum over positions of the squares, [groups, rows, 1], an output of the graph; return its name."""
        return self.total(self._node("Mul", [columns, columns]))

    def count(self, columns: gs.Tensor) -> str:
        """Make the number of positions an output of the graph; return its name."""
        return self._shown(self._node("Gather", [self._node("Shape", [columns]), self._const(np.array(2))], np.int64))

    def _features(self, layer: LinearLayer, kept: int) -> gs.Tensor:
        """Return the input of a Gemm or MatMul as columns, [1, inputs, positions]."""
        rows = self._node("Reshape", [self._float(layer.input), self._const(np.array([1, -1, layer.inputs]))])
        return self._node("Transpose", [self._thin(rows, 1, kept)], perm=[0, 2, 1])

    def _patches(self, layer: LinearLayer, kept: int) -> gs.Tensor:
        """Return the patches of a convolution as columns, [groups, inputs, positions].

        A depthwise convolution with one-hot kernels copies each position of the kernel to a channel of its own, with
        the layer's own strides, pads and dilations.
        """
        kernel = tuple(layer.weight.shape[2:])
        area, channels = int(np.prod(kernel)), layer.weight.shape[1] * layer.groups
        image = self._float(layer.input)
        attrs = {key: value for key, value in layer.node.attrs.items() if key not in ("group", "kernel_shape")}
        if area > 1 or _moves(attrs):
            one_hot = np.tile(np.eye(area, dtype=np.float32), (channels, 1)).reshape(channels * area, 1, *kernel)
            image = self._node("Conv", [image, self._const(one_hot)], group=channels, **attrs)
        shape = np.array([0, layer.groups, layer.inputs, -1])  # 0 keeps the batch
        columns = self._node("Reshape", [image, self._const(shape)])
        columns = self._node("Transpose", [self._thin(columns, 3, kept)], perm=[1, 2, 0, 3])
        return self._node("Reshape", [columns, self._const(np.array([layer.groups, layer.inputs, -1]))])

    def _shown(self, tensor: gs.Tensor) -> str:
        self.graph.outputs.append(tensor)
        return str(tensor.name)

    def _thin(self, tensor: gs.Tensor, axis: int, kept: int) -> gs.Tensor:
        """Keep every n-th position so that at most so many are left; the first ones where no operator can do that."""
        if self.graph.opset < _STEPS:
            return self._node("Slice", [tensor], axes=[axis], starts=[0], ends=[kept])
        size = self._node("Gather", [self._node("Shape", [tensor]), self._const(np.array([axis]))])
        step = self._node("Div", [self._node("Sub", [size, self._const(np.array([1]))]), self._const(np.array([kept]))])
        step = self._node("Add", [step, self._const(np.array([1]))])  # at least 1, also of an empty tensor
        start, axes = self._const(np.array([0])), self._const(np.array([axis]))
        return self._node("Slice", [tensor, start, size, axes, step])

    def _float(self, tensor: gs.Tensor) -> gs.Tensor:
        return self._node("Cast", [tensor], to=onnx.TensorProto.FLOAT)

    def _const(self, values: np.ndarray) -> gs.Constant:
        values = values.astype(np.int64) if values.dtype.kind == "i" else values
        return Constant(unique_name("moment/constant", self._taken), values)

    def _node(self, op: str, inputs: Sequence[gs.Tensor], dtype: Any = None, **attrs: Any) -> gs.Tensor:
        output = Variable(unique_name(f"moment/{op}", self._taken), dtype=dtype)
        self.graph.nodes.append(Node(op, output.name, attrs, list(inputs), [output]))
        return output


def _moves(attrs: Mapping[str, Any]) -> bool:
    """Whether a convolution with a kernel of one element reads other positions than it writes."""
    stays = attrs.get("auto_pad", "NOTSET") in ("NOTSET", "VALID", "")
    return not (stays and set(attrs.get("strides", [1])) <= {1} and not any(attrs.get("pads", [0])))
