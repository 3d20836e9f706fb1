"""Edits of the graph that keep names and scopes right, and a queue of the nodes to look at after them."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

import onnx_graphsurgeon as gs

from graphopt.ir.clean import clean, disconnect
from graphopt.ir.graph import Variable, bodies, tensor_names, walk_graphs, walk_nodes
from graphopt.ir.placement import unique_name
from graphopt.model import Model
from graphopt.passes.fold.sizes import node_cost
from graphopt.passes.fold.view import View
from graphopt.shapes import TensorType

_FEW = 64  # readers of one tensor


class Edits(View):
    """A model under rewriting.

    Args:
        model: Edited in place.
        budget: Bytes that rewrites may add before they have saved any.

    Attributes:
        budget: About how many bytes the rewrites so far have saved.
    """

    def __init__(self, model: Model, budget: int = 0) -> None:
        super().__init__(model)
        self.budget = budget
        self._names: set[str] | None = None
        self._defined: dict[int, set[str]] = {}
        self._queue: deque[gs.Node] = deque()
        self._queued: set[int] = set()
        self._edited = False

    def refresh(self) -> None:
        """Bring order, types and values up to date after rewrites, and queue every node."""
        if self._edited:
            clean(self.model.graph)
        self._edited, self._removed, self._defined = False, {}, {}
        self.look()
        self._queue.clear()
        self._queued.clear()
        self.touch(self.nodes())

    def touch(self, nodes: Iterable[gs.Node]) -> None:
        """Queue nodes for (another) look."""
        for node in nodes:
            if id(node) not in self._queued and id(node) not in self._removed:
                self._queued.add(id(node))
                self._queue.append(node)

    def next(self) -> gs.Node | None:
        """Return the next node to look at."""
        while self._queue:
            node = self._queue.popleft()
            self._queued.discard(id(node))
            if id(node) not in self._removed:
                return node
        return None

    def bypass(self, node: gs.Node, source: gs.Tensor) -> str:
        """Let the users of the node's first output read `source`, and remove the node.

        Where that output is a graph output its name stays: the producer of `source` takes it over.

        Returns:
            Why it cannot be done; empty if it was.
        """
        target = node.outputs[0]
        if not self.is_result(target):
            self.remove(node)
            self.redirect(target, source)
            return ""
        producer = self.producer(source)
        if producer is None or isinstance(source, gs.Constant):
            return "it makes a graph output from an input or a constant"
        if self.graph_of(producer) is not self.graph_of(node):
            return "it makes an output of its body from a value outside"
        if self.is_result(source):
            return "it gives one value two output names"
        self.remove(node)
        self.take_over(producer, source, target)
        return ""

    def take_over(self, producer: gs.Node, source: gs.Tensor, target: gs.Tensor) -> None:
        """Let `producer` make `target` instead of `source`, and everybody read it."""
        position = next(i for i, tensor in enumerate(producer.outputs) if tensor is source)
        producer.outputs[position] = target
        self.redirect(source, target)
        self.touch([producer])

    def redirect(self, old: gs.Tensor, new: gs.Tensor) -> None:
        """Let every node that reads `old` read `new`."""
        readers = list({id(node): node for node in old.outputs}.values())
        for node in readers:
            for index, tensor in enumerate(node.inputs):
                if tensor is old:
                    node.inputs[index] = new
        beside = new.outputs if len(new.outputs) <= _FEW else ()  # the next round comes to the rest
        self.touch([*readers, *new.inputs, *beside])

    def set_input(self, node: gs.Node, index: int, tensor: gs.Tensor) -> None:
        """Let the node read `tensor` as its input number `index`, which may be the next one after the last."""
        if index == len(node.inputs):
            node.inputs.append(tensor)
        else:
            old = node.inputs[index]
            node.inputs[index] = tensor
            self.touch(old.inputs)
        self.touch([node])

    def remove(self, node: gs.Node) -> None:
        """Take the node, with its bodies, out of the graph."""
        self.budget += node_cost(node)
        gone = [node, *(inner for body in bodies(node) for inner in walk_nodes(body))]
        for inner in gone:
            self.touch(producer for tensor in inner.inputs for producer in tensor.inputs)
            self._removed[id(inner)] = inner
        for scope in (scope for body in bodies(node) for scope in walk_graphs(body)):
            self._forget_results(scope)
        disconnect(node)
        self._edited = True

    def add(self, node: gs.Node, beside: gs.Node) -> None:
        """Put a new node into the graph of another one; order comes later."""
        self.put(node, self.graph_of(beside))

    def put(self, node: gs.Node, graph: gs.Graph) -> None:
        """Put a new node into a graph; order comes later."""
        graph.nodes.append(node)
        self._graph_of[id(node)] = graph
        self._edited = True
        self.budget -= node_cost(node)
        self.touch([node])

    def move_out(self, body: gs.Graph, node: gs.Node) -> list[gs.Node]:
        """Move the nodes of a node's body into the graph around it, and return them.

        What they make is renamed where its name is taken there. The outputs of the body are no outputs any more.
        """
        graph = self.graph_of(node)
        taken = self._names_in(graph)
        moved = [inner for inner in body.nodes if id(inner) not in self._removed]
        body.nodes.clear()
        self._forget_results(body)
        for inner in moved:
            for tensor in inner.outputs:
                if tensor.name in taken:
                    tensor.name = self.free_name(tensor.name)
                taken.add(tensor.name)
            self.put(inner, graph)
            for scope in (scope for inside in bodies(inner) for scope in walk_graphs(inside)):
                self._root_of[id(scope)] = self._root_of[id(graph)]
        return moved

    def drop_output(self, graph: gs.Graph, position: int) -> None:
        """Take an output off a body; what made it stays."""
        tensor = graph.outputs.pop(position)
        rest = [other for other in graph.outputs if other is tensor]
        if rest:
            self._results[id(tensor)] = rest
        else:
            self._results.pop(id(tensor), None)
        self._edited = True
        self.touch(tensor.inputs)

    def _names_in(self, graph: gs.Graph) -> set[str]:
        """Return what a graph defines, or did since `refresh`: collected once, for many may move in."""
        if id(graph) not in self._defined:
            made = {tensor.name for node in graph.nodes for tensor in node.outputs}
            self._defined[id(graph)] = made | {tensor.name for tensor in graph.inputs}
        return self._defined[id(graph)]

    def _forget_results(self, graph: gs.Graph) -> None:
        for tensor in graph.outputs:
            self._results.pop(id(tensor), None)

    def free_name(self, wanted: str) -> str:
        """Return a tensor name that is not taken, and take it."""
        if self._names is None:
            roots = (self.model.graph, *self.model.graph.functions)
            self._names = set().union(*(tensor_names(root) for root in roots))
        return unique_name(wanted, self._names)

    def new_variable(self, name: str, known: TensorType) -> gs.Variable:
        """Return a new inner tensor."""
        shape = None if known.shape is None else list(known.shape)
        variable = Variable(self.free_name(name), known.dtype, shape)
        self.types[variable] = known
        return variable
