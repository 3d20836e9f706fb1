"""Weights of one value throughout: a number where it is broadcast anyway, else a ConstantOfShape.

``x + full(s, v) -> x + v`` where the other operand alone has the shape of the result; elsewhere
``full(s, v) -> ConstantOfShape(s, v)``, which the runtime computes when it loads the model.
"""

from __future__ import annotations

from itertools import chain

import numpy as np
import onnx_graphsurgeon as gs

from graphopt.ir.clean import redirect
from graphopt.ir.exporter import unique_name
from graphopt.ir.graph import (
    Constant,
    Graph,
    Node,
    Variable,
    constants,
    payload,
    payload_bytes,
    tensor_names,
    walk_graphs,
)
from graphopt.ir.payload import StoredSparseTensor
from graphopt.passes.share.nodes import is_worth_a_node

_FILLS = 9  # opset since which there is ConstantOfShape
_GLANCE, _PIECE = 2**10, 2**20  # elements compared first, and then at a time
_ARITHMETIC = ("Add", "Sub", "Mul", "Div", "Pow")
_LOGIC = ("And", "Or", "Xor", "Equal", "Less", "Greater", "LessOrEqual", "GreaterOrEqual")
_BROADCASTING = frozenset((*_ARITHMETIC, *_LOGIC))
_FUSING = frozenset({"Conv", "ConvTranspose", "MatMul", "Gemm"})  # the runtime merges a bias of full shape into these
_TAKING = {  # operators that take any tensor, and where: none of them needs a constant to be quick
    **dict.fromkeys(_BROADCASTING, (0, 1)),
    "Concat": None,
    "Expand": (0,),
    "Gather": (0,),
    "GatherElements": (0,),
    "GatherND": (0,),
    "GRU": (5,),
    "LSTM": (5, 6),
    "Max": None,
    "Min": None,
    "RNN": (5,),
    "ScatterElements": (0, 2),
    "ScatterND": (0, 2),
    "Slice": (0,),
    "Where": (0, 1, 2),
}


def shrink_uniform(graph: Graph) -> tuple[int, int]:
    """Shrink weights of one value, in place.

    Args:
        graph: Main graph, with the shapes of its tensors inferred.

    Returns:
        Weights that are gone, and their bytes.
    """
    shown = {id(tensor) for scope in walk_graphs(graph) for tensor in scope.outputs}
    outer = {id(node) for node in graph.nodes}
    taken = tensor_names(graph)
    gone, saved = 0, 0
    for constant in constants(graph):
        if id(constant) in shown or not is_worth_a_node(constant) or not _is_uniform(constant):
            continue
        readers = {id(node): node for node in constant.outputs}.values()
        if not all(id(node) in outer and _takes(node, constant) for node in readers):
            continue
        if all(_broadcasts(node, constant) for node in readers):
            number = Constant(unique_name(f"{constant.name}_value", taken), _first(constant).reshape(()))
        elif graph.opset >= _FILLS and _fills(constant):
            number = _filled(graph, constant, taken)
        else:
            continue
        redirect(constant, number)
        gone, saved = gone + 1, saved + payload_bytes(constant)
    return gone, saved


def _is_uniform(constant: gs.Constant) -> bool:
    """Whether all elements have the same bits; what differs early is not read on."""
    held = payload(constant)
    if isinstance(held, StoredSparseTensor) or held.dtype == object or 0 in held.shape:
        return False
    values = constant.values.reshape(-1)
    first = values[0].tobytes()
    rest = (values[start : start + _PIECE] for start in range(_GLANCE, values.size, _PIECE))
    pieces = chain([values[:_GLANCE]], rest)
    bits = (np.ascontiguousarray(piece).view(np.uint8).reshape(-1, len(first)) for piece in pieces)
    return all((piece == np.frombuffer(first, np.uint8)).all() for piece in bits)


def _first(constant: gs.Constant) -> np.ndarray:
    return np.array(constant.values.reshape(-1)[:1])


def _takes(node: gs.Node, constant: gs.Constant) -> bool:
    """Whether a node reads the weight only where any tensor will do."""
    if node.domain not in (None, "", "ai.onnx") or node.op not in _TAKING:
        return False
    places = _TAKING[node.op]
    return all(places is None or index in places for index, tensor in enumerate(node.inputs) if tensor is constant)


def _broadcasts(node: gs.Node, constant: gs.Constant) -> bool:
    """Whether the other operand alone has the shape of the result, and the runtime loses no fusion."""
    if node.op not in _BROADCASTING or len(node.inputs) != 2:
        return False
    other = next((tensor for tensor in node.inputs if tensor is not constant), None)
    if other is None or isinstance(other, gs.Constant) or other.shape is None:
        return False
    if other.inputs and other.inputs[0].op in _FUSING:
        return False
    shape = tuple(payload(constant).shape)
    if len(shape) > len(other.shape):
        return False
    pairs = zip(shape[::-1], tuple(other.shape)[::-1], strict=False)
    return all(size == 1 or (isinstance(known, int) and known == size) for size, known in pairs)


def _fills(constant: gs.Constant) -> bool:
    """Whether ConstantOfShape has the type, in all versions."""
    return np.dtype(payload(constant).dtype).name in {
        *("float16", "float32", "float64", "int8", "int16", "int32", "int64"),
        *("uint8", "uint16", "uint32", "uint64", "bool"),
    }


def _filled(graph: Graph, constant: gs.Constant, taken: set[str]) -> gs.Tensor:
    shape = tuple(payload(constant).shape)
    sizes = Constant(unique_name(f"{constant.name}_shape", taken), np.array(shape, np.int64))
    output = Variable(unique_name(constant.name, taken), dtype=constant.dtype, shape=list(shape))
    value = Constant("", _first(constant))
    graph.nodes.insert(0, Node("ConstantOfShape", output.name, {"value": value}, [sizes], [output]))
    return output
