"""Common subexpressions: what is computed twice is computed once."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import onnx_graphsurgeon as gs

from graphopt.ir.graph import bodies, payload_bytes
from graphopt.passes.fold.constants import RANDOM
from graphopt.passes.fold.workbench import Workbench, is_standard

_COMMUTATIVE = frozenset({"Add", "Mul", "And", "Or", "Xor", "Equal", "Max", "Min", "Sum"})
_COMPARED = 1024  # bytes; larger weights are equal here only if they are one (`share` sees to that)
Table = dict[Hashable, gs.Node]


def merge_equal_nodes(bench: Workbench) -> int:
    """Let nodes with the same operator, attributes and inputs be one; in a body also with nodes around it.

    Random operators, operators outside the standard and nodes with bodies stay. Where both results are graph outputs,
    both nodes stay.

    Returns:
        How many nodes were removed.
    """
    return sum(_merge_in(root, [], bench) for root in (bench.model.graph, *bench.model.graph.functions))


def _merge_in(graph: gs.Graph, outer: list[Table], bench: Workbench) -> int:
    table: Table = {}
    tables = [table, *outer]
    merged = 0
    for node in list(graph.nodes):
        key = _key(node, bench) if bench.is_alive(node) else None
        if key is None:
            continue
        first = next((found[key] for found in tables if key in found), None)
        if first is None:
            table[key] = node
        elif _merge(node, first, bench):
            merged += 1
    inner = [body for node in graph.nodes if bench.is_alive(node) for body in bodies(node)]
    return merged + sum(_merge_in(body, tables, bench) for body in inner)


def _merge(node: gs.Node, first: gs.Node, bench: Workbench) -> bool:
    pairs = list(zip(node.outputs, first.outputs, strict=True))
    if any(mine.is_empty() != theirs.is_empty() for mine, theirs in pairs):
        return False
    same_graph = bench.graph_of(node) is bench.graph_of(first)
    results = [bench.is_result(mine) for mine, _ in pairs]
    if any(results) and (not same_graph or any(bench.is_result(theirs) for _, theirs in pairs)):
        return False
    bench.remove(node)
    for (mine, theirs), is_result in zip(pairs, results, strict=True):
        if is_result:
            bench.take_over(first, theirs, mine)
        else:
            bench.redirect(mine, theirs)
    return True


def _key(node: gs.Node, bench: Workbench) -> Hashable | None:
    """Return what two nodes have in common if they compute the same; None for nodes that are left alone."""
    if not is_standard(node) or node.op in RANDOM:
        return None
    attributes = []
    for name, value in sorted(node.attrs.items()):
        frozen = _frozen(value)
        if frozen is None:
            return None
        attributes.append((name, frozen))
    inputs = [_input_key(tensor) for tensor in node.inputs]
    if node.op in _COMMUTATIVE:
        inputs.sort(key=repr)
    return node.op, len(node.outputs), tuple(attributes), tuple(inputs)


def _frozen(value: Any) -> Hashable | None:
    if isinstance(value, (int, float, str, bytes)):
        return (type(value).__name__, repr(value))
    if isinstance(value, list):
        return tuple((type(item).__name__, repr(item)) for item in value)
    if isinstance(value, gs.Constant):
        return _input_key(value)
    return None


def _input_key(tensor: gs.Tensor) -> Hashable:
    if isinstance(tensor, gs.Constant) and payload_bytes(tensor) <= _COMPARED:
        values = tensor.values
        if values.dtype.kind != "O":
            return values.dtype.name, values.shape, values.tobytes()
    return "" if tensor.is_empty() else id(tensor)
