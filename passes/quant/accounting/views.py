"""Graphs as ONNX Runtime leaves them: who makes and who reads what, under names without what it appended."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator

import onnx

CONVERSIONS = ("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear")
_INTEGER_OPS = ("QLinear", "QGemm", "MatMulInteger", "DynamicQuantize", "ConvInteger", "MatMulNBits", "QAttention")
_APPENDED = re.compile(r"(_token_\d+|_nchwc|_nhwc|_quant|/duplicated)$")


class View:
    """One graph, bodies included.

    Attributes:
        makers: Node by name of what it makes.
        readers: Nodes by name of what they read, once for each time.
        named: Nodes that are no conversions by plain name.
        conversions: Conversions by operator and plain name; ONNX Runtime makes copies of some.
        stored: Initializers by name.
        outputs: Names of the graph's outputs.
    """

    def __init__(self, graph: onnx.GraphProto) -> None:
        self.makers: dict[str, onnx.NodeProto] = {}
        self.readers: dict[str, list[onnx.NodeProto]] = defaultdict(list)
        self.named: dict[str, onnx.NodeProto] = {}
        self.conversions: dict[tuple[str, str], list[onnx.NodeProto]] = defaultdict(list)
        self.stored = {item.name: item for item in graph.initializer}
        self.outputs = frozenset(item.name for item in graph.output)
        for node in nodes(graph):
            self.makers.update(dict.fromkeys(node.output, node))
            for name in node.input:
                self.readers[name].append(node)
            if node.op_type in CONVERSIONS:
                self.conversions[node.op_type, plain_name(node_name(node))].append(node)
            else:
                self.named.setdefault(plain_name(node_name(node)), node)

    def beside(self, conversion: onnx.NodeProto) -> list[onnx.NodeProto]:
        """Return the nodes on the float side of a conversion; none where that is an input or output of the graph."""
        if conversion.op_type == "DequantizeLinear":
            return self.readers[conversion.output[0]]
        return self._made(conversion.input[0])

    def behind(self, conversion: onnx.NodeProto) -> list[onnx.NodeProto]:
        """Return the nodes on the integer side of a conversion; none where that is an input or output of the graph."""
        if conversion.op_type == "DequantizeLinear":
            return self._made(conversion.input[0])
        return self.readers[conversion.output[0]]

    def _made(self, name: str) -> list[onnx.NodeProto]:
        maker = self.makers.get(name)
        return [] if maker is None else [maker]


def nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    """Yield the nodes of a graph and of the bodies inside it."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            for body in (attribute.g, *attribute.graphs):
                yield from nodes(body)


def is_integer(node: onnx.NodeProto) -> bool:
    """Whether a node is an integer kernel of ONNX Runtime's."""
    return node.op_type.startswith(_INTEGER_OPS) and node.op_type not in CONVERSIONS


def node_name(node: onnx.NodeProto) -> str:
    """Return the name of a node, or of its first output where it has none."""
    return node.name or next(iter(filter(None, node.output)), "")


def plain_name(name: str) -> str:
    """Return the name of a node without what ONNX Runtime appended."""
    while (shorter := _APPENDED.sub("", name)) != name:
        name = shorter
    return name


def called(node: onnx.NodeProto) -> str:
    """Return operator and name, for people."""
    return f"{node.op_type} '{plain_name(node_name(node))}'"
