"""Putting decoders in the place of weights, and taking them back."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import onnx
import onnx_graphsurgeon as gs

from graphopt.ir.graph import declared, tensor_owners, walk_graphs
from graphopt.model import Model
from graphopt.passes.pack.decoders import DecoderBuilder, Draft
from graphopt.passes.pack.forms import Form
from graphopt.passes.pack.sizes import constant_bytes

_NEAR = 1024  # bytes; forms whose estimates differ by less are built and weighed


@dataclass(frozen=True, eq=False)
class Packed:
    """A weight and what stands in its place.

    Attributes:
        constant: The weight.
        decoded: The tensor that its users read now.
        inner: Names of the tensors on the way to it that belong to it alone.
        kind: Name of its form.
    """

    constant: gs.Constant
    decoded: gs.Tensor
    inner: frozenset[str]
    kind: str


class Store:
    """Replaces the weights of one model.

    Attributes:
        packed: What was replaced, in order.
    """

    def __init__(self, model: Model) -> None:
        owners = tensor_owners(model.graph)
        self._graph = model.graph
        self._own_nodes = list(model.graph.nodes)
        self._declared = [(declared(scope), list(declared(scope))) for scope in walk_graphs(model.graph)]
        self._ambiguous = {name for name, found in owners.items() if len(found) > 1}
        self._builder = DecoderBuilder(set(owners))
        self.packed: list[Packed] = []

    def pack(self, constant: gs.Constant, forms: list[Form], plain: int | None = None) -> bool:
        """Store a weight in the smallest of the forms, unless it is smaller as it is.

        Args:
            constant: The weight.
            forms: Possible ones.
            plain: Bytes that it takes in the file as it is, where its present values do not tell: rounding makes a
                dense weight of a sparse initializer.
        """
        plain = constant_bytes(constant) if plain is None else plain
        least = min((form.nbytes for form in forms), default=plain)
        best: tuple[Form, Draft, gs.Tensor] | None = None
        for form in forms:
            if form.nbytes > min(least + _NEAR, plain):
                continue
            draft = self._builder.draft(constant.name)
            decoded = form.build(draft)
            if constant.name not in self._ambiguous:
                draft.finish(decoded, constant.name)
            if draft.nbytes >= plain or (best is not None and draft.nbytes >= best[1].nbytes):
                draft.discard()
                continue
            if best is not None:
                best[1].discard()
            best = form, draft, decoded
        if best is None:
            return False
        form, draft, decoded = best
        self._builder.keep(draft)
        decoded.dtype, decoded.shape = constant.dtype, list(constant.shape)
        rewire(constant, decoded)
        inner = frozenset(tensor.name for node in draft.nodes for tensor in node.outputs)
        self.packed.append(Packed(constant, decoded, inner, form.kind))
        return True

    def commit(self) -> None:
        """Make graph and decoders one: the nodes that are needed come in, the weights that they replace go."""
        self._graph.nodes[:] = [*self._needed(), *self._own_nodes]
        gone = {id(packed.constant) for packed in self.packed}
        for scope, constants in self._declared:
            scope[:] = [constant for constant in constants if id(constant) not in gone]

    def take_back(self, refused: Iterable[Packed]) -> None:
        """Store these weights plainly after all."""
        refused = set(refused)
        for packed in refused:
            rewire(packed.decoded, packed.constant)
        self.packed = [packed for packed in self.packed if packed not in refused]
        self.commit()

    def _needed(self) -> list[gs.Node]:
        """Return the nodes that the weights in their stored form need, in topological order."""
        live = {id(packed.decoded) for packed in self.packed}
        needed: list[gs.Node] = []
        for node in reversed(self._builder.nodes):
            if id(node.outputs[0]) in live:
                needed.append(node)
                live.update(id(tensor) for tensor in node.inputs)
        return needed[::-1]

    def unfolded(self, optimized: onnx.ModelProto) -> list[Packed]:
        """Return the weights whose decoders are still there in the graph that ONNX Runtime runs."""
        left = {name for node in optimized.graph.node for name in node.output}
        return [packed for packed in self.packed if packed.inner & left]


def rewire(old: gs.Tensor, new: gs.Tensor) -> None:
    """Let every user of a tensor read another one."""
    for node in list(old.outputs):
        for index, tensor in enumerate(node.inputs):
            if tensor is old:
                node.inputs[index] = new
