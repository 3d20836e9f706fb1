"""Which layers may be fitted at the same time: those that do not read each other's results."""

from __future__ import annotations

from collections.abc import Collection

import onnx_graphsurgeon as gs

from graphopt.ir.graph import bodies


def levels(graph: gs.Graph, counted: Collection[int]) -> dict[int, int]:
    """Return the level of each counted node by its id: how many counted nodes lie on the longest way to it.

    Args:
        graph: In topological order.
        counted: Ids of nodes of the graph itself.
    """
    found: dict[int, int] = {}
    reached: dict[int, int] = {}
    for node in graph.nodes:
        read = [*node.inputs, *(tensor for body in bodies(node) for inner in body.nodes for tensor in inner.inputs)]
        level = max((reached.get(id(tensor), 0) for tensor in read), default=0)
        if id(node) in counted:
            found[id(node)] = level
            level += 1
        reached.update((id(tensor), level) for tensor in node.outputs)
    return found
