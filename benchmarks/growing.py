"""Models of any number of nodes, each of a shape that may cost more than its nodes: long, wide, repetitive, nested."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import onnx
from onnx import GraphProto, NodeProto, TensorProto, helper, numpy_helper

_BLOCK = 10  # nodes
_CHOICES = 20  # an If inside an If inside an If, so deep: protobuf reads messages of a hundred levels


def chain(count: int) -> onnx.ModelProto:
    """Return blocks of ten nodes in a row, as exporters write them, that fold to one each."""
    nodes, weights = [], [_ints("zero", [0]), _ints("rest", [-1]), _ints("eight", [8])]
    source = "x"
    for block in range(count // _BLOCK):
        made, held, source = _block(source, block)
        nodes += made
        weights += held
    return _model(nodes, source, weights)


def wide(count: int) -> onnx.ModelProto:
    """Return the same blocks side by side: one tensor with a thousand readers, and a sum of a thousand tensors."""
    nodes, weights = [], [_ints("zero", [0]), _ints("rest", [-1]), _ints("eight", [8])]
    ends = []
    for block in range(count // _BLOCK):
        made, held, end = _block("x", block)
        nodes += made
        weights += held
        ends.append(end)
    nodes.append(helper.make_node("Sum", ends, ["y"]))
    return _model(nodes, "y", weights)


def repeated(count: int) -> onnx.ModelProto:
    """Return one expression of five nodes again and again, which is computed once in the end."""
    nodes, ends = [], []
    ops = ("Sin", "Exp", "Tanh", "Sqrt", "Cos")
    for copy in range(count // len(ops)):
        source = "x"
        for op in ops:
            nodes.append(helper.make_node(op, [source], [f"{op}{copy}"]))
            source = f"{op}{copy}"
        ends.append(source)
    nodes.append(helper.make_node("Sum", ends, ["y"]))
    return _model(nodes, "y", [])


def nested(count: int) -> onnx.ModelProto:
    """Return choices inside of choices whose conditions are known, in towers of twenty."""
    nodes, source = [], "x"
    for tower in range(count // (2 * _CHOICES)):
        nodes.append(_choice(source, f"t{tower}", _CHOICES))
        source = f"t{tower}"
    return _model(nodes, source, [numpy_helper.from_array(np.array(True), "yes")])


def weighted(count: int) -> onnx.ModelProto:
    """Return additions of as many vectors, half of which are equal to another one."""
    nodes, weights, source = [], [], "x"
    for number in range(count // 2):
        values = np.full(8, 1 + number // 2, np.float32)
        weights.append(numpy_helper.from_array(values, f"w{number}"))
        nodes.append(helper.make_node("Max", [source, f"w{number}"], [f"m{number}"]))
        nodes.append(helper.make_node("Tanh", [f"m{number}"], [f"y{number}"]))
        source = f"y{number}"
    return _model(nodes, source, weights)


SHAPES: Mapping[str, Callable[[int], onnx.ModelProto]] = {
    "chain": chain,
    "wide": wide,
    "repeated": repeated,
    "nested Ifs": nested,
    "many weights": weighted,
}


def _block(source: str, block: int) -> tuple[list[NodeProto], list[TensorProto], str]:
    """Return the ten nodes of a block, its weights, and the tensor it makes."""
    scale = np.array(1.5 + block, np.float32)
    weights = [numpy_helper.from_array(scale, f"s{block}"), numpy_helper.from_array(-scale, f"t{block}")]
    names = [f"{kind}{block}" for kind in ("shape", "n", "target", "r", "i", "neg", "sum", "m", "q", "out")]
    shape, size, target, reshaped, same, negated, added, product, again, out = names
    nodes = [
        helper.make_node("Shape", [source], [shape]),
        helper.make_node("Gather", [shape, "zero"], [size]),
        helper.make_node("Concat", [size, "eight"], [target], axis=0),
        helper.make_node("Reshape", [source, target], [reshaped]),
        helper.make_node("Identity", [reshaped], [same]),
        helper.make_node("Neg", [f"s{block}"], [negated]),
        helper.make_node("Add", [negated, f"t{block}"], [added]),
        helper.make_node("Mul", [same, added], [product]),
        helper.make_node("Cast", [product], [again], to=TensorProto.FLOAT),
        helper.make_node("Tanh", [again], [out]),
    ]
    return nodes, weights, out


def _choice(source: str, output: str, depth: int) -> NodeProto:
    """Return an If that takes its first branch, in which there is another one."""
    inner = f"{output}i"
    made = _choice(source, inner, depth - 1) if depth > 1 else helper.make_node("Tanh", [source], [inner])
    taken = _body([made, helper.make_node("Sin", [inner], [f"{output}a"])], f"{output}a")
    other = _body([helper.make_node("Neg", [source], [f"{output}b"])], f"{output}b")
    return helper.make_node("If", ["yes"], [output], then_branch=taken, else_branch=other)


def _body(nodes: list[NodeProto], output: str) -> GraphProto:
    return helper.make_graph(nodes, "body", [], [helper.make_tensor_value_info(output, TensorProto.FLOAT, None)])


def _model(nodes: list[NodeProto], output: str, weights: list[TensorProto]) -> onnx.ModelProto:
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 8])
    y = helper.make_tensor_value_info(output, TensorProto.FLOAT, ["N", 8])
    graph = helper.make_graph(nodes, "growing", [x], [y], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def _ints(name: str, values: list[int]) -> TensorProto:
    return numpy_helper.from_array(np.array(values, np.int64), name)
