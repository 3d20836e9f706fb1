"""What a model costs: multiply-accumulate operations, parameters and bytes, per node and in total."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import onnx_graphsurgeon as gs

from graphopt.filesize import Scale
from graphopt.ir.graph import bodies, constants, payload, payload_bytes, walk_nodes
from graphopt.macs import Shape, ShapeOf, counts, node_macs
from graphopt.model import Model
from graphopt.parameters import Parameters, stored_constant


@dataclass(frozen=True)
class NodeCost:
    """What one node costs.

    Attributes:
        node: Its name, or that of its first output where it has none.
        op: Operator.
        macs: Multiply-accumulate operations of one execution, those of its bodies not included; None where a shape that
            they rest on is unknown.
        parameters: Elements of the constants that it holds itself or is the first to use, also by way of a Constant
            node; of packed ones, of what they are decoded to, see `graphopt.parameters`.
        nbytes: Bytes of these constants in the file.
    """

    node: str
    op: str
    macs: int | None
    parameters: int
    nbytes: int


@dataclass(frozen=True)
class Figures:
    """Size and cost of a model.

    Attributes:
        nodes: Nodes, those in bodies and functions included.
        parameters: Elements of all weights, each stored weight counted once, and packed ones as what they are decoded
            to, see `graphopt.parameters`.
        macs: Multiply-accumulate operations of one run; None where a shape they rest on is unknown. Of an If the
            costlier branch counts. A Loop's body counts as often as its trip count, once if that is not constant.
        nbytes: Bytes of the file or files as `Model.save` writes them.
        zstd_nbytes: The same after zstd; see `graphopt.filesize`. None where it was not measured.
        zstd_level: Level of that compression.
    """

    nodes: int
    parameters: int
    macs: int | None
    nbytes: int
    zstd_nbytes: int | None
    zstd_level: int | None = 3


def node_costs(model: Model, shapes: Mapping[str, Shape] | None = None) -> tuple[NodeCost, ...]:
    """Return the cost of every node of the main graph, its bodies and the functions, in graph order.

    Args:
        model: Stays as it is.
        shapes: Actual shapes by tensor name, see `graphopt.shapes.shapes_for`; without them, or where a name is
            missing, what the graph states counts if it is static.
    """
    shape_of = _shape_reader(shapes)
    known = Parameters(_roots(model), shape_of)
    return tuple(_node_cost(node, weights, shape_of, known) for node, weights in held_weights(model))


def held_weights(model: Model) -> Iterator[tuple[gs.Node, tuple[gs.Constant, ...]]]:
    """Yield the nodes of the main graph, its bodies and the functions, each with the constants that are its own.

    These are the ones in its attributes, and those of its inputs that no node before it reads, also by way of a
    Constant node.
    """
    seen: set[int] = set()
    for root in _roots(model):
        for node in walk_nodes(root):
            found = (
                tensor for tensor in (*map(stored_constant, node.inputs), *_attributes(node)) if tensor is not None
            )
            first = {id(tensor): tensor for tensor in found if id(tensor) not in seen}
            seen.update(first)
            yield node, tuple(first.values())


def _attributes(node: gs.Node) -> Iterator[gs.Constant]:
    """Yield the constants in a node's attributes; those of a Constant node belong to who reads it."""
    if node.op == "Constant" and any(tensor.outputs for tensor in node.outputs):
        return
    yield from (value for value in node.attrs.values() if isinstance(value, gs.Constant))


