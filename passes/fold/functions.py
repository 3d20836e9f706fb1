"""Functions of the model that are called from one place move there."""

from __future__ import annotations

from collections.abc import Hashable

import onnx_graphsurgeon as gs

from graphopt.base import Skip
from graphopt.ir.graph import Function, Variable, bodies, tensor_names, walk_graphs, walk_nodes
from graphopt.passes.fold.rules.inline_body import inline_body
from graphopt.passes.fold.workbench import Workbench, label
from graphopt.shapes import STANDARD_DOMAINS


def inline_functions(bench: Workbench) -> tuple[int, list[Skip]]:
    """Put the nodes of each function that is called once in the place of the call.

    There they have types and shapes, which inside of a function depend on the call. Functions that are called more
    often stay, since copies would make the file larger; so do those with other operator sets than the model.

    Returns:
        How many were inlined, and what was left alone.
    """
    functions = {function.unique_id: function for function in bench.model.graph.functions if _is_ours(function)}
    calls: dict[Hashable, list[gs.Node]] = {}
    for node in bench.nodes() if functions else ():
        if (key := _called(node)) in functions:
            calls.setdefault(key, []).append(node)
    inlined, skips = 0, []
    for key, function in functions.items():
        places = calls.get(key, [])
        if not places:
            continue
        reason = _refusal(function, places, bench)
        if reason:
            skips.append(Skip(label(places[0]), reason))
            continue
        _inline(function, places[0], bench)
        inlined += 1
    return inlined, skips


def _is_ours(function: gs.Function) -> bool:
    return isinstance(function, Function) and (function.domain or "") not in STANDARD_DOMAINS


def _called(node: gs.Node) -> tuple[str, str, str]:
    residue = getattr(node, "residue", None)
    return (node.domain or "", node.op, residue.overload if residue is not None else "")


def _refusal(function: Function, places: list[gs.Node], bench: Workbench) -> str:
    if len(places) > 1:
        return f"function '{function.name}' is called from {len(places)} places"
    wanted, given = _versions(function), _versions(bench.root_of(places[0]))
    for node in walk_nodes(function):
        domain = "" if (node.domain or "") in STANDARD_DOMAINS else node.domain
        if wanted.get(domain) != given.get(domain):
            return f"function '{function.name}' has another version of the operators of '{domain or 'ai.onnx'}'"
    return ""


def _versions(graph: gs.Graph) -> dict[str, int]:
    """Return the version of each domain's operators that a graph or function imports."""
    versions = {item.domain: int(item.version) for item in graph.import_domains or ()}
    return {("" if domain in STANDARD_DOMAINS else domain): version for domain, version in versions.items()} | (
        {"": int(graph.opset)} if graph.opset else {}
    )


def _inline(function: Function, call: gs.Node, bench: Workbench) -> None:
    _bind_attributes(function, call)
    _rename(function, bench.root_of(call), bench)
    given = dict(zip(map(id, function.inputs), call.inputs, strict=False))
    scopes = [scope for node in function.nodes for body in bodies(node) for scope in walk_graphs(body)]
    for tensor in function.inputs:
        source = given.setdefault(id(tensor), Variable(""))
        for scope in scopes:
            scope.outputs[:] = [source if output is tensor else output for output in scope.outputs]
        bench.redirect(tensor, source)
    pairs = zip(function.outputs, call.outputs, strict=False)
    results = [(given.get(id(made), made), wanted) for made, wanted in pairs if not wanted.is_empty()]
    inline_body(function, call, results, bench)
    function.outputs.clear()


def _bind_attributes(function: Function, call: gs.Node) -> None:
    """Give the nodes what the call says for the function's attributes, or the defaults."""
    values = {name: value for name, value in function.attrs.items() if value is not None} | dict(call.attrs)
    for node in walk_nodes(function):
        for name, value in list(node.attrs.items()):
            if not isinstance(value, gs.Node.AttributeRef):
                continue
            if value.name in values:
                node.attrs[name] = values[value.name]
            else:
                del node.attrs[name]  # left out, as in the call


def _rename(function: Function, root: gs.Graph, bench: Workbench) -> None:
    """Give the function's tensors names that are free where they go, in bodies too."""
    taken = tensor_names(root)
    for scope in walk_graphs(function):
        inner = [] if scope is function else list(scope.inputs)
        for tensor in (*inner, *(output for node in scope.nodes for output in node.outputs)):
            if tensor.name in taken:
                tensor.name = bench.free_name(tensor.name)
