"""Which weights stay plain whatever their values are."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import onnx_graphsurgeon as gs

from graphopt.ir.graph import payload_bytes, walk_graphs, walk_nodes
from graphopt.passes.pack.forms import STORED


def unfit_constants(graph: gs.Graph, found: Iterable[gs.Constant]) -> list[tuple[gs.Constant, str]]:
    """Return the constants that stay plain whatever their values are, each with the reason."""
    shown = {id(tensor) for scope in walk_graphs(graph) for tensor in scope.outputs}
    computed = _computed_at_load(graph)
    reasons = []
    for constant in found:
        if id(constant) in shown:
            reasons.append((constant, "it is a graph output"))
        elif constant.dtype not in STORED:
            reasons.append((constant, f"there is no decoder for {np.dtype(constant.dtype)}"))
        elif id(constant) in computed:
            reasons.append((constant, "what it feeds is computed at load already"))
    return reasons


def constant_nodes(graph: gs.Graph, least: int) -> list[str]:
    """Return the outputs of Constant nodes that hold so many bytes or more; weights are initializers."""
    return [
        node.outputs[0].name
        for node in walk_nodes(graph)
        if node.op == "Constant"
        and isinstance(held := node.attrs.get("value"), gs.Constant)
        and payload_bytes(held) >= least
    ]


def _computed_at_load(graph: gs.Graph) -> set[int]:
    """Return the ids of the constants that feed a node all of whose inputs are constant; quantization is no such node.

    Decoders are of this kind, so they are not packed again.
    """
    known: set[int] = set()
    found: set[int] = set()
    for node in walk_nodes(graph):
        if node.op in ("DequantizeLinear", "QuantizeLinear") or not node.inputs:
            continue
        inputs = [tensor for tensor in node.inputs if not tensor.is_empty()]
        if all(isinstance(tensor, gs.Constant) or id(tensor) in known for tensor in inputs):
            known.update(id(tensor) for tensor in node.outputs)
            found.update(id(tensor) for tensor in inputs)
    return found
