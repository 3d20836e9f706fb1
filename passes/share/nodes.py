"""Nodes that make constants: equal ones become one, or an initializer; and when a node is smaller than a weight."""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Hashable

import onnx_graphsurgeon as gs

from graphopt.ir.clean import redirect
from graphopt.ir.equal import equal_among
from graphopt.ir.graph import bodies, constants, payload_bytes, walk_nodes

_WORTH, _NAMES = 512, 8  # bytes that a weight must have for a node to be smaller, and for each letter of its name


def merge_constant_nodes(root: gs.Graph) -> tuple[int, int]:
    """Let the readers of equal Constant nodes read one of them, in a graph and its bodies, in place.

    A body may read what the graphs around it have made, so the outermost one stays. In functions, which have no
    initializers, this is the only way to hold a weight once.

    Args:
        root: Main graph or function.

    Returns:
        Nodes that nobody reads any more, and the bytes of their values.
    """
    held = {id(node.attrs["value"]): node.attrs["value"] for node in walk_nodes(root) if _holds_tensor(node)}
    if not held:
        return 0, 0
    stored = constants(root)
    keys: dict[int, Hashable] = {}
    for number, group in enumerate(equal_among([*stored, *held.values()])):
        keys.update((id(constant), number) for constant in group)
    known: ChainMap[Hashable, gs.Tensor] = ChainMap({keys[id(item)]: item for item in stored if id(item) in keys})
    return _merge(root, known, keys)


def _merge(graph: gs.Graph, known: ChainMap[Hashable, gs.Tensor], keys: dict[int, Hashable]) -> tuple[int, int]:
    shown = {id(tensor) for tensor in graph.outputs}
    merged, saved = 0, 0
    for node in graph.nodes:
        key = keys.get(id(node.attrs.get("value"))) if _holds_tensor(node) else None
        if key is None:
            continue
        output = node.outputs[0]
        kept = known.setdefault(key, output)
        if kept is output or id(output) in shown or not output.outputs:
            continue
        redirect(output, kept)
        merged, saved = merged + 1, saved + payload_bytes(node.attrs["value"])
    for node in graph.nodes:
        for body in bodies(node):
            inner = _merge(body, known.new_child(), keys)
            merged, saved = merged + inner[0], saved + inner[1]
    return merged, saved


def _holds_tensor(node: gs.Node) -> bool:
    return node.op == "Constant" and not node.domain and isinstance(node.attrs.get("value"), gs.Constant)


def is_worth_a_node(constant: gs.Constant) -> bool:
    """Whether a weight takes more bytes than a node in its place."""
    return payload_bytes(constant) >= _WORTH + _NAMES * len(constant.name)
