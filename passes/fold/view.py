"""The graph as rules see it: who reads what, in which scope, and which values and types are known."""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs

from graphopt.ir.graph import Constant, payload, payload_bytes, walk_graphs
from graphopt.model import Model
from graphopt.passes.fold.ints import Ints
from graphopt.passes.fold.sizes import constant_cost, node_cost
from graphopt.passes.fold.stated import stated_constant
from graphopt.passes.fold.values import ShapeValues
from graphopt.shapes import STANDARD_DOMAINS, TensorTypes, tensor_types

_MAX_SMALL = 1 << 20  # bytes; what a rule may look at element by element
_LOOKED_BACK = 32  # nodes


class View:
    """What is there.

    Args:
        model: The model; `look` must be called before anything else, and after edits that were not made here.

    Attributes:
        model: The model.
        types: Types that follow from the inputs alone; what the file says about inner tensors is not relied on.
        values: Integer vectors that are known in part, such as shapes.
    """

    def __init__(self, model: Model) -> None:
        self.model = model
        self.types = TensorTypes()
        self.values = ShapeValues(self.types)
        self._graph_of: dict[int, gs.Graph] = {}
        self._root_of: dict[int, gs.Graph] = {}
        self._results: dict[int, list[gs.Tensor]] = {}
        self._removed: dict[int, gs.Node] = {}
        self._stated: dict[int, tuple[gs.Node, gs.Constant | None]] = {}

    def look(self) -> None:
        """Bring types, values, scopes and results up to date."""
        self.types, _ = tensor_types(self.model, trust_file=False)
        self.values = ShapeValues(self.types)
        self._graph_of, self._root_of, self._results = {}, {}, {}
        for root in (self.model.graph, *self.model.graph.functions):
            for graph in walk_graphs(root):
                self._root_of[id(graph)] = root
                for tensor in graph.outputs:
                    self._results.setdefault(id(tensor), []).append(tensor)
                for node in graph.nodes:
                    self._graph_of[id(node)] = graph
                    self.values.learn(node, self.opset(node))

    def nodes(self) -> list[gs.Node]:
        """Return all nodes that have not been removed, outer scopes first."""
        roots = (self.model.graph, *self.model.graph.functions)
        scopes = [graph for root in roots for graph in walk_graphs(root)]
        return [node for graph in scopes for node in graph.nodes if id(node) not in self._removed]

    def graph_of(self, node: gs.Node) -> gs.Graph:
        """Return the graph, body or function that the node stands in."""
        return self._graph_of[id(node)]

    def root_of(self, node: gs.Node) -> gs.Graph:
        """Return the main graph or function that the node belongs to."""
        return self._root_of[id(self._graph_of[id(node)])]

    def opset(self, node: gs.Node) -> int:
        """Return the version of the standard operator set that holds for the node; 0 where none is imported."""
        return int(self.root_of(node).opset or 0)

    def in_function(self, node: gs.Node) -> bool:
        """Return whether the node belongs to a model-local function."""
        return isinstance(self.root_of(node), gs.Function)

    def is_alive(self, node: gs.Node) -> bool:
        """Return whether the node has not been removed."""
        return id(node) not in self._removed

    def is_result(self, tensor: gs.Tensor) -> bool:
        """Return whether the tensor is an output of the model, a body or a function."""
        return id(tensor) in self._results

    def uses(self, tensor: gs.Tensor) -> int:
        """Return how often the tensor is read, as an input or as a graph output."""
        return len(tensor.outputs) + len(self._results.get(id(tensor), ()))

    def is_unused(self, node: gs.Node) -> bool:
        """Return whether nobody reads what the node makes."""
        return not any(self.uses(tensor) for tensor in node.outputs if not tensor.is_empty())

    def producer(self, tensor: gs.Tensor) -> gs.Node | None:
        """Return the node that computes the tensor."""
        return tensor.inputs[0] if tensor.inputs else None

    def only_reader(self, node: gs.Node, tensor: gs.Tensor) -> bool:
        """Return whether the node alone reads the tensor, once and in the scope it is made in."""
        producer = self.producer(tensor)
        if self.uses(tensor) != 1 or producer is None or not tensor.outputs:
            return False
        return tensor.outputs[0] is node and self.graph_of(node) is self.graph_of(producer)

    def constant(self, tensor: gs.Tensor | None) -> gs.Constant | None:
        """Return the constant behind a tensor: itself, or the value of the Constant node that makes it."""
        if isinstance(tensor, gs.Constant):
            return tensor
        if tensor is None or not tensor.inputs:
            return None
        node = tensor.inputs[0]
        if node.op != "Constant" or not is_standard(node):
            return None
        if id(node) not in self._stated:
            self._stated[id(node)] = (node, stated_constant(node.attrs))
        return self._stated[id(node)][1]

    def array(self, tensor: gs.Tensor | None) -> np.ndarray | None:
        """Return the values of a constant; None for anything else."""
        found = self.constant(tensor)
        if found is None:
            return None
        values: np.ndarray = found.values if isinstance(found, Constant) else _load(found)
        return values

    def small_array(self, tensor: gs.Tensor | None) -> np.ndarray | None:
        """Return the values of a constant that is no larger than a megabyte."""
        found = self.constant(tensor)
        return None if found is None or payload_bytes(found) > _MAX_SMALL else self.array(tensor)

    def ints(self, tensor: gs.Tensor | None) -> list[int] | None:
        """Return the elements of an integer constant as a flat list."""
        values = self.small_array(tensor)
        if values is None or values.dtype.kind not in "iu":
            return None
        return [int(item) for item in values.reshape(-1)]

    def known(self, tensor: gs.Tensor) -> Ints | None:
        """Return what is known of an integer vector or scalar."""
        return self.values[tensor]

    def freed(self, node: gs.Node) -> int:
        """Return about how many bytes go with the node: what only it needs goes too."""
        total, stack, seen = 0, [node], {id(node)}
        while stack and len(seen) <= _LOOKED_BACK:
            current = stack.pop()
            total += node_cost(current)
            for tensor in current.inputs:
                if self.uses(tensor) != 1:
                    continue
                if isinstance(tensor, gs.Constant):
                    total += constant_cost(tensor)
                stack.extend(made for made in tensor.inputs if id(made) not in seen and len(made.outputs) == 1)
                seen.update(id(made) for made in tensor.inputs)
        return total


def is_standard(node: gs.Node) -> bool:
    """Return whether the operator is one of the ONNX standard."""
    return (node.domain or "") in STANDARD_DOMAINS


def label(node: gs.Node) -> str:
    """Return what a report calls the node: its name, or the first tensor it makes."""
    return str(node.name or next((tensor.name for tensor in node.outputs if tensor.name), node.op))


def _load(constant: gs.Constant) -> np.ndarray:
    held = payload(constant)
    return held if isinstance(held, np.ndarray) else held.load()
