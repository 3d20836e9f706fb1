"""Models that draw random numbers, with these held fixed: so that two of them can be compared at all."""

from __future__ import annotations

from typing import Any
from zlib import crc32

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from graphopt.ir.graph import Constant, Node, Variable, tensor_names, walk_graphs, walk_nodes
from graphopt.ir.placement import unique_name
from graphopt.model import Model

FIXED_NUMBERS = "random numbers held fixed"
"""What reports say of such comparisons."""

_LIKE = frozenset({"RandomNormalLike", "RandomUniformLike"})
_DRAWING = frozenset({"RandomNormal", "RandomUniform"}) | _LIKE
_RANGE_SINCE = 11  # operator set
_PERIOD = 2**16
_STEEPNESS, _WIDTH = 0.135, 0.1975  # of Tukey's lambda distribution nearest to the normal one


def with_fixed_numbers(model: Model) -> Model:
    """Return the model, or a copy in which each node that draws numbers gives the same ones every time.

    ``RandomNormalLike(x) -> Reshape(mean + scale * q((hash(Range(size(x))) + 1/2) / 2**16), Shape(x))``, and the same
    for uniform numbers and for shapes that are attributes. The hash depends on the name of the output, so versions of a
    model agree on what a node draws, and two nodes do not. q is nearly the quantile of the distribution, for the normal
    one ``(u**l - (1 - u)**l) / w``. Bernoulli, Multinomial and Dropout in training go on drawing, and so do models
    before opset 11, which has Range.

    Args:
        model: Stays as it is.
    """
    roots = (model.graph, *model.graph.functions)
    if model.opset < _RANGE_SINCE or not any(_draws(node) for root in roots for node in walk_nodes(root)):
        return model
    copy = model.copy()
    for root in (copy.graph, *copy.graph.functions):
        taken = tensor_names(root)
        for scope in walk_graphs(root):
            replaced = (_StandIn(node, taken).nodes() if _draws(node) else [node] for node in scope.nodes)
            scope.nodes[:] = [node for nodes in list(replaced) for node in nodes]
    return copy


def _draws(node: gs.Node) -> bool:
    return node.op in _DRAWING and node.domain in (None, "", "ai.onnx")


class _StandIn:
    """The nodes that stand in for one that draws numbers."""

    def __init__(self, node: gs.Node, taken: set[str]) -> None:
        self._node = node
        self._output = node.outputs[0]
        self._taken = taken
        self._made: list[gs.Node] = []

    def nodes(self) -> list[gs.Node]:
        """Return them in order; the node itself loses its tensors."""
        shape = self._shape()
        values = self._spread(self._unit(shape))
        kind = self._node.attrs.get("dtype") or self._type_of_input()
        last = Node("Cast", "", {"to": kind}, [self._emit("Reshape", values, shape)], [])
        self._node.inputs.clear()
        self._node.outputs.clear()
        last.outputs.append(self._output)
        return [*self._made, last]

    def _shape(self) -> gs.Tensor:
        if self._node.op in _LIKE:
            return self._emit("Shape", self._node.inputs[0])
        return self._constant(np.array(self._node.attrs["shape"], np.int64))

    def _type_of_input(self) -> int:
        """Return the element type that a node without the attribute draws: that of its input, or float."""
        known = self._node.inputs[0].dtype if self._node.op in _LIKE else None
        return int(onnx.TensorProto.FLOAT if known is None else onnx.helper.np_dtype_to_tensor_dtype(np.dtype(known)))

    def _unit(self, shape: gs.Tensor) -> gs.Tensor:
        """Return as many numbers in (0, 1) as the shape has elements; quadratic in the index, or they were a tone."""
        size = self._emit("ReduceProd", shape, keepdims=0)
        index = self._emit("Mod", self._emit("Range", self._whole(0), size, self._whole(1)), self._whole(_PERIOD))
        salt = crc32(self._output.name.encode()) % _PERIOD
        steep = self._emit("Mul", index, self._whole(40503))
        line = self._emit("Add", steep, self._whole(2 * salt + 1))
        curve = self._emit("Add", self._emit("Mul", line, index), self._whole(salt))
        hashed = self._emit("Cast", self._emit("Mod", curve, self._whole(_PERIOD)), to=onnx.TensorProto.FLOAT)
        return self._emit("Div", self._emit("Add", hashed, self._number(0.5)), self._number(_PERIOD))

    def _spread(self, unit: gs.Tensor) -> gs.Tensor:
        """Return numbers of the node's distribution for evenly distributed ones."""
        attributes = self._node.attrs
        if "Uniform" in self._node.op:
            low, high = attributes.get("low", 0.0), attributes.get("high", 1.0)
            return self._emit("Add", self._emit("Mul", unit, self._number(high - low)), self._number(low))
        above = self._emit("Pow", unit, self._number(_STEEPNESS))
        below = self._emit("Pow", self._emit("Sub", self._number(1.0), unit), self._number(_STEEPNESS))
        scale = self._number(attributes.get("scale", 1.0) / _WIDTH)
        scaled = self._emit("Mul", self._emit("Sub", above, below), scale)
        return self._emit("Add", scaled, self._number(attributes.get("mean", 0.0)))

    def _emit(self, op: str, *inputs: gs.Tensor, **attributes: Any) -> gs.Tensor:
        result = Variable(unique_name(f"{self._output.name}_fixed", self._taken))
        self._made.append(Node(op, "", attributes, list(inputs), [result]))
        return result

    def _whole(self, value: int) -> gs.Tensor:
        return self._constant(np.array(value, np.int64))

    def _number(self, value: float) -> gs.Tensor:
        return self._constant(np.array(value, np.float32))

    def _constant(self, values: np.ndarray) -> gs.Tensor:
        return Constant(unique_name(f"{self._output.name}_fixed", self._taken), values)
