"""Integer vectors that are known in part: what shapes are made of.

Each element is a number, a symbol, or None. Two equal symbols are equal numbers at run time. A symbol is the name of a
dimension, or the text of a sum or product of such, in parentheses.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from graphopt.ir.graph import Constant, payload
from graphopt.passes.fold.stated import stated_constant
from graphopt.shapes import TensorTypes

Element = int | str | None
Handler = Callable[["ShapeValues", gs.Node, int], "Ints | None"]
_MAX_ELEMENTS = 64
_MAX_TEXT = 120  # characters of a symbol; longer ones are given up
_SAME_COUNT = frozenset({"Reshape", "Flatten", "Squeeze", "Unsqueeze"})
BROADCASTING = frozenset(
    {"Add", "Sub", "Mul", "Div", "Pow", "Where", "Max", "Min", "Sum", "Mean", "And", "Or", "Xor", "Equal", "Less",
     "LessOrEqual", "Greater", "GreaterOrEqual", "Mod", "PRelu", "BitShift"}
)  # fmt: skip
_INTEGERS = {onnx.TensorProto.INT64, onnx.TensorProto.INT32}


@dataclass(frozen=True)
class Ints:
    """An integer (or truth) scalar or vector.

    Attributes:
        items: Its elements; one for a scalar.
        scalar: Whether it has rank 0.
    """

    items: tuple[Element, ...]
    scalar: bool = False

    @property
    def numbers(self) -> tuple[int, ...] | None:
        """The elements if all of them are numbers."""
        found = tuple(item for item in self.items if isinstance(item, int))
        return found if len(found) == len(self.items) else None


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
        known = _constant(tensor)
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
        if node.domain in (None, "", "ai.onnx") and node.inputs and len(node.outputs) == 1:
            unify_sizes(self, node)
        handler = HANDLERS.get(node.op) if node.domain in (None, "", "ai.onnx") else None
        if handler is None or not node.outputs:
            return
        known = handler(self, node, opset)
        if known is not None and len(known.items) <= _MAX_ELEMENTS:
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


def _constant(constant: gs.Constant) -> Ints | None:
    shape = tuple(constant.shape)
    if (
        len(shape) > 1
        or math.prod(shape) > _MAX_ELEMENTS
        or np.dtype(constant.dtype) not in (np.int64, np.int32, np.bool_)
    ):
        return None
    held = payload(constant)
    values = constant.values if isinstance(constant, Constant) or not isinstance(held, np.ndarray) else held
    return Ints(tuple(int(item) for item in np.asarray(values).reshape(-1)), scalar=not shape)


def is_dimension(item: Element) -> bool:
    """Return whether the element is a size that some tensor has, hence never negative."""
    return isinstance(item, str) and not item.startswith("(")


def _text(name: str, a: Element, b: Element) -> Element:
    if a is None or b is None:
        return None
    text = f"({name} {a} {b})"
    return text if len(text) <= _MAX_TEXT else None


def add(a: Element, b: Element) -> Element:
    """Return a + b."""
    if isinstance(a, int) and isinstance(b, int):
        return a + b
    if 0 in (a, b):
        return b if a == 0 else a
    return _text("+", *_sorted(a, b))


def subtract(a: Element, b: Element) -> Element:
    """Return a - b."""
    if isinstance(a, int) and isinstance(b, int):
        return a - b
    if b == 0:
        return a
    return 0 if a == b and a is not None else _text("-", a, b)


def multiply(a: Element, b: Element) -> Element:
    """Return a * b."""
    if isinstance(a, int) and isinstance(b, int):
        return a * b
    if 0 in (a, b):
        return 0
    if 1 in (a, b):
        return b if a == 1 else a
    return _text("*", *_sorted(a, b))


def divide(a: Element, b: Element) -> Element:
    """Return a / b, rounded towards zero as C does; unknown where a sign or a zero makes it doubtful."""
    if isinstance(a, int) and isinstance(b, int):
        return a // b if a >= 0 and b > 0 else None
    if b == 1:
        return a
    return None if b == 0 else _text("/", a, b)


def equal(a: Element, b: Element) -> Element:
    """Return 1 where a == b, 0 where a != b."""
    if isinstance(a, int) and isinstance(b, int):
        return int(a == b)
    if a is not None and a == b:
        return 1
    number, other = (a, b) if isinstance(a, int) else (b, a)
    return 0 if isinstance(number, int) and number < 0 and is_dimension(other) else None


def _extreme(choose: Callable[[int, int], int]) -> Callable[[Element, Element], Element]:
    def apply(a: Element, b: Element) -> Element:
        if isinstance(a, int) and isinstance(b, int):
            return choose(a, b)
        return a if a == b else None

    return apply


def _sorted(a: Element, b: Element) -> tuple[Element, Element]:
    first, second = sorted((a, b), key=str)
    return first, second


def _elementwise(function: Callable[[Element, Element], Element]) -> Handler:
    def handle(values: ShapeValues, node: gs.Node, opset: int) -> Ints | None:
        known = values.inputs(node)
        if known is None or len(known) != 2:
            return None
        pairs = _broadcast(known)
        return None if pairs is None else Ints(tuple(function(a, b) for a, b in pairs), _all_scalar(known))

    return handle


def _broadcast(known: Sequence[Ints]) -> list[tuple[Element, ...]] | None:
    length = max(len(item.items) for item in known)
    if any(len(item.items) not in (1, length) for item in known):
        return None
    columns = [item.items * length if len(item.items) == 1 else item.items for item in known]
    return list(zip(*columns, strict=True))


def _all_scalar(known: Sequence[Ints]) -> bool:
    return all(item.scalar for item in known)


def _shape(values: ShapeValues, node: gs.Node, opset: int) -> Ints | None:
    dims = values.dims(node.inputs[0])
    return None if dims is None else Ints(dims[slice(node.attrs.get("start", 0), node.attrs.get("end"))])


def _size(values: ShapeValues, node: gs.Node, opset: int) -> Ints | None:
    dims = values.dims(node.inputs[0])
    if dims is None or not all(isinstance(size, int) for size in dims):
        return None
    return Ints((math.prod(size for size in dims if isinstance(size, int)),), scalar=True)


def _gather(values: ShapeValues, node: gs.Node, opset: int) -> Ints | None:
    data, where = values[node.inputs[0]], values[node.inputs[1]]
    if data is None or where is None or data.scalar or where.numbers is None:
        return None
    length = len(data.items)
    if any(not -length <= index < length for index in where.numbers):
        return None
    return Ints(tuple(data.items[index] for index in where.numbers), where.scalar)


def _slice(values: ShapeValues, node: gs.Node, opset: int) -> Ints | None:
    data = values[node.inputs[0]]
    starts, ends = values.numbers(node, 1, "starts"), values.numbers(node, 2, "ends")
    if data is None or data.scalar or starts is None or ends is None or len(starts) != 1:
        return None
    steps = (1,)
    if len(node.inputs) > 4 and not node.inputs[4].is_empty():
        given = values.numbers(node, 4)
        if given is None:
            return None
        steps = (given[0],)
    if steps[0] == 0:
        return None
    return Ints(data.items[slice(*_bounds(starts[0], ends[0], steps[0], len(data.items)), steps[0])])


def _bounds(start: int, end: int, step: int, length: int) -> tuple[int, int | None]:
    """Return a Python slice's bounds for ONNX ones: clamped, and open where Python would count from the end."""
    start = start + length if start < 0 else start
    end = end + length if end < 0 else end
    if step > 0:
        return max(start, 0), max(end, 0)
    start = min(start, length - 1)
    return max(start, 0), None if end < 0 else end


