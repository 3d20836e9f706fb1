"""What is known of the integer vectors of a graph, and which unknown sizes are the same."""

from __future__ import annotations

import math

import onnx_graphsurgeon as gs

from graphopt.passes.fold.derive import HANDLERS
from graphopt.passes.fold.ints import MAX_ELEMENTS, Ints, constant_ints
from graphopt.shapes import STANDARD_DOMAINS, TensorTypes

_SAME_COUNT = frozenset({"Reshape", "Flatten", "Squeeze", "Unsqueeze"})
BROADCASTING = frozenset(
    {"Add", "Sub", "Mul", "Div", "Pow", "Where", "Max", "Min", "Sum", "Mean", "And", "Or", "Xor", "Equal", "Less",
     "LessOrEqual", "Greater", "GreaterOrEqual", "Mod", "PRelu", "BitShift"}
)  # fmt: skip


class ShapeValues:
    """What is known of integer vectors, by tensor; fed node by node in topological order."""

    def __init__(self, types: TensorTypes) -> None:
        self._types = types
        self._found: dict[int, tuple[gs.Tensor, Ints | None]] = {}
        self._dims: dict[int, tuple[gs.Tensor, tuple[int | str, ...]]] = {}
        self._same: dict[str, int | str] = {}

    def __getitem__(self, tensor: gs.Tensor) -> Ints | None:
        """Return what is known of the tensor."""
        if id(tensor) in self._found:
            return self._found[id(tensor)][1]
        if not isinstance(tensor, gs.Constant):
            return None
        known = constant_ints(tensor)
        self._found[id(tensor)] = (tensor, known)
        return known

    def dims(self, tensor: gs.Tensor) -> tuple[int | str, ...] | None:
        """Return the shape of a tensor with a symbol for each unknown size, or None for an unknown rank."""
        shape = self._types[tensor].shape
        if shape is None:
            return None
        if id(tensor) not in self._dims:
            tag = f"{tensor.name}#{len(self._dims)}"
            named = tuple(f"{tag}.{axis}" if size is None else size for axis, size in enumerate(shape))
            self._dims[id(tensor)] = (tensor, named)
        return tuple(self._canonical(size) for size in self._dims[id(tensor)][1])

    def length(self, tensor: gs.Tensor) -> int | None:
        """Return how many elements a vector has."""
        shape = self._types[tensor].shape
        return shape[0] if shape is not None and len(shape) == 1 and isinstance(shape[0], int) else None

    def unify(self, symbol: int | str, other: int | str) -> None:
        """Note that a symbol stands for the same number as another size."""
        symbol, other = self._canonical(symbol), self._canonical(other)
        if isinstance(symbol, str) and symbol != other:
            self._same[symbol] = other

    def _canonical(self, size: int | str) -> int | str:
        while isinstance(size, str) and size in self._same:
            size = self._same[size]
        return size

    def learn(self, node: gs.Node, opset: int) -> None:
        """Derive the node's output from its inputs, and which unknown sizes of it are those of its inputs."""
        if (node.domain or "") not in STANDARD_DOMAINS:
            return
        if node.inputs and len(node.outputs) == 1:
            unify_sizes(self, node)
        handler = HANDLERS.get(node.op)
        if handler is None or not node.outputs:
            return
        known = handler(self, node, opset)
        if known is not None and len(known.items) <= MAX_ELEMENTS:
            self._found[id(node.outputs[0])] = (node.outputs[0], known)

    def inputs(self, node: gs.Node) -> list[Ints] | None:
        """Return what is known of all inputs; None if nothing is known of one."""
        known = [self[tensor] for tensor in node.inputs]
        found = [item for item in known if item is not None]
        return found if len(found) == len(known) else None

    def numbers(self, node: gs.Node, index: int, attribute: str | None = None) -> tuple[int, ...] | None:
        """Return the numbers of an input, or of the attribute that older operator sets have in its place."""
        if attribute is not None and isinstance(node.attrs.get(attribute), list):
            return tuple(node.attrs[attribute])
        if index >= len(node.inputs) or node.inputs[index].is_empty():
            return None
        known = self[node.inputs[index]]
        return None if known is None else known.numbers


def unify_sizes(values: ShapeValues, node: gs.Node) -> None:
    """Note which unknown sizes of an output are those of an input, beyond what ONNX shape inference finds.

    A reshape with one open size on either side and equal products of the others keeps that size. An elementwise
    operation whose operands agree in a size, or have 1 there, has that size.
    """
    result = values.dims(node.outputs[0])
    if result is None or all(isinstance(size, int) for size in result):
        return
    if node.op in _SAME_COUNT:
        source = values.dims(node.inputs[0]) or ()
        open_in, open_out = ([size for size in sizes if isinstance(size, str)] for sizes in (source, result))
        product_in, product_out = (math.prod(s for s in sizes if isinstance(s, int)) for sizes in (source, result))
        if len(open_in) == len(open_out) == 1 and product_in == product_out > 0:
            values.unify(open_out[0], open_in[0])
    elif node.op in BROADCASTING:
        operands = [values.dims(tensor) for tensor in node.inputs]
        for place in range(1, len(result) + 1):
            sizes = {dims[-place] for dims in operands if dims is not None and len(dims) >= place} - {1}
            if len(sizes) == 1 and None not in operands:
                values.unify(result[-place], sizes.pop())
