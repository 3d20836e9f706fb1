"""Models that end the process when ONNX Runtime opens them: no exception, an abort."""

from __future__ import annotations

import onnx_graphsurgeon as gs

from graphopt.ir.graph import bodies, walk_graphs

# What ONNX Runtime's QDQPropagationTransformer carries a DequantizeLinear across. Where the result is read inside a
# body, it looks for it among the own inputs of the If or Loop, and reads past their end (seen in 1.32).
_MOVES = frozenset({"MaxPool", "Reshape", "Slice", "Squeeze", "Transpose", "Unsqueeze"})


def hazard(graph: gs.Graph) -> str:
    """Return why ONNX Runtime's optimizer would abort on a graph, or an empty text.

    ``DequantizeLinear -> Reshape -> (read inside a body of If, Loop or Scan)``, also with MaxPool, Slice, Squeeze,
    Transpose or Unsqueeze, or several of them in a row.
    """
    for scope in walk_graphs(graph):
        made_here = {id(tensor) for node in scope.nodes for tensor in node.outputs}
        for node in scope.nodes:
            for tensor in _read_inside(node):
                if id(tensor) in made_here and _is_moved_dequantized(tensor):
                    reader = f"'{node.name or node.outputs[0].name}' ({node.op})"
                    return (
                        f"ONNX Runtime would crash: '{tensor.name}' only moves what was dequantized, and is read "
                        f"inside a body of {reader}"
                    )
    return ""


def carried_into_bodies(graph: gs.Graph) -> set[int]:
    """Return the ids of the tensors that must not come from a DequantizeLinear: what moves them is read in a body."""
    found: set[int] = set()
    for scope in walk_graphs(graph):
        for node in scope.nodes:
            for tensor in _read_inside(node):
                while tensor.inputs and tensor.inputs[0].op in _MOVES:
                    tensor = tensor.inputs[0].inputs[0]
                    found.add(id(tensor))
    return found


def _read_inside(node: gs.Node) -> list[gs.Tensor]:
    scopes = [scope for body in bodies(node) for scope in walk_graphs(body)]
    return [tensor for scope in scopes for inner in scope.nodes for tensor in inner.inputs]


def _is_moved_dequantized(tensor: gs.Tensor) -> bool:
    moved = False
    while tensor.inputs and tensor.inputs[0].op in _MOVES:
        moved, tensor = True, tensor.inputs[0].inputs[0]
    return moved and bool(tensor.inputs) and tensor.inputs[0].op == "DequantizeLinear"
