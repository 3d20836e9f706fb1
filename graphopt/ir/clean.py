"""Dead code and node order."""

from __future__ import annotations

import heapq

import onnx_graphsurgeon as gs

from graphopt.errors import ModelError
from graphopt.ir.graph import Function, Graph, bodies, declared, tensor_names, walk_nodes


def clean(graph: gs.Graph) -> int:
    """Sort the nodes and remove what no output depends on, in the graph, its bodies and its functions.

    Initializers that no node uses go too, unless a caller may override them. Graph inputs and outputs stay.

    Returns:
        How many nodes were removed.
    """
    removed = 0
    for root in (graph, *graph.functions):
        removed += _remove_dead(root)
        sort_nodes(root)
    if graph.functions:
        used = _called_functions(graph)
        graph.functions = [function for function in graph.functions if _identity(function) in used]
    return removed


def sort_nodes(graph: gs.Graph) -> None:
    """Put producers before consumers, keeping the present order wherever it is legal.

    Raises:
        ModelError: The nodes form a cycle.
    """
    position = {id(node): index for index, node in enumerate(graph.nodes)}
    waiting: list[int] = []
    consumers: list[list[int]] = [[] for _ in graph.nodes]
    for index, node in enumerate(graph.nodes):
        producers = {
            position[id(producer)] for tensor in _needed(node) for producer in tensor.inputs if id(producer) in position
        }
        waiting.append(len(producers))
        for producer in producers:
            consumers[producer].append(index)
    ready = [index for index, count in enumerate(waiting) if count == 0]
    order: list[int] = []
    while ready:
        index = heapq.heappop(ready)
        order.append(index)
        for consumer in consumers[index]:
            waiting[consumer] -= 1
            if waiting[consumer] == 0:
                heapq.heappush(ready, consumer)
    if len(order) != len(graph.nodes):
        stuck = next(graph.nodes[index] for index, count in enumerate(waiting) if count)
        raise ModelError(f"graph '{graph.name}': node '{stuck.name}' ({stuck.op}) depends on its own output")
    if order != sorted(order):
        graph.nodes[:] = [graph.nodes[index] for index in order]
    for node in graph.nodes:
        for body in bodies(node):
            sort_nodes(body)


def _needed(node: gs.Node) -> list[gs.Tensor]:
    """Everything the node reads, also from inside its bodies."""
    needed = list(node.inputs)
    stack = bodies(node)
    while stack:
        body = stack.pop()
        needed.extend(body.outputs)
        for inner in body.nodes:
            needed.extend(inner.inputs)
            stack.extend(bodies(inner))
    return needed


def _remove_dead(graph: gs.Graph) -> int:
    """Keep the nodes that the outputs need; a kept node's bodies are cleaned first, so what they read is real."""
    producer = {id(tensor): node for node in graph.nodes for tensor in node.outputs if tensor.name}
    live: set[int] = set()
    removed = 0
    stack = [producer[id(tensor)] for tensor in graph.outputs if id(tensor) in producer]
    while stack:
        node = stack.pop()
        if id(node) in live:
            continue
        live.add(id(node))
        removed += sum(_remove_dead(body) for body in bodies(node))
        stack.extend(producer[id(tensor)] for tensor in _needed(node) if id(tensor) in producer)
    dead = [node for node in graph.nodes if id(node) not in live]
    for node in dead:
        removed += 1 + sum(1 for body in bodies(node) for _ in walk_nodes(body))
        disconnect(node)
    if dead:
        graph.nodes[:] = [node for node in graph.nodes if id(node) in live]
    if isinstance(graph, (Graph, Function)):
        del graph.residue.value_info[:]
    if isinstance(graph, Graph):
        used = _used_constants(graph)
        graph.declared = [constant for constant in declared(graph) if id(constant) in used]
        _drop_annotations(graph)
    return removed


def _drop_annotations(graph: Graph) -> None:
    """Remove the quantization annotations of tensors that are gone."""
    annotations = graph.residue.quantization_annotation
    if annotations:
        names = tensor_names(graph)
        kept = [annotation for annotation in annotations if annotation.tensor_name in names]
        del annotations[:]
        annotations.extend(kept)


def disconnect(node: gs.Node) -> None:
    """Unlink a node, and the nodes in its bodies, from every tensor."""
    for body in bodies(node):
        for inner in body.nodes:
            disconnect(inner)
    node.inputs.clear()
    node.outputs.clear()


def _used_constants(graph: gs.Graph) -> set[int]:
    read = [tensor for node in graph.nodes for tensor in _needed(node)]
    return {id(tensor) for tensor in (*read, *graph.outputs)}


def _identity(function: gs.Function) -> tuple[str, str, str]:
    """Domain, name and overload: what a node calls a function by."""
    overload = function.residue.overload if isinstance(function, Function) else ""
    return _domain(function.domain), function.name, overload


def _called_functions(graph: gs.Graph) -> set[tuple[str, str, str]]:
    functions = {_identity(function): function for function in graph.functions}
    called: set[tuple[str, str, str]] = set()
    stack: list[gs.Graph] = [graph]
    while stack:
        scope = stack.pop()
        for node in scope.nodes:
            stack.extend(bodies(node))
            residue = getattr(node, "residue", None)
            key = (_domain(node.domain), node.op, residue.overload if residue is not None else "")
            if key in functions and key not in called:
                called.add(key)
                stack.append(functions[key])
    return called


def _domain(name: str | None) -> str:
    """The standard operators have two names."""
    return "" if name in (None, "ai.onnx") else str(name)


def redirect(old: gs.Tensor, new: gs.Tensor) -> None:
    """Let every node that reads `old` read `new`."""
    for node in list({id(node): node for node in old.outputs}.values()):
        for index, tensor in enumerate(node.inputs):
            if tensor is old:
                node.inputs[index] = new
