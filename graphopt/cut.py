"""Parts of a model: what lies between two cuts through its nodes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_graphsurgeon as gs

from graphopt.ir.clean import clean
from graphopt.ir.graph import Graph, bodies
from graphopt.model import Model

_FEEDABLE = frozenset(map(np.dtype, ["?", "f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8"]))


class Side:
    """A model whose main graph is cut between its nodes; a cut at n has n nodes before it.

    Args:
        model: In topological order; its nodes stay as they are, their weights may be replaced.
        prefix: What the inputs of a part have before their names.
    """

    def __init__(self, model: Model, prefix: str = "") -> None:
        self.prefix = prefix
        self._model = model
        self._nodes = list(model.graph.nodes)
        self._positions = {id(node): position for position, node in enumerate(self._nodes)}
        self._tensors: dict[str, gs.Tensor] = {}
        self._made: dict[str, int] = {}
        self._last: dict[str, int] = {}
        for position, node in enumerate(self._nodes):
            for tensor in _read(node):
                self._tensors[tensor.name] = tensor
                self._last[tensor.name] = position
            for tensor in node.outputs:
                self._tensors[tensor.name] = tensor
                self._made[tensor.name] = position

    def position(self, node: gs.Node) -> int:
        """Return how many nodes lie before a node of the main graph."""
        return self._positions[id(node)]

    def made(self, name: str) -> int:
        """Return the position of the node that makes a tensor."""
        return self._made[name]

    def crossing(self, cut: int) -> list[str]:
        """Return the tensors that are known before a cut and read behind it."""
        return [name for name, last in self._last.items() if self._made.get(name, -1) < cut <= last]

    def can_hold(self, cut: int) -> bool:
        """Whether all that crosses a cut can be taken out of the runtime and given back."""
        return all(self._tensors[name].dtype in _FEEDABLE for name in self.crossing(cut))

    def between(self, start: int, stop: int, outputs: Sequence[str]) -> Model:
        """Return a model of its own that makes tensors between two cuts from what crosses the first.

        Args:
            start: First cut.
            stop: Second cut.
            outputs: Names of tensors that are made between them, or cross the first.
        """
        graph, nodes = self._model.graph, self._nodes[start:stop]
        read = {tensor.name for node in nodes for tensor in _read(node)} | set(outputs)
        part = Graph(
            nodes=nodes,
            inputs=[self._tensors[name] for name in self.crossing(start) if name in read],
            outputs=[self._tensors[name] for name in outputs],
            name=graph.name,
            opset=graph.opset,
            import_domains=graph.import_domains,
            ir_version=graph.ir_version,
            functions=graph.functions,
        )
        copy = Model(part, self._model.residue).copy()
        clean(copy.graph)
        for tensor in copy.graph.inputs:
            tensor.name = self.prefix + tensor.name
            tensor.shape = None if tensor.shape is None else [None] * len(tensor.shape)
        return copy


def _read(node: gs.Node) -> list[gs.Tensor]:
    """Return the variables that a node reads, also those that its bodies take from outside."""
    found = [tensor for tensor in node.inputs if not isinstance(tensor, gs.Constant) and not tensor.is_empty()]
    for body in bodies(node):
        inner = {id(tensor) for each in body.nodes for tensor in each.outputs} | {id(tensor) for tensor in body.inputs}
        reads = [*(tensor for each in body.nodes for tensor in _read(each)), *body.outputs]
        found += [tensor for tensor in reads if id(tensor) not in inner and not isinstance(tensor, gs.Constant)]
    return found
