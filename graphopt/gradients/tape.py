"""Writing the nodes of gradients into a graph."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from graphopt.errors import ModelError
from graphopt.ir.exporter import unique_name
from graphopt.ir.graph import Constant, Node, Variable, tensor_names

_EMPTY_SHAPES = 14  # opset since which Reshape takes a size of 0 as such
_AXES_OF_MEANS = 18  # opset since which ReduceMean takes its axes as an input


class Tape:
    """Adds nodes to a graph.

    Attributes:
        graph: What they are added to; opset 13 or later.
        shapes: Shapes of its tensors on one sample. Other samples may differ in sizes, but not in which of them are 1.
    """

    def __init__(self, graph: gs.Graph, shapes: Mapping[str, tuple[int, ...]]) -> None:
        self.graph = graph
        self.shapes = shapes
        self._taken = tensor_names(graph)

    def op(self, op: str, *inputs: gs.Tensor | np.ndarray | float, **attrs: Any) -> gs.Variable:
        """Add a node; return its output. Arrays and numbers (which become float32) are constants."""
        return self.ops(op, *inputs, count=1, **attrs)[0]

    def ops(self, op: str, *inputs: gs.Tensor | np.ndarray | float, count: int, **attrs: Any) -> list[gs.Variable]:
        """Add a node of several outputs, as `op` does for one; return these."""
        given = [item if isinstance(item, gs.Tensor) else self.const(item) for item in inputs]
        outputs = [Variable(unique_name(f"gradient/{op}", self._taken)) for _ in range(count)]
        self.graph.nodes.append(Node(op, outputs[0].name, attrs, given, outputs))
        return outputs

    def const(self, values: np.ndarray | float) -> gs.Constant:
        """Return a constant."""
        array = np.asarray(values, np.float32) if isinstance(values, float) else np.asarray(values)
        return Constant(unique_name("gradient/constant", self._taken), array)

    def input(self, name: str) -> gs.Variable:
        """Add a float32 input of any shape; return it."""
        found = Variable(unique_name(name, self._taken), dtype=np.float32)
        self.graph.inputs.append(found)
        return found

    def shape(self, tensor: gs.Tensor) -> tuple[int, ...]:
        """Return the shape of a tensor of the graph on the sample.

        Raises:
            ModelError: It cannot be inferred.
        """
        if isinstance(tensor, gs.Constant):
            return tuple(tensor.shape)
        if tensor.name not in self.shapes:
            raise ModelError(f"the shape of '{tensor.name}', which its gradient needs, is not known from the inputs")
        return self.shapes[tensor.name]

    def like(self, gradient: gs.Tensor, tensor: gs.Tensor) -> gs.Variable:
        """Return a gradient in the shape of a tensor of as many elements."""
        attrs = {"allowzero": 1} if self.graph.opset >= _EMPTY_SHAPES else {}
        return self.op("Reshape", gradient, self.op("Shape", tensor), **attrs)

    def total(self, tensor: gs.Tensor, axes: Sequence[int], *, keep: bool = True) -> gs.Variable:
        """Return sums over axes."""
        return self.op("ReduceSum", tensor, np.array(axes, np.int64), keepdims=int(keep))

    def mean(self, tensor: gs.Tensor, axes: Sequence[int]) -> gs.Variable:
        """Return means over axes, which stay."""
        if self.graph.opset < _AXES_OF_MEANS:
            return self.op("ReduceMean", tensor, axes=list(axes), keepdims=1)
        return self.op("ReduceMean", tensor, np.array(axes, np.int64), keepdims=1)

    def where(self, condition: gs.Tensor) -> gs.Variable:
        """Return 1 where a condition holds and 0 elsewhere."""
        return self.op("Cast", condition, to=onnx.TensorProto.FLOAT)

    def unbroadcast(self, gradient: gs.Tensor, tensor: gs.Tensor, output: gs.Tensor) -> gs.Tensor:
        """Return the gradient of an operand that was broadcast to the shape of an output: sums over its copies."""
        if tensor.is_empty():  # an optional input that is left out
            return gradient
        wide, own = self.shape(output), self.shape(tensor)
        if wide == own:
            return gradient
        padded = (1,) * (len(wide) - len(own)) + own
        axes = [axis for axis, (size, mine) in enumerate(zip(wide, padded, strict=True)) if mine == 1 != size]
        summed = self.total(gradient, axes) if axes else gradient
        return summed if len(own) == len(wide) else self.like(summed, tensor)