def figures(
    model: Model, shapes: Mapping[str, Shape] | None = None, *, zstd_level: int = 3, scale: Scale | None = None
) -> Figures:
    """Return size and cost of a model.

    Args:
        model: Stays as it is.
        shapes: As for `node_costs`.
        zstd_level: Compression level, 1 to 22, of a scale made for this call. Level 3 takes a few seconds a gigabyte.
        scale: A scale to use instead; it remembers the weights that versions of a model have in common.
    """
    scale = scale if scale is not None else Scale(zstd_level)
    size = scale.weigh(model)
    weights = [constant for root in _roots(model) for constant in (*constants(root), *_held(root))]
    shape_of = _shape_reader(shapes)
    known = Parameters(_roots(model), shape_of)
    return Figures(
        nodes=model.node_count,
        parameters=sum(map(known.count, weights)),
        macs=_graph_macs(model.graph, shape_of, _costly_functions(model)),
        nbytes=size.nbytes,
        zstd_nbytes=size.zstd_nbytes,
        zstd_level=scale.level,
    )


def _roots(model: Model) -> tuple[gs.Graph, ...]:
    return (model.graph, *model.graph.functions)


def _held(graph: gs.Graph) -> list[gs.Constant]:
    """Return the tensors in attributes: the weights of Constant nodes."""
    return [value for node in walk_nodes(graph) for value in node.attrs.values() if isinstance(value, gs.Constant)]


def _shape_reader(shapes: Mapping[str, Shape] | None) -> ShapeOf:
    known = shapes if shapes is not None else {}

    def shape_of(tensor: gs.Tensor) -> Shape | None:
        if tensor.name in known and not isinstance(tensor, gs.Constant):
            return known[tensor.name]
        held = stored_constant(tensor)
        if held is not None:
            return tuple(payload(held).shape)
        stated = tensor.shape
        if stated is None or not all(isinstance(size, int) and size >= 0 for size in stated):
            return None
        return tuple(stated)

    return shape_of


def _node_cost(node: gs.Node, weights: tuple[gs.Constant, ...], shape_of: ShapeOf, known: Parameters) -> NodeCost:
    return NodeCost(
        node=node.name or next((tensor.name for tensor in node.outputs if tensor.name), ""),
        op=node.op,
        macs=node_macs(node, shape_of),
        parameters=sum(map(known.count, weights)),
        nbytes=sum(payload_bytes(constant) for constant in weights),
    )


def _graph_macs(graph: gs.Graph, shape_of: ShapeOf, costly: frozenset[tuple[str, str]]) -> int | None:
    """Return the MACs of one execution of a graph, its bodies included; None if any is unknown."""
    total = 0
    for macs in _each_macs(graph, shape_of, costly):
        if macs is None:
            return None
        total += macs
    return total


def _each_macs(graph: gs.Graph, shape_of: ShapeOf, costly: frozenset[tuple[str, str]]) -> Iterator[int | None]:
    for node in graph.nodes:
        if (node.domain or "", node.op) in costly:
            yield None  # tensors inside a function have no shapes: each call may bring others
            continue
        yield node_macs(node, shape_of)
        inner = [_graph_macs(body, shape_of, costly) for body in bodies(node)]
        known = [macs for macs in inner if macs is not None]
        if len(known) != len(inner):
            yield None
        elif known:
            yield max(known) * _trips(node, shape_of)


def _trips(node: gs.Node, shape_of: ShapeOf) -> int:
    """Return how often a node runs its body; 1 where only the run will tell."""
    if node.op == "Loop" and node.inputs and isinstance(node.inputs[0], gs.Constant):
        return max(0, int(node.inputs[0].values.reshape(-1)[0]))
    if node.op == "Scan" and node.attrs.get("num_scan_inputs") and not node.attrs.get("scan_input_axes"):
        shape = shape_of(node.inputs[-1])
        return shape[0] if shape else 1
    return 1


def _costly_functions(model: Model) -> frozenset[tuple[str, str]]:
    """Return domain and name of the functions with MACs inside, also through other functions."""
    costly: set[tuple[str, str]] = set()
    found = True
    while found:
        found = False
        for function in model.graph.functions:
            key = (function.domain or "", function.name)
            inside = (
                key in costly or counts(node.op) or (node.domain or "", node.op) in costly
                for node in walk_nodes(function)
            )
            if key not in costly and any(inside):
                costly.add(key)
                found = True
    return frozenset(costly)
