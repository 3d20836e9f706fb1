"""What rules work on: edits, new constants and what they cost, and the operator set."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np
import onnx_graphsurgeon as gs

from graphopt.ir.graph import Constant, Node, Variable
from graphopt.model import Model
from graphopt.passes.fold.edits import Edits
from graphopt.passes.fold.opset import raise_opset
from graphopt.passes.fold.sizes import array_cost, constant_node_cost, node_cost, predicted_cost
from graphopt.passes.fold.view import is_standard, label

__all__ = ["Workbench", "is_standard", "label"]

_LISTED_INITIALIZERS = 3  # up to this IR version an initializer must be listed as a graph input
_REUSED = 256  # bytes


class Workbench(Edits):
    """A model under rewriting, with constants to be made.

    Args:
        model: Edited in place.
        budget: Bytes that rewrites may add before they have saved any.
        max_opset: Latest operator set that `raise_opset` goes to; 0 for none.
    """

    def __init__(self, model: Model, budget: int = 0, max_opset: int = 0) -> None:
        super().__init__(model, budget)
        self._max_opset = max_opset
        self._made: dict[Hashable, gs.Constant] = {}
        self._count = 0

    def raise_opset(self, nodes: Sequence[gs.Node], wanted: int) -> str:
        """Raise the operator set of the model for the sake of nodes that are about to be merged.

        Returns:
            Why it cannot be done; empty if it was, or is not needed.
        """
        if self.opset(nodes[0]) >= wanted:
            return ""
        if wanted > self._max_opset:
            return f"it takes operator set {wanted}, and max-opset is {self._max_opset}"
        saved = sum(node_cost(node) for node in nodes[1:])
        return raise_opset(self, wanted, max(self.budget, 0) + saved)

    def new_constant(self, kind: str, values: np.ndarray, beside: gs.Node) -> gs.Tensor:
        """Return a tensor with the given values for a node to read.

        Args:
            kind: What it is, for its name; kept short, since names are part of the file.
            values: Equal small vectors of one kind become one constant.
            beside: The node.
        """
        key = self._key_of(kind, values, beside)
        if key in self._made:
            return self._made[key]
        constant = Constant(self.free_name(self.constant_name(kind)), values)
        self._count += 1
        if self.must_list_initializers(beside):
            variable = Variable(constant.name, np.dtype(values.dtype), list(values.shape))
            return self.constant_node(constant, variable, beside)
        self.budget -= self._cost_of(constant.name, values, by_node=self.in_function(beside))
        if values.nbytes <= _REUSED:
            self._made[key] = constant
        return constant

    def constant_name(self, kind: str) -> str:
        """Return the name that the next new constant of a kind wants."""
        return f"{kind}{self._count + 1}"

    def holds(self, kind: str, values: np.ndarray, beside: gs.Node) -> bool:
        """Whether there is such a constant already."""
        return self._key_of(kind, values, beside) in self._made

    def _key_of(self, kind: str, values: np.ndarray, beside: gs.Node) -> Hashable:
        content = values.tobytes() if values.nbytes <= _REUSED else None  # None: never there already
        return kind, id(self.root_of(beside)), values.dtype.name, values.shape, content

    def constant_node(self, value: gs.Constant, output: gs.Tensor, beside: gs.Node) -> gs.Tensor:
        """Put a Constant node that makes `output` beside another node."""
        self.add(Node("Constant", "", {"value": value}, [], [output]), beside)
        return output

    def value_cost(self, tensor: gs.Tensor, values: np.ndarray) -> int:
        """Return how many bytes `make_constant` puts into the file."""
        return self._cost_of(tensor.name, values, by_node=self._is_written_as_node(tensor))

    def predicted_cost(self, tensor: gs.Tensor) -> int | None:
        """Return the same before the values are known; None where their number or type is not."""
        if not self._is_written_as_node(tensor):
            return predicted_cost(tensor.name, self.types[tensor])
        unnamed = predicted_cost("", self.types[tensor])
        return None if unnamed is None else constant_node_cost(tensor.name, unnamed)

    def _cost_of(self, name: str, values: np.ndarray, *, by_node: bool) -> int:
        return constant_node_cost(name, array_cost("", values)) if by_node else array_cost(name, values)

    def make_constant(self, tensor: gs.Tensor, values: np.ndarray) -> None:
        """Put a value in the place of a computed tensor.

        A graph output keeps its name and its scope, so it is made by a Constant node.
        """
        producer = tensor.inputs[0]
        readers = list(tensor.outputs)
        cost = self.value_cost(tensor, values)
        self._detach(tensor, producer)
        if self.is_result(tensor) or self.must_list_initializers(producer):
            self.constant_node(Constant("", values), tensor, producer)
            self.touch(readers)
        else:
            self.budget -= cost
            self.redirect(tensor, Constant(tensor.name, values))

    def _is_written_as_node(self, tensor: gs.Tensor) -> bool:
        """Whether a value in the place of a computed tensor ends up in a Constant node: functions have nothing else."""
        producer = tensor.inputs[0]
        return self.is_result(tensor) or self.in_function(producer) or self.must_list_initializers(producer)

    def must_list_initializers(self, node: gs.Node) -> bool:
        """Whether an initializer beside the node would have to be a graph input as well."""
        return (self.model.graph.ir_version or 0) <= _LISTED_INITIALIZERS and not self.in_function(node)

    def _detach(self, tensor: gs.Tensor, producer: gs.Node) -> None:
        """Take a tensor from its producer, which goes too unless it makes something else."""
        if all(other is tensor or not self.uses(other) for other in producer.outputs):
            self.remove(producer)
            return
        position = next(i for i, other in enumerate(producer.outputs) if other is tensor)
        producer.outputs[position] = Variable(self.free_name(tensor.name))
