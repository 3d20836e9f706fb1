"""A graph that computes in fp16, with islands of float where fp16 does not reach."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from graphopt.base import PassReport, Skip
from graphopt.ir.exporter import unique_name
from graphopt.ir.graph import Constant, Node, Variable, constants, payload_bytes, tensor_names, walk_graphs, walk_nodes
from graphopt.model import Model
from graphopt.observe import Observations, Observer, Range
from graphopt.passes.half.numbers import misfit, range_misfit
from graphopt.passes.half.operators import KERNELS, refusal

_WORTH = 1024  # bytes; a smaller constant is not worth the node of its Cast
_FLOAT, _HALF = np.dtype(np.float32), np.dtype(np.float16)


def convert_graph(model: Model, observer: Observer) -> PassReport:
    """Let the operators of the main graph compute in fp16 wherever their tensors fit, in place.

    Args:
        model: Types of inner tensors must have been inferred. Inputs and outputs keep their types.
        observer: Finds the ranges of the float tensors.
    """
    graph = model.graph
    islands = _Islands(model, observer)
    skipped, chosen = [], []
    for node in graph.nodes:
        if not any(tensor.dtype == _FLOAT for tensor in (*node.inputs, *node.outputs) if not tensor.is_empty()):
            continue
        reason = islands.reason(node)
        if reason:
            skipped.append(Skip(str(node.name or node.op), reason))
        else:
            chosen.append(node)
    if not any(node.op not in _MOVES for node in chosen):  # casts around nodes that only move data are pure loss
        return PassReport(0, tuple(skipped))
    _Converter(graph).convert(chosen)
    metrics = {"operators in fp16": float(len(chosen)), "operators in float": float(len(skipped))}
    return PassReport(len(chosen), tuple(skipped), metrics)


_MOVES = frozenset({"Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose", "Slice", "Gather", "Identity", "Split"})


class _Islands:
    """Tells which nodes stay in float."""

    def __init__(self, model: Model, observer: Observer) -> None:
        known = observer.observable(model)
        wanted = {tensor.name for tensor in _float_variables(model.graph.nodes)} & known
        self._ranges: Observations = observer.observe(model, {name: (Range(),) for name in sorted(wanted)})
        self._observed = wanted
        self._constants: dict[int, str] = {}

    def reason(self, node: gs.Node) -> str:
        """Return why a node stays in float, or an empty text."""
        found = refusal(node)
        if found:
            return found
        for index, tensor in enumerate(node.inputs):
            if index not in KERNELS[node.op]:
                found = found or self._misfit(tensor)
        for tensor in node.outputs:
            found = found or self._misfit(tensor)
        return found

    def _misfit(self, tensor: gs.Tensor) -> str:
        if tensor.is_empty():
            return ""
        if isinstance(tensor, gs.Constant):
            return self._constant_misfit(tensor) if tensor.dtype == _FLOAT else ""
        if tensor.dtype is None:
            return f"the type of {tensor.name} is not known"
        if tensor.dtype != _FLOAT:
            return ""
        if tensor.name not in self._observed:
            return f"{tensor.name} cannot be observed"
        found = range_misfit(*self._ranges.range(tensor.name))
        return f"{tensor.name} {found}" if found else ""

    def _constant_misfit(self, constant: gs.Constant) -> str:
        if id(constant) not in self._constants:
            found = misfit(constant.values, "fp16")
            self._constants[id(constant)] = f"{constant.name}: {found}" if found else ""
        return self._constants[id(constant)]


def _float_variables(nodes: Iterable[gs.Node]) -> Iterable[gs.Tensor]:
    for node in nodes:
        for tensor in (*node.inputs, *node.outputs):
            if not tensor.is_empty() and not isinstance(tensor, gs.Constant) and tensor.dtype == _FLOAT:
                yield tensor


class _Converter:
    """Rewires chosen nodes to fp16 tensors; each tensor is cast at most once each way."""

    def __init__(self, graph: gs.Graph) -> None:
        self._graph = graph
        self._taken = tensor_names(graph)
        self._halves: dict[int, gs.Tensor] = {}

    def convert(self, chosen: Iterable[gs.Node]) -> None:
        """Convert the nodes, which come in topological order."""
        produced = []
        for node in chosen:
            kept = KERNELS[node.op]
            for index, tensor in enumerate(node.inputs):
                if tensor.dtype == _FLOAT and not tensor.is_empty() and index not in kept:
                    node.inputs[index] = self._half(tensor)
            for index, tensor in enumerate(node.outputs):
                if tensor.dtype == _FLOAT and not tensor.is_empty():
                    node.outputs[index] = self._halves[id(tensor)] = self._variable(tensor)
                    produced.append(tensor)
        self._cast_back(produced)
        self._store_once()

    def _half(self, tensor: gs.Tensor) -> gs.Tensor:
        """Return the tensor in fp16: as it was produced, stored, or cast."""
        if id(tensor) not in self._halves:
            if isinstance(tensor, gs.Constant):
                name = unique_name(f"{tensor.name}_fp16", self._taken)
                self._halves[id(tensor)] = Constant(name, tensor.values.astype(_HALF))
            else:
                half = self._variable(tensor)
                self._cast(tensor, half, onnx.TensorProto.FLOAT16)
                self._halves[id(tensor)] = half
        return self._halves[id(tensor)]

    def _cast_back(self, produced: Iterable[gs.Tensor]) -> None:
        """Give the float tensors that someone still reads a Cast as their producer."""
        read = {id(tensor) for node in walk_nodes(self._graph) for tensor in node.inputs}
        read |= {id(tensor) for scope in walk_graphs(self._graph) for tensor in scope.outputs}
        for tensor in produced:
            if id(tensor) in read:
                self._cast(self._halves[id(tensor)], tensor, onnx.TensorProto.FLOAT)

    def _store_once(self) -> None:
        """Let islands and bodies read the 16 bits that others read too: two copies would make the file larger."""
        shown = {id(tensor) for scope in walk_graphs(self._graph) for tensor in scope.outputs}
        for constant in constants(self._graph):
            half = self._halves.get(id(constant))
            if half is None or id(constant) in shown or payload_bytes(constant) < _WORTH:
                continue
            name = unique_name(f"{constant.name}_float", self._taken)
            whole = Variable(name, _FLOAT, list(constant.shape))
            for node in list(constant.outputs):
                for index, tensor in enumerate(node.inputs):
                    if tensor is constant:
                        node.inputs[index] = whole
            self._cast(half, whole, onnx.TensorProto.FLOAT)

    def _cast(self, source: gs.Tensor, result: gs.Tensor, kind: int) -> None:
        node = Node("Cast", unique_name(f"{result.name}/Cast", self._taken), {"to": int(kind)}, [source], [result])
        self._graph.nodes.append(node)

    def _variable(self, tensor: gs.Tensor) -> gs.Variable:
        return Variable(unique_name(f"{tensor.name}_fp16", self._taken), _HALF, tensor.shape)
