"""Where constants are stored, and under which names everything is found."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import onnx_graphsurgeon as gs

from graphopt.ir.graph import bodies, declared, tensor_owners, walk_graphs

Homes = dict[int, list[gs.Constant]]


def constant_homes(graph: gs.Graph) -> Homes:
    """Decide which scope stores each constant: where the file had it, else the innermost scope around all its users.

    Returns:
        For the id of each scope its constants: those of the file in file order, then new ones in order of first use.
        Declared constants that nobody uses stay where they were.
    """
    tree = _Scopes(graph)
    homes: Homes = {id(scope): [] for scope in tree.order}
    lowest: dict[int, tuple[gs.Constant, gs.Graph]] = {}
    for scope in tree.order:
        for tensor in _uses(scope):
            if isinstance(tensor, gs.Constant):
                _, other = lowest.get(id(tensor), (tensor, scope))
                lowest[id(tensor)] = (tensor, tree.common(scope, other))
    placed: set[int] = set()
    for scope in tree.order:
        for constant in declared(scope):
            _, user = lowest.get(id(constant), (constant, scope))
            if id(constant) not in placed and tree.common(scope, user) is scope:
                homes[id(scope)].append(constant)
                placed.add(id(constant))
    for constant, scope in lowest.values():
        if id(constant) not in placed:
            homes[id(scope)].append(constant)
    return homes


def changed_names(graph: gs.Graph, homes: Homes) -> dict[int, str]:
    """Return new names, by tensor id, for what would be found under a wrong name or not at all.

    That is a constant that comes to a scope in which its name is taken, and an inner tensor of a body that hides a
    tensor of a graph around it which the body reads. Both may be renamed freely: no caller sees them.
    """
    moved = _moved(graph, homes)
    if not moved and not any(bodies(node) for node in graph.nodes):
        return {}
    owners = tensor_owners(graph)
    taken = set(owners)
    names: dict[int, str] = {}
    for constant in moved:
        if len(owners[constant.name]) > 1:
            names[id(constant)] = unique_name(constant.name, taken)
    if any(len(found) > 1 for found in owners.values()):
        _rename_hiding(graph, homes, owners, taken, names)
    return names


def unique_name(wanted: str, taken: set[str]) -> str:
    """Return `wanted`, or `wanted_1`, `wanted_2` ..., whichever is free, and take it."""
    name, number = wanted, 0
    while name in taken:
        number += 1
        name = f"{wanted}_{number}"
    taken.add(name)
    return name


class _Scopes:
    """The tree of a graph and the bodies below it, in depth-first order."""

    def __init__(self, graph: gs.Graph) -> None:
        self.order: list[gs.Graph] = []
        self.parent: dict[int, gs.Graph | None] = {id(graph): None}
        self._depth = {id(graph): 0}
        for scope in walk_graphs(graph):
            self.order.append(scope)
            for body in (body for node in scope.nodes for body in bodies(node)):
                self.parent[id(body)] = scope
                self._depth[id(body)] = self._depth[id(scope)] + 1

    def common(self, a: gs.Graph, b: gs.Graph) -> gs.Graph:
        """Return the innermost scope around both."""
        while a is not b:
            if self._depth[id(a)] < self._depth[id(b)]:
                a, b = b, a
            a = self.parent[id(a)]
        return a


def _uses(scope: gs.Graph) -> Iterator[gs.Tensor]:
    for node in scope.nodes:
        yield from node.inputs
    yield from scope.outputs


def _moved(graph: gs.Graph, homes: Homes) -> list[gs.Constant]:
    """Return the constants that are stored in a scope that did not declare them."""
    moved: list[gs.Constant] = []
    for scope in walk_graphs(graph):
        kept = {id(constant) for constant in declared(scope)}
        moved.extend(constant for constant in homes[id(scope)] if id(constant) not in kept)
    return moved


def _rename_hiding(
    graph: gs.Graph, homes: Homes, owners: dict[str, set[int]], taken: set[str], names: dict[int, str]
) -> None:
    tree = _Scopes(graph)
    defined: dict[int, dict[str, int]] = {}
    for scope in tree.order:
        here = [*scope.inputs, *homes[id(scope)], *(tensor for node in scope.nodes for tensor in node.outputs)]
        defined[id(scope)] = {tensor.name: id(tensor) for tensor in here if tensor.name and id(tensor) not in names}
    for scope in tree.order:
        for tensor in _uses(scope):
            if len(owners.get(tensor.name, ())) < 2 or id(tensor) in names:
                continue
            for hiding in _hiding(tensor, scope, tree, defined):
                names[hiding] = unique_name(tensor.name, taken)


def _hiding(tensor: gs.Tensor, scope: Any, tree: _Scopes, defined: dict[int, dict[str, int]]) -> list[int]:
    """Return the ids of tensors between the scope and the tensor's definition that have its name, and forget them."""
    passed: list[dict[str, int]] = []
    while scope is not None:
        found = defined[id(scope)].get(tensor.name)
        if found == id(tensor):
            return [names.pop(tensor.name) for names in passed]
        if found is not None:
            passed.append(defined[id(scope)])
        scope = tree.parent[id(scope)]
    return []
