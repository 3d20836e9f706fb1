"""Putting a body in the place of the node that it belongs to."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_graphsurgeon as gs

from graphopt.ir.graph import Node
from graphopt.passes.fold.workbench import Workbench


def inline_body(
    body: gs.Graph, node: gs.Node, results: Sequence[tuple[gs.Tensor, gs.Tensor]], bench: Workbench
) -> None:
    """Move the nodes of a body into the graph around it, and remove the node.

    Args:
        body: Nobody reads its inputs any more.
        node: It has the body.
        results: For each output of the node that is wanted, what the body gives for it, and the output.
        bench: The graph.
    """
    graph = bench.graph_of(node)
    moved = {id(inner) for inner in bench.move_out(body, node)}
    bench.remove(node)
    made: dict[int, gs.Tensor] = {}
    for source, target in results:
        producer = bench.producer(source)
        if producer is not None and id(producer) in moved and id(source) not in made:
            bench.take_over(producer, source, target)
            made[id(source)] = target
        else:  # a value from outside the body, or one that it gives out twice
            bench.put(Node("Identity", "", {}, [made.get(id(source), source)], [target]), graph)