def _concat(values: ShapeValues, node: gs.Node, opset: int) -> Ints | None:
    parts = []
    for tensor in node.inputs:
        known = values[tensor]
        if known is None:
            shape = values._types[tensor].shape
            if shape is None or len(shape) != 1 or not isinstance(shape[0], int) or shape[0] > _MAX_ELEMENTS:
                return None
            known = Ints((None,) * shape[0])
        if known.scalar:
            return None
        parts.append(known)
    return Ints(tuple(item for part in parts for item in part.items))


def _unsqueeze(values: ShapeValues, node: gs.Node, opset: int) -> Ints | None:
    data, axes = values[node.inputs[0]], values.numbers(node, 1, "axes")
    known = data is not None and data.scalar and axes is not None and len(axes) == 1
    return Ints(data.items) if known and data is not None else None


def _squeeze(values: ShapeValues, node: gs.Node, opset: int) -> Ints | None:
    data = values[node.inputs[0]]
    if data is None or data.scalar or len(data.items) != 1:
        return None
    return Ints(data.items, scalar=True)


def _reshape(values: ShapeValues, node: gs.Node, opset: int) -> Ints | None:
    data, target = values[node.inputs[0]], values.numbers(node, 1)
    if data is None or target is None or len(target) > 1:
        return None
    if not target:
        return Ints(data.items, scalar=True) if len(data.items) == 1 else None
    return Ints(data.items) if target[0] in (-1, len(data.items)) else None


