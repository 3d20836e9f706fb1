"""Weights that equal another one but for their shape, or with their two axes exchanged.

A Gemm reads a transposed weight by turning its transB (or transA) round, a Reshape does not care for the shape of what
it reads: these need no node. Everybody else reads the other weight through a Transpose or Reshape, which the runtime
computes when it loads the model, so that a run does not take longer.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Iterator
from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs

from graphopt.base import Skip
from graphopt.ir.clean import redirect
from graphopt.ir.equal import corner, digest, grouped, turned_digest
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


@dataclass(frozen=True, eq=False)
class View:
    """A weight that can be had from another one.

    Attributes:
        kept: The other one.
        copy: The weight.
        turned: Whether it is the transpose, else it has another shape.
    """

    kept: gs.Constant
    copy: gs.Constant
    turned: bool


def share_views(graph: Graph, *, with_nodes: bool) -> tuple[int, int, list[Skip]]:
    """Store weights once that are transposed or reshaped ones of others, in place.

    Args:
        graph: Main graph.
        with_nodes: Whether Transpose and Reshape nodes may be added.

    Returns:
        Weights that are gone, their bytes, and those that only nodes could save.
    """
    gone, saved, skips = 0, 0, []
    taken = tensor_names(graph)
    for view in find_views(graph):
        if not all(_absorbs(node, index, view) for node, index in _uses(view.copy)):
            what = "transposed" if view.turned else "in another shape"
            if not with_nodes:
                skips.append(Skip(view.copy.name, f"it is '{view.kept.name}' {what}; views=true reads it from there"))
                continue
            _read_through_node(graph, view, taken)
        else:
            for node, index in _uses(view.copy):
                _absorb(node, index, view)
        gone, saved = gone + 1, saved + payload_bytes(view.copy)
    return gone, saved, skips


def find_views(graph: Graph) -> Iterator[View]:
    """Yield each weight that can be had from another one; what is kept is no such weight itself."""
    outputs = {id(tensor) for scope in walk_graphs(graph) for tensor in scope.outputs}
    outer = {id(tensor) for node in graph.nodes for tensor in node.inputs}
    large = [item for item in constants(graph) if id(item) in outer and _is_large(item)]
    place = {id(item): position for position, item in enumerate(large)}
    gone: set[int] = set()
    needed: set[int] = set(outputs)
    for first, second, turned in (*_reshaped(large), *_turned(large)):
        free = [all(_absorbs(*use, View(first, item, turned)) for use in _uses(item)) for item in (first, second)]
        earlier = place[id(first)] < place[id(second)]
        order = (second, first) if (free[1] if free[0] != free[1] else earlier) else (first, second)
        for copy, kept in (order, order[::-1]):
            if id(copy) not in needed | gone and id(kept) not in gone:
                gone.add(id(copy))
                needed.add(id(kept))
                yield View(kept, copy, turned)
                break


def _reshaped(weights: list[gs.Constant]) -> Iterator[tuple[gs.Constant, gs.Constant, bool]]:
    """Yield pairs of the same bytes in another shape."""
    for same in grouped(weights, lambda item: (np.dtype(payload(item).dtype).name, payload_bytes(item))):
        if len({tuple(payload(item).shape) for item in same}) > 1:
            for first, *others in grouped(same, digest):
                yield from ((first, item, False) for item in others if item.shape != first.shape)


def _turned(weights: list[gs.Constant]) -> Iterator[tuple[gs.Constant, gs.Constant, bool]]:
    """Yield pairs of a matrix and its transpose."""
    by_shape: dict[tuple[str, int, int], list[gs.Constant]] = defaultdict(list)
    for item in weights:
        shape = tuple(payload(item).shape)
        if len(shape) == 2 and min(shape) > 1:
            by_shape[np.dtype(payload(item).dtype).name, shape[0], shape[1]].append(item)
    for (kind, rows, columns), group in by_shape.items():
        others = by_shape.get((kind, columns, rows), []) if rows <= columns else []
        corners: dict[Hashable, list[gs.Constant]] = defaultdict(list)
        for item in others:
            corners[corner(item, turned=True)].append(item)
        for first in group:
            candidates = [item for item in corners.get(corner(first, turned=False), []) if item is not first]
            wanted = digest(first) if candidates else None
            yield from ((first, item, True) for item in candidates if turned_digest(item) == wanted)


def _is_large(constant: gs.Constant) -> bool:
    held = payload(constant)
    dense = not isinstance(held, StoredSparseTensor) and held.dtype != object
    return dense and is_worth_a_node(constant)


def _uses(constant: gs.Constant) -> list[tuple[gs.Node, int]]:
    nodes = {id(node): node for node in constant.outputs}.values()
    return [(node, index) for node in nodes for index, tensor in enumerate(node.inputs) if tensor is constant]


def _absorbs(node: gs.Node, index: int, view: View) -> bool:
    """Whether a node reads the other weight as easily."""
    if node.domain not in (None, "", "ai.onnx"):
        return False
    if view.turned:
        return node.op == "Gemm" and index < 2
    shape = node.inputs[1] if node.op == "Reshape" and index == 0 else None
    return isinstance(shape, gs.Constant) and 0 not in shape.values  # a 0 stands for a size of what is read


def _absorb(node: gs.Node, index: int, view: View) -> None:
    if view.turned:
        flag = ("transA", "transB")[index]
        node.attrs[flag] = int(not node.attrs.get(flag, 0))
    node.inputs[index] = view.kept


def _read_through_node(graph: Graph, view: View, taken: set[str]) -> None:
    """Put a node with the name of the weight in its place."""
    shape = tuple(payload(view.copy).shape)
    output = Variable(unique_name(view.copy.name, taken), dtype=view.copy.dtype, shape=list(shape))
    if view.turned:
        node = Node("Transpose", output.name, {"perm": [1, 0]}, [view.kept], [output])
    else:
        target = Constant(unique_name(f"{view.copy.name}_shape", taken), np.array(shape, np.int64))
        node = Node("Reshape", output.name, {}, [view.kept, target], [output])
    redirect(view.copy, output)
    graph.nodes.insert(0, node)
