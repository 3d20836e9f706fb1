"""GraphSurgeon's classes, with room for what GraphSurgeon does not model.

GraphSurgeon drops metadata, doc strings, annotations and some attribute types on its way in. Each class here adds one
field, its *residue*: a proto of the same kind that holds every field that has no place in the GraphSurgeon object. The
exporter starts from the residue, so what nobody touched comes out as it went in.

GraphSurgeon compares nodes by content and tensors by name, which makes its own list operations slow and, with duplicate
names, wrong. Here equality is identity.

Passes may create plain ``gs.Node``, ``gs.Variable`` and ``gs.Constant`` objects; they simply have no residue.
"""

from __future__ import annotations

# mypy: disallow-subclassing-any=False
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from graphopt.ir.payload import StoredSparseTensor, StoredTensor, stored_bytes

Payload = StoredTensor | StoredSparseTensor | np.ndarray
StoredPayload = (StoredTensor, StoredSparseTensor)


@dataclass(frozen=True)
class OpaqueAttribute:
    """An attribute of a kind that GraphSurgeon has no type for (tensors, sparse tensors, types); carried verbatim."""

    proto: onnx.AttributeProto


class Node(gs.Node):
    """A node that remembers its doc string, metadata, overload and the protos of its attributes."""

    def __init__(self, *args: Any, residue: onnx.NodeProto | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.residue = residue
        self.attribute_origins: dict[str, tuple[Any, onnx.AttributeProto]] = {}

    __eq__ = object.__eq__
    __hash__ = object.__hash__


class Variable(gs.Variable):
    """A tensor known at run time only; `origin` is the ValueInfoProto it was read from."""

    def __init__(self, *args: Any, origin: onnx.ValueInfoProto | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.origin = origin

    __eq__ = object.__eq__
    __hash__ = object.__hash__


class Constant(gs.Constant):
    """A weight whose stored payload is kept when its values are looked at."""

    def __init__(self, name: str, values: Payload, *, origin: onnx.ValueInfoProto | None = None, **kwargs: Any) -> None:
        super().__init__(name, frozen(values), **kwargs)
        self.origin = origin

    __eq__ = object.__eq__
    __hash__ = object.__hash__

    @property
    def values(self) -> np.ndarray:
        """The values, read-only; assign an array to replace them."""
        return self._values.load() if isinstance(self._values, StoredPayload) else self._values

    @values.setter
    def values(self, values: Payload) -> None:
        self._values = frozen(values)


class Graph(gs.Graph):
    """A main graph or a body (If, Loop, Scan).

    Attributes:
        residue: GraphProto fields without a GraphSurgeon counterpart (metadata, quantization annotations).
        declared: The initializers in file order, used or not; decides which scope a shared constant is stored in.
        defaults: Initializers that a caller may override (also graph inputs, IR version 4 and later). Their tensors
            are Variables: nothing may be folded from them.
        listed: Names of constants that are also listed as graph inputs (IR version 3 and earlier), in file order.
        input_order: Names of all listed graph inputs in file order.
        initializer_order: Names of all initializers in file order, overridable or not.
        output_infos: Types of those outputs that are stated differently elsewhere: an input that is an output too, or a
            value of the graph around a body.
    """

    def __init__(self, *args: Any, residue: onnx.GraphProto | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.residue = residue if residue is not None else onnx.GraphProto()
        self.declared: list[gs.Constant] = []
        self.defaults: dict[str, Payload] = {}
        self.listed: dict[str, onnx.ValueInfoProto] = {}
        self.input_order: list[str] = []
        self.initializer_order: list[str] = []
        self.output_infos: dict[str, onnx.ValueInfoProto] = {}


class Function(gs.Function):
    """A model-local function; `residue` as in `Graph`."""

    def __init__(self, *args: Any, residue: onnx.FunctionProto | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.residue = residue if residue is not None else onnx.FunctionProto()
        self.attribute_origins: dict[str, tuple[Any, onnx.AttributeProto]] = {}

    @property
    def unique_id(self) -> tuple[str, str, str]:
        """Domain, name and overload, which together identify a function."""
        return (self.domain, self.name, self.residue.overload)


def declared(graph: gs.Graph) -> list[gs.Constant]:
    """Return the initializers the graph was read with; none for a graph that a pass made."""
    return graph.declared if isinstance(graph, Graph) else []


def payload(constant: gs.Constant) -> Payload:
    """Return what the constant holds, without loading it."""
    held: Payload = constant._values  # the one place where the private field is read
    return held


def frozen(values: Payload) -> Payload:
    """Return the payload so that nobody can write into it by mistake; the caller's own array stays as it is."""
    if isinstance(values, StoredPayload) or (isinstance(values, np.ndarray) and not values.flags.writeable):
        return values
    view = np.asarray(values).view()
    view.flags.writeable = False
    return view


def payload_bytes(constant: gs.Constant) -> int:
    """Return the bytes that the constant takes in a file."""
    held = payload(constant)
    if isinstance(held, StoredPayload):
        return held.nbytes
    if held.dtype == object:
        return sum(len(str(item).encode()) for item in held.flat)
    return stored_bytes(onnx.helper.np_dtype_to_tensor_dtype(held.dtype), held.shape)


def bodies(node: gs.Node) -> list[gs.Graph]:
    """Return the node's own subgraphs, in attribute order."""
    attributes = node.attrs
    return [value for value in attributes.values() if isinstance(value, gs.Graph)] if attributes else []


def walk_graphs(graph: gs.Graph) -> Iterator[gs.Graph]:
    """Yield the graph, then every body below it, depth first, without recursion limits on node count."""
    stack = [graph]
    while stack:
        current = stack.pop()
        yield current
        stack.extend(reversed([body for node in current.nodes for body in bodies(node)]))


def walk_nodes(graph: gs.Graph) -> Iterator[gs.Node]:
    """Yield every node of the graph and of its bodies."""
    for scope in walk_graphs(graph):
        yield from scope.nodes


def constants(graph: gs.Graph) -> list[gs.Constant]:
    """Return each constant that the graph or one of its bodies uses, once, in order of first use."""
    found: dict[int, gs.Constant] = {}
    for scope in walk_graphs(graph):
        for node in scope.nodes:
            for tensor in node.inputs:
                if isinstance(tensor, gs.Constant):
                    found.setdefault(id(tensor), tensor)
        for tensor in scope.outputs:
            if isinstance(tensor, gs.Constant):
                found.setdefault(id(tensor), tensor)
    return list(found.values())


def tensor_owners(graph: gs.Graph) -> dict[str, set[int]]:
    """Return, for every tensor name in the graph and its bodies, the ids of the tensors that have it."""
    owners: dict[str, set[int]] = {}
    for scope in walk_graphs(graph):
        ends = (tensor for node in scope.nodes for tensor in (*node.inputs, *node.outputs))
        for tensor in (*scope.inputs, *scope.outputs, *declared(scope), *ends):
            if tensor.name:
                owners.setdefault(tensor.name, set()).add(id(tensor))
    return owners


def tensor_names(graph: gs.Graph) -> set[str]:
    """Return every tensor name that is taken anywhere in the graph or its bodies."""
    return set(tensor_owners(graph))