def _cast(values: ShapeValues, node: gs.Node, opset: int) -> Ints | None:
    known = values[node.inputs[0]]
    if known is None or node.attrs.get("to") not in _INTEGERS:
        return None
    limit = 2**31 if node.attrs["to"] == onnx.TensorProto.INT32 else 2**63
    fits = all(not isinstance(item, int) or -limit <= item < limit for item in known.items)
    return known if fits else None


def _where(values: ShapeValues, node: gs.Node, opset: int) -> Ints | None:
    known = values.inputs(node)
    rows = _broadcast(known) if known is not None and len(known) == 3 else None
    if rows is None or known is None:
        return None
    picked = tuple((a if condition else b) if isinstance(condition, int) else None for condition, a, b in rows)
    return Ints(picked, _all_scalar(known))


def _constant_of_shape(values: ShapeValues, node: gs.Node, opset: int) -> Ints | None:
    lengths = values.numbers(node, 0)
    value = node.attrs.get("value")
    if (
        lengths is None
        or len(lengths) != 1
        or not 0 <= lengths[0] <= _MAX_ELEMENTS
        or not isinstance(value, gs.Constant)
    ):
        return None
    filled = _constant(value)
    return None if filled is None else Ints(filled.items * lengths[0])


def _expand(values: ShapeValues, node: gs.Node, opset: int) -> Ints | None:
    data, target = values[node.inputs[0]], values.numbers(node, 1)
    if data is None or target is None or len(target) != 1 or not 0 < target[0] <= _MAX_ELEMENTS:
        return None
    if len(data.items) == 1:
        return Ints(data.items * target[0])
    return Ints(data.items) if target[0] in (1, len(data.items)) else None


def _reduce(function: Callable[[Sequence[int]], int]) -> Handler:
    def handle(values: ShapeValues, node: gs.Node, opset: int) -> Ints | None:
        known = values[node.inputs[0]]
        if known is None or known.numbers is None or not known.items or len(node.inputs) > 1:
            return None
        return Ints((function(known.numbers),), scalar=known.scalar or not node.attrs.get("keepdims", 1))

    return handle


def _range(values: ShapeValues, node: gs.Node, opset: int) -> Ints | None:
    known = values.inputs(node)
    bounds = [item.numbers for item in known or ()]
    if len(bounds) != 3 or any(bound is None or len(bound) != 1 for bound in bounds):
        return None
    start, end, step = (bound[0] for bound in bounds if bound is not None)
    if step == 0 or abs(end - start) > _MAX_ELEMENTS * abs(step):
        return None
    return Ints(tuple(range(start, end, step)))


def _identity(values: ShapeValues, node: gs.Node, opset: int) -> Ints | None:
    return values[node.inputs[0]]


def _constant_node(values: ShapeValues, node: gs.Node, opset: int) -> Ints | None:
    stated = stated_constant(node.attrs)
    return None if stated is None else _constant(stated)


def _not(values: ShapeValues, node: gs.Node, opset: int) -> Ints | None:
    known = values[node.inputs[0]]
    if known is None:
        return None
    return Ints(tuple(int(not item) if isinstance(item, int) else None for item in known.items), known.scalar)


def both(a: Element, b: Element) -> Element:
    """Return 1 where both are true."""
    if 0 in (a, b):
        return 0
    return 1 if isinstance(a, int) and isinstance(b, int) else None


def either(a: Element, b: Element) -> Element:
    """Return 1 where one is true."""
    if any(isinstance(item, int) and item for item in (a, b)):
        return 1
    return 0 if a == b == 0 else None


HANDLERS: dict[str, Handler] = {
    "Add": _elementwise(add),
    "And": _elementwise(both),
    "Cast": _cast,
    "Concat": _concat,
    "Constant": _constant_node,
    "ConstantOfShape": _constant_of_shape,
    "Div": _elementwise(divide),
    "Equal": _elementwise(equal),
    "Expand": _expand,
    "Gather": _gather,
    "Identity": _identity,
    "Max": _elementwise(_extreme(max)),
    "Min": _elementwise(_extreme(min)),
    "Mul": _elementwise(multiply),
    "Not": _not,
    "Or": _elementwise(either),
    "Range": _range,
    "ReduceMax": _reduce(max),
    "ReduceMin": _reduce(min),
    "ReduceProd": _reduce(math.prod),
    "Reshape": _reshape,
    "Shape": _shape,
    "Size": _size,
    "Slice": _slice,
    "Squeeze": _squeeze,
    "Sub": _elementwise(subtract),
    "Unsqueeze": _unsqueeze,
    "Where": _where,
}
