"""What follows if a tensor had a certain type: types and shape values, carried forward node by node."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

import onnx
import onnx_graphsurgeon as gs

from graphopt.ir.graph import bodies
from graphopt.passes.fold.evaluate import attribute_proto
from graphopt.passes.fold.ints import Ints
from graphopt.passes.fold.values import ShapeValues
from graphopt.passes.fold.workbench import Workbench, is_standard
from graphopt.shapes import TensorType, TensorTypes, read_type

_MAX_NODES = 64  # further away nothing is decided


class _Types(TensorTypes):
    """The types that follow from an assumption, on top of those that are known."""

    def __init__(self, known: TensorTypes) -> None:
        super().__init__()
        self._known = known

    def __getitem__(self, tensor: gs.Tensor) -> TensorType:
        return self._types[id(tensor)][1] if id(tensor) in self._types else self._known[tensor]


class _Values(ShapeValues):
    """The same for shape values."""

    def __init__(self, types: TensorTypes, known: ShapeValues) -> None:
        super().__init__(types)
        self._known = known

    def __getitem__(self, tensor: gs.Tensor) -> Ints | None:
        own = super().__getitem__(tensor)
        return self._known[tensor] if own is None else own


class Assumption:
    """Types that some tensors are assumed to have, and what the nodes after them make of that.

    Args:
        assumed: Type by tensor.
        bench: The graph.
    """

    def __init__(self, assumed: Iterable[tuple[gs.Tensor, TensorType]], bench: Workbench) -> None:
        self._bench = bench
        self._types = _Types(bench.types)
        self._values = _Values(self._types, bench.values)
        self._start = []
        for tensor, known in assumed:
            self._types[tensor] = known
            self._start.append(tensor)

    def contradicts(self, graph: gs.Graph) -> str:
        """Return which node of the graph gets what the ONNX standard forbids, and why; empty if none does.

        Nodes in bodies do not count unless their branch is certain to be taken: they may never run.
        """
        for node in _after(self._start, graph, self._bench):
            try:
                self._carry(node)
            except onnx.shape_inference.InferenceError as error:
                if _is_needed(node, self._bench):
                    return " ".join(str(error).split())
        return ""

    def _carry(self, node: gs.Node) -> None:
        if not is_standard(node):
            return
        if node.op == "If":
            self._carry_branch(node)
        elif not any(bodies(node)):
            self._infer(node)
            self._values.learn(node, self._bench.opset(node))

    def _carry_branch(self, node: gs.Node) -> None:
        condition = self._values[node.inputs[0]]
        if condition is None or condition.numbers is None:
            return
        branch = node.attrs.get("then_branch" if condition.numbers[0] else "else_branch")
        if isinstance(branch, gs.Graph):
            for inner in branch.nodes:
                self._carry(inner)
            for source, target in zip(branch.outputs, node.outputs, strict=False):
                self._types[target] = self._types[source]

    def _infer(self, node: gs.Node) -> None:
        """Infer the types of a node's outputs.

        Raises:
            InferenceError: The node does not take such inputs.
        """
        inputs = {f"i{index}": tensor for index, tensor in enumerate(node.inputs) if not tensor.is_empty()}
        types = {name: _type_proto(self._types[tensor]) for name, tensor in inputs.items()}
        stated = {name: kind for name, kind in types.items() if kind is not None}
        if len(stated) < len(types):
            return
        opset = self._bench.opset(node)
        names = ["" if tensor.is_empty() else f"i{index}" for index, tensor in enumerate(node.inputs)]
        proto = onnx.NodeProto(op_type=node.op, input=names, output=[f"o{i}" for i, _ in enumerate(node.outputs)])
        proto.attribute.extend(attribute_proto(name, value) for name, value in node.attrs.items())
        found = onnx.shape_inference.infer_node_outputs(
            onnx.defs.get_schema(node.op, opset, ""),
            proto,
            stated,
            self._data(inputs),
            opset_imports=[onnx.helper.make_opsetid("", opset)],
        )
        for index, tensor in enumerate(node.outputs):
            if f"o{index}" in found:
                self._types[tensor] = read_type(found[f"o{index}"])

    def _data(self, inputs: Mapping[str, gs.Tensor]) -> dict[str, onnx.TensorProto]:
        arrays = {name: self._bench.small_array(tensor) for name, tensor in inputs.items()}
        return {name: onnx.numpy_helper.from_array(values) for name, values in arrays.items() if values is not None}


def _after(start: Iterable[gs.Tensor], graph: gs.Graph, bench: Workbench) -> Iterator[gs.Node]:
    """Yield the nodes of a graph that depend on the tensors, each after what it reads, up to a limit."""
    reached = {id(tensor) for tensor in start}
    waiting = [node for tensor in start for node in tensor.outputs]
    seen: dict[int, gs.Node] = {}
    while waiting and len(seen) < _MAX_NODES:
        node = waiting.pop(0)
        if id(node) not in seen and bench.is_alive(node) and bench.graph_of(node) is graph:
            seen[id(node)] = node
            waiting.extend(user for tensor in node.outputs for user in tensor.outputs)
    pending = list(seen.values())
    made = {id(tensor) for node in pending for tensor in node.outputs}
    while pending:
        ready = [node for node in pending if all(id(t) in reached or id(t) not in made for t in _reads(node))]
        if not ready:
            return
        yield from ready
        reached.update(id(tensor) for node in ready for tensor in node.outputs)
        pending = [node for node in pending if all(node is not other for other in ready)]


def _is_needed(node: gs.Node, bench: Workbench) -> bool:
    """Return whether an output of the graph depends on the node; one that it does not is free to go unnoticed."""
    waiting, seen = [node], {id(node)}
    while waiting:
        made = waiting.pop().outputs
        if any(bench.is_result(tensor) for tensor in made):
            return True
        users = [user for tensor in made for user in tensor.outputs if id(user) not in seen]
        seen.update(id(user) for user in users)
        waiting.extend(users)
    return False


def _reads(node: gs.Node) -> Iterator[gs.Tensor]:
    """Yield what a node and the nodes in its bodies read."""
    yield from node.inputs
    for body in bodies(node):
        yield from body.outputs
        for inner in body.nodes:
            yield from _reads(inner)


def _type_proto(known: TensorType) -> onnx.TypeProto | None:
    if known.dtype is None:
        return None
    return onnx.helper.make_tensor_type_proto(onnx.helper.np_dtype_to_tensor_dtype(known.dtype), known.shape)
