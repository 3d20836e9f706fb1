"""Which constants of a model are weights that may be pruned, and why others may not."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import ml_dtypes
import numpy as np
import onnx_graphsurgeon as gs

from graphopt.base import Skip
from graphopt.ir.graph import Graph, payload, walk_graphs, walk_nodes
from graphopt.ir.payload import StoredSparseTensor
from graphopt.model import Model
from graphopt.passes.prune.layout import Layout, layout_of

_SLOTS = {
    "Conv": (1,),
    "ConvTranspose": (1,),
    "Gemm": (0, 1),
    "MatMul": (0, 1),
    "LSTM": (1, 2),
    "GRU": (1, 2),
    "RNN": (1, 2),
}  # inputs that hold weights; biases, peepholes and initial states are not among them
_MOVERS = frozenset({"Cast", "Flatten", "Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze"})  # keep zeros zero
_FLOATS = frozenset(np.dtype(kind) for kind in (np.float16, np.float32, np.float64, ml_dtypes.bfloat16))

Use = tuple[gs.Node, int]


@dataclass(frozen=True, eq=False)
class Weight:
    """A weight that may be pruned.

    Attributes:
        name: Tensor name.
        constant: What holds its values: the tensor itself, or the attribute of a Constant node.
        layout: How it is a matrix for all of its users; None where they differ, see it moved, or it is a vector.
        users: The nodes that multiply by it.
    """

    name: str
    constant: gs.Constant
    layout: Layout | None
    users: tuple[gs.Node, ...]

    @property
    def size(self) -> int:
        """Number of elements."""
        return int(np.prod(payload(self.constant).shape, dtype=np.int64))


def find_weights(model: Model, *, embeddings: bool) -> tuple[list[Weight], list[Skip]]:
    """Return the weights of Conv, ConvTranspose, Gemm, MatMul, LSTM, GRU and RNN nodes, each once, in graph order.

    Weights that reach their node through operators that only move or convert elements count as well. Left alone is what
    somebody else reads too, for whom a zero may mean something else; each such place comes with its reason.

    Args:
        model: Stays as it is.
        embeddings: Whether tables that Gather reads count as weights.
    """
    weights: list[Weight] = []
    skipped: list[Skip] = []
    for root in (model.graph, *model.graph.functions):
        readers = _Readers(root)
        for name, tensor, constant in _sources(root):
            uses = readers.of(tensor)
            if not any(_is_weight(use) or (embeddings and _is_embedding(use)) for use in uses):
                continue
            reason = _objection(constant, uses, embeddings=embeddings, is_output=readers.reaches_output(tensor))
            if reason:
                skipped.append(Skip(name, reason))
            else:
                users = tuple(use[0] for use in uses if _is_weight(use))
                weights.append(Weight(name, constant, _layout(constant, readers.directly(tensor)), users))
        skipped.extend(_unreachable(root))
    return weights, skipped


def _sources(root: gs.Graph) -> Iterator[tuple[str, gs.Tensor, gs.Constant]]:
    """Yield name, tensor and holder of each constant, once, in order of first use."""
    seen: set[int] = set()
    for node in walk_nodes(root):
        held = node.attrs.get("value") if node.op == "Constant" else None
        if isinstance(held, gs.Constant) and node.outputs:
            yield node.outputs[0].name, node.outputs[0], held
        for tensor in node.inputs:
            if isinstance(tensor, gs.Constant) and id(tensor) not in seen:
                seen.add(id(tensor))
                yield tensor.name, tensor, tensor


class _Readers:
    """Who reads a tensor, directly or behind operators that only move its elements."""

    def __init__(self, root: gs.Graph) -> None:
        self._users: dict[int, list[Use]] = {}
        for node in walk_nodes(root):
            for index, tensor in enumerate(node.inputs):
                self._users.setdefault(id(tensor), []).append((node, index))
        self._outputs = {id(tensor) for scope in walk_graphs(root) for tensor in scope.outputs}

    def of(self, tensor: gs.Tensor) -> list[Use]:
        """Return the uses of the tensor, those by moving operators replaced by the uses of their results."""
        return [use for moved in self._moved(tensor) for use in self._users.get(id(moved), []) if not _moves(use)]

    def directly(self, tensor: gs.Tensor) -> list[Use]:
        """Return the uses of the tensor itself."""
        return self._users.get(id(tensor), [])

    def reaches_output(self, tensor: gs.Tensor) -> bool:
        """Whether the tensor, moved or not, is an output of the graph or of a body."""
        return any(id(moved) in self._outputs for moved in self._moved(tensor))

    def _moved(self, tensor: gs.Tensor) -> Iterator[gs.Tensor]:
        stack = [tensor]
        while stack:
            current = stack.pop()
            yield current
            stack.extend(node.outputs[0] for node, index in self._users.get(id(current), []) if _moves((node, index)))


def _is_standard(node: gs.Node) -> bool:
    return (node.domain or "") in ("", "ai.onnx")


def _moves(use: Use) -> bool:
    node, index = use
    return node.op in _MOVERS and index == 0 and _is_standard(node) and len(node.outputs) == 1


def _is_weight(use: Use) -> bool:
    node, index = use
    return _is_standard(node) and index in _SLOTS.get(node.op, ())


def _is_embedding(use: Use) -> bool:
    node, index = use
    return _is_standard(node) and node.op == "Gather" and index == 0


def _layout(constant: gs.Constant, uses: list[Use]) -> Layout | None:
    """Return the one layout that all uses agree on, or None; embeddings have none."""
    shape = tuple(payload(constant).shape)
    found = {layout_of(node, index, shape) if _is_weight((node, index)) else None for node, index in uses}
    return found.pop() if len(found) == 1 else None


def _objection(constant: gs.Constant, uses: list[Use], *, embeddings: bool, is_output: bool) -> str:
    """Return why a weight must be left alone, or an empty text."""
    held = payload(constant)
    if isinstance(held, StoredSparseTensor):
        return "it is stored as a sparse tensor already"
    if np.dtype(held.dtype) not in _FLOATS:
        return f"its type is {held.dtype}; only floating-point weights are pruned"
    if is_output:
        return "it is an output as well, which would change"
    for node, index in uses:
        if _is_embedding((node, index)) and not embeddings:
            return f"it is an embedding as well ({_label(node)}); say embeddings=true to prune it"
        if not _is_weight((node, index)) and not _is_embedding((node, index)):
            return f"{_label(node)} reads it as well, for which a zero may mean something else"
    return ""


def _label(node: gs.Node) -> str:
    name = node.name or next((tensor.name for tensor in node.outputs if tensor.name), "")
    return f"{node.op} '{name}'"


def _unreachable(root: gs.Graph) -> list[Skip]:
    """Return the weights that are no constants of floating-point type, each once."""
    defaults = {name for scope in walk_graphs(root) if isinstance(scope, Graph) for name in scope.defaults}
    found: dict[int, Skip] = {}
    for node in walk_nodes(root):
        for index, tensor in enumerate(node.inputs):
            if isinstance(tensor, gs.Constant) or not _is_weight((node, index)):
                continue
            if tensor.name in defaults and not tensor.inputs:
                reason = "a caller may override it: it is a model input as well; take it off the inputs to prune it"
                found.setdefault(id(tensor), Skip(tensor.name, reason))
            source = tensor.inputs[0] if tensor.inputs else None
            if source is not None and source.op == "DequantizeLinear" and isinstance(source.inputs[0], gs.Constant):
                weight = source.inputs[0]
                reason = f"it is quantized already ({payload(weight).dtype}); prune before quant"
                found.setdefault(id(weight), Skip(weight.name, reason))
    return list(found.values())
