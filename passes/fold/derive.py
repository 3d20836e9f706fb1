"""What operators on integer vectors make of those that are known in part."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import onnx
import onnx_graphsurgeon as gs

from graphopt.passes.fold.ints import (
    MAX_ELEMENTS,
    Combine,
    Element,
    Ints,
    add,
    both,
    constant_ints,
    divide,
    either,
    equal,
    extreme,
    multiply,
    subtract,
)
from graphopt.passes.fold.stated import stated_constant

if TYPE_CHECKING:
    from graphopt.passes.fold.values import ShapeValues

Handler = Callable[["ShapeValues", gs.Node, int], "Ints | None"]
_INTEGERS = {onnx.TensorProto.INT64, onnx.TensorProto.INT32}


def _elementwise(function: Combine) -> Handler:
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
            length = values.length(tensor)
            if length is None or length > MAX_ELEMENTS:
                return None
            known = Ints((None,) * length)
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
        or not 0 <= lengths[0] <= MAX_ELEMENTS
        or not isinstance(value, gs.Constant)
    ):
        return None
    filled = constant_ints(value)
    return None if filled is None else Ints(filled.items * lengths[0])


def _expand(values: ShapeValues, node: gs.Node, opset: int) -> Ints | None:
    data, target = values[node.inputs[0]], values.numbers(node, 1)
    if data is None or target is None or len(target) != 1 or not 0 < target[0] <= MAX_ELEMENTS:
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
    if step == 0 or abs(end - start) > MAX_ELEMENTS * abs(step):
        return None
    return Ints(tuple(range(start, end, step)))


def _identity(values: ShapeValues, node: gs.Node, opset: int) -> Ints | None:
    return values[node.inputs[0]]


def _constant_node(values: ShapeValues, node: gs.Node, opset: int) -> Ints | None:
    stated = stated_constant(node.attrs)
    return None if stated is None else constant_ints(stated)


def _not(values: ShapeValues, node: gs.Node, opset: int) -> Ints | None:
    known = values[node.inputs[0]]
    if known is None:
        return None
    return Ints(tuple(int(not item) if isinstance(item, int) else None for item in known.items), known.scalar)


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
    "Max": _elementwise(extreme(max)),
    "Min": _elementwise(extreme(min)),
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
