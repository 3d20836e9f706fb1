"""Weights stored in 16 bits, computed with in 32."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from graphopt.base import PassReport, Skip
from graphopt.ir.exporter import unique_name
from graphopt.ir.graph import Constant, Node, Variable, constants, payload_bytes, tensor_names, walk_graphs
from graphopt.model import Model
from graphopt.passes.half.numbers import TYPES, Kind, misfit

_FIRST_BF16 = 13  # opset whose Cast knows bf16
_LEAST = 1  # bytes; an empty weight has nothing to halve, and a scalar is rarely one: a ratio, an epsilon


def store_weights(model: Model, kind: Kind, min_bytes: int) -> PassReport:
    """Put a Cast from 16 bits in the place of each large float32 weight, in place.

    Left as they are: scalars, weights that are graph outputs, that do not fit, or that some node decodes already.
    """
    if kind == "bf16" and model.opset < _FIRST_BF16:
        return PassReport(0, (Skip("model", f"bf16 needs opset {_FIRST_BF16} or later, not {model.opset}"),))
    graph = model.graph
    taken = tensor_names(graph)
    shown = {id(tensor) for scope in walk_graphs(graph) for tensor in scope.outputs}
    skipped, changed = [], 0
    for constant in constants(graph):
        if constant.dtype != np.float32 or not constant.shape or payload_bytes(constant) < max(min_bytes, _LEAST):
            continue
        reason = "it is a graph output" if id(constant) in shown else misfit(constant.values, kind)
        if reason:
            skipped.append(Skip(constant.name, reason))
            continue
        _store(graph, constant, kind, taken)
        changed += 1
    return PassReport(changed, tuple(skipped), {f"weights in {kind}": float(changed)})


def _store(graph: gs.Graph, constant: gs.Constant, kind: Kind, taken: set[str]) -> None:
    stored = Constant(unique_name(f"{constant.name}_{kind}", taken), constant.values.astype(TYPES[kind]))
    decoded = Variable(unique_name(f"{constant.name}_float", taken), np.dtype(np.float32), list(constant.shape))
    for node in list(constant.outputs):
        for index, tensor in enumerate(node.inputs):
            if tensor is constant:
                node.inputs[index] = decoded
    attrs = {"to": int(onnx.TensorProto.FLOAT)}
    graph.nodes.append(Node("Cast", decoded.name, attrs, [stored], [decoded]))
