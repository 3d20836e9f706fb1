"""From GraphSurgeon back to protobuf, starting from each object's residue.

Where the bytes of the weights go is the caller's choice: a `PayloadWriter` turns a named payload into a TensorProto,
inline or as a reference to somewhere else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from onnx import numpy_helper

from graphopt.errors import ModelError
from graphopt.ir.graph import (
    Constant,
    Function,
    Graph,
    OpaqueAttribute,
    Payload,
    bodies,
    declared,
    payload,
    tensor_names,
    tensor_owners,
    walk_graphs,
    walk_nodes,
)
from graphopt.ir.importer import make_variable
from graphopt.ir.payload import StoredSparseTensor, StoredTensor

PayloadWriter = Callable[[str, StoredTensor | np.ndarray], onnx.TensorProto]


def inline(name: str, held: StoredTensor | np.ndarray) -> onnx.TensorProto:
    """Write the payload into the proto itself."""
    if isinstance(held, np.ndarray):
        return numpy_helper.from_array(held, name)
    proto = onnx.TensorProto()
    if held.is_external:
        copy_tensor_header(held.tensor, proto)
        proto.raw_data = held.raw_bytes().tobytes()
    else:
        proto.CopyFrom(held.tensor)
    if proto.name != name:
        proto.name = name
    return proto


def copy_tensor_header(source: onnx.TensorProto, target: onnx.TensorProto) -> None:
    """Copy everything but the bytes and where they lie."""
    target.dims.extend(source.dims)
    target.data_type = source.data_type
    target.name = source.name
    if source.HasField("doc_string"):
        target.doc_string = source.doc_string
    target.metadata_props.extend(source.metadata_props)


def export_graph(graph: gs.Graph, residue: onnx.ModelProto, write: PayloadWriter = inline) -> onnx.ModelProto:
    """Return the ModelProto of a main graph.

    Args:
        graph: Main graph.
        residue: ModelProto fields without a GraphSurgeon counterpart.
        write: Where the bytes of dense weights go. Attributes are always written inline.

    Raises:
        ModelError: Something cannot be expressed in ONNX.
    """
    model = onnx.ModelProto()
    model.CopyFrom(residue)
    _Exporter(graph, write).fill(model)
    return model


class _Exporter:
    def __init__(self, graph: gs.Graph, write: PayloadWriter) -> None:
        self._graph = graph
        self._write = write
        self._homes = constant_homes(graph)
        self._names = self._unique_names()

    def fill(self, model: onnx.ModelProto) -> None:
        graph = self._graph
        if graph.ir_version is not None:
            model.ir_version = graph.ir_version
        if graph.producer_name:
            model.producer_name = graph.producer_name
        if graph.producer_version:
            model.producer_version = graph.producer_version
        model.opset_import.extend(opset_imports(graph))
        self._fill_graph(graph, model.graph)
        model.functions.extend(self._function(function) for function in graph.functions)

    def _unique_names(self) -> dict[int, str]:
        """Names for constants that are new in their scope while another tensor somewhere has their name."""
        moved: list[gs.Constant] = []
        for scope in walk_graphs(self._graph):
            kept = {id(constant) for constant in declared(scope)}
            moved.extend(constant for constant in self._homes[id(scope)] if id(constant) not in kept)
        if not moved:
            return {}
        owners = tensor_owners(self._graph)
        taken = set(owners)
        return {id(c): unique_name(c.name, taken) for c in moved if len(owners[c.name]) > 1}

    def _name(self, tensor: gs.Tensor) -> str:
        return self._names.get(id(tensor), tensor.name)

    def _fill_graph(self, graph: gs.Graph, proto: onnx.GraphProto) -> None:
        if isinstance(graph, Graph):
            proto.CopyFrom(graph.residue)
        if graph.name:
            proto.name = graph.name
        if graph.doc_string:
            proto.doc_string = graph.doc_string
        self._fill_initializers(graph, proto)
        proto.node.extend(self._node(node) for node in graph.nodes)
        proto.input.extend(self._inputs(graph))
        proto.output.extend(self._value_info(tensor) for tensor in graph.outputs)
        proto.value_info.extend(self._inner_value_infos(graph))
        if proto.quantization_annotation:
            kept = [a for a in proto.quantization_annotation if a.tensor_name in tensor_names(graph)]
            del proto.quantization_annotation[:]
            proto.quantization_annotation.extend(kept)

    def _fill_initializers(self, graph: gs.Graph, proto: onnx.GraphProto) -> None:
        for constant in self._homes[id(graph)]:
            self._fill_initializer(self._name(constant), payload(constant), proto)
        for name, held in getattr(graph, "defaults", {}).items():
            self._fill_initializer(name, held, proto)

    def _fill_initializer(self, name: str, held: Payload, proto: onnx.GraphProto) -> None:
        if isinstance(held, StoredSparseTensor):
            sparse = proto.sparse_initializer.add()
            sparse.CopyFrom(held.tensor)
            sparse.values.name = name
        else:
            proto.initializer.append(self._write(name, held))

    def _inputs(self, graph: gs.Graph) -> list[onnx.ValueInfoProto]:
        infos = {tensor.name: self._value_info(tensor) for tensor in graph.inputs}
        if not isinstance(graph, Graph):
            return list(infos.values())
        stored = {constant.name for constant in self._homes[id(graph)]}
        infos |= {name: info for name, info in graph.listed.items() if name in stored}
        ordered = [name for name in graph.input_order if name in infos]
        return [infos[name] for name in dict.fromkeys([*ordered, *infos])]

    def _inner_value_infos(self, graph: gs.Graph) -> list[onnx.ValueInfoProto]:
        """Types of the graph's own inner tensors, in order of first appearance.

        Only for tensors whose type the file stated: inferred types would make it larger.
        """
        shown = {tensor.name for tensor in (*graph.inputs, *graph.outputs)}
        infos: dict[str, onnx.ValueInfoProto] = {}
        inner = [tensor for node in graph.nodes for tensor in node.outputs]
        for tensor in (*self._homes[id(graph)], *inner):
            if tensor.name in shown or tensor.name in infos or tensor.is_empty():
                continue
            if isinstance(tensor, gs.Constant):
                origin = tensor.origin if isinstance(tensor, Constant) else None
                if origin is not None and tensor.name not in getattr(graph, "listed", {}):
                    infos[tensor.name] = self._value_info(tensor)
            elif getattr(tensor, "origin", None) is not None:
                infos[tensor.name] = self._value_info(tensor)
        return list(infos.values())

    def _value_info(self, tensor: gs.Tensor) -> onnx.ValueInfoProto:
        return value_info(tensor, self._name(tensor))

    def _node(self, node: gs.Node) -> onnx.NodeProto:
        proto = onnx.NodeProto()
        residue = getattr(node, "residue", None)
        if residue is not None:
            proto.CopyFrom(residue)
        proto.op_type = node.op
        if node.name:
            proto.name = node.name
        if node.domain is not None:
            proto.domain = node.domain
        proto.input.extend(self._name(tensor) for tensor in node.inputs)
        proto.output.extend(tensor.name for tensor in node.outputs)
        origins = getattr(node, "attribute_origins", {})
        for name, value in node.attrs.items():
            self._fill_attribute(name, value, origins.get(name), proto.attribute.add())
        return proto

    def _fill_attribute(
        self, name: str, value: Any, origin: tuple[Any, onnx.AttributeProto] | None, proto: onnx.AttributeProto
    ) -> None:
        if origin is not None and not isinstance(value, (gs.Graph, gs.Tensor)) and _same(value, origin[0]):
            proto.CopyFrom(origin[1])
            return
        if origin is not None and origin[1].doc_string:
            proto.doc_string = origin[1].doc_string
        proto.name = name
        if isinstance(value, OpaqueAttribute):
            proto.CopyFrom(value.proto)
        elif isinstance(value, gs.Graph):
            proto.type = onnx.AttributeProto.GRAPH
            self._fill_graph(value, proto.g)
        elif isinstance(value, gs.Constant):
            proto.type = onnx.AttributeProto.TENSOR
            held = payload(value)
            if isinstance(held, StoredSparseTensor):
                raise ModelError(f"attribute '{name}' holds a sparse tensor where a dense one is needed")
            proto.t.CopyFrom(inline(value.name, held))
        else:
            proto.MergeFrom(_plain_attribute(name, value))

    def _function(self, function: gs.Function) -> onnx.FunctionProto:
        proto = onnx.FunctionProto()
        if isinstance(function, Function):
            proto.CopyFrom(function.residue)
        proto.name, proto.domain = function.name, function.domain or ""
        if function.doc_string:
            proto.doc_string = function.doc_string
        proto.input.extend(tensor.name for tensor in function.inputs)
        proto.output.extend(tensor.name for tensor in function.outputs)
        exporter = _Exporter(function, inline)
        for constant in exporter._homes[id(function)]:
            proto.node.append(_constant_node(constant))
        proto.node.extend(exporter._node(node) for node in function.nodes)
        proto.value_info.extend(exporter._inner_value_infos(function))
        proto.opset_import.extend(opset_imports(function))
        origins = getattr(function, "attribute_origins", {})
        for name, value in function.attrs.items():
            if value is None:
                proto.attribute.append(name)
            else:
                exporter._fill_attribute(name, value, origins.get(name), proto.attribute_proto.add())
        return proto


def constant_homes(graph: gs.Graph) -> dict[int, list[gs.Constant]]:
    """Decide which scope stores each constant: where the file had it, else the innermost scope around all its users.

    Returns:
        For the id of each scope its constants: those of the file in file order, then new ones in order of first use.
        Declared constants that nobody uses stay where they were.
    """
    parents: dict[int, gs.Graph | None] = {id(graph): None}
    depth: dict[int, int] = {id(graph): 0}
    order: list[gs.Graph] = []
    lowest: dict[int, tuple[gs.Constant, gs.Graph]] = {}

    def ancestor(a: gs.Graph, b: gs.Graph) -> gs.Graph:
        while a is not b:
            if depth[id(a)] < depth[id(b)]:
                a, b = b, a
            parent = parents[id(a)]
            assert parent is not None
            a = parent
        return a

    stack = [graph]
    while stack:
        scope = stack.pop()
        order.append(scope)
        for tensor in _uses(scope):
            _, other = lowest.get(id(tensor), (tensor, scope))
            lowest[id(tensor)] = (tensor, ancestor(scope, other))
        for body in reversed([body for node in scope.nodes for body in bodies(node)]):
            parents[id(body)], depth[id(body)] = scope, depth[id(scope)] + 1
            stack.append(body)

    homes: dict[int, list[gs.Constant]] = {id(scope): [] for scope in order}
    placed: set[int] = set()
    for scope in order:
        for constant in declared(scope):
            _, user = lowest.get(id(constant), (constant, scope))
            if id(constant) not in placed and ancestor(scope, user) is scope:
                homes[id(scope)].append(constant)
                placed.add(id(constant))
    for constant, scope in lowest.values():
        if id(constant) not in placed:
            homes[id(scope)].append(constant)
    return homes


def _uses(scope: gs.Graph) -> Iterator[gs.Constant]:
    for node in scope.nodes:
        yield from (tensor for tensor in node.inputs if isinstance(tensor, gs.Constant))
    yield from (tensor for tensor in scope.outputs if isinstance(tensor, gs.Constant))


def value_info(tensor: gs.Tensor, name: str) -> onnx.ValueInfoProto:
    """Return the ValueInfoProto of a tensor; the one it was read from if type and shape still agree with it."""
    origin = getattr(tensor, "origin", None)
    shape = list(tensor.shape) if tensor.shape is not None else None
    if origin is not None:
        then = make_variable(name, origin)
        if isinstance(tensor, gs.Constant) or (then.dtype == tensor.dtype and then.shape == shape):
            info = onnx.ValueInfoProto()
            info.CopyFrom(origin)
            info.name = name
            return info
    if tensor.dtype is None:
        return onnx.helper.make_empty_tensor_value_info(name)
    info = onnx.helper.make_tensor_value_info(name, onnx.helper.np_dtype_to_tensor_dtype(np.dtype(tensor.dtype)), shape)
    if origin is not None:
        info.doc_string = origin.doc_string
        info.metadata_props.extend(origin.metadata_props)
    return info


def opset_imports(graph: gs.Graph) -> list[onnx.OperatorSetIdProto]:
    """Return the imports, with the graph's opset and version 1 of each domain that a pass started to use."""
    imports = []
    for item in graph.import_domains or [onnx.helper.make_opsetid("", graph.opset)]:
        kept = onnx.OperatorSetIdProto()
        kept.CopyFrom(item)
        if item.domain in ("", "ai.onnx") and graph.opset:
            kept.version = graph.opset
        imports.append(kept)
    known = {"" if item.domain == "ai.onnx" else item.domain for item in imports}
    used = {"" if node.domain in (None, "ai.onnx") else node.domain for node in walk_nodes(graph)}
    imports.extend(onnx.helper.make_opsetid(domain, 1) for domain in sorted(used - known) if domain == "com.microsoft")
    return imports


def unique_name(wanted: str, taken: set[str]) -> str:
    """Return `wanted`, or `wanted_1`, `wanted_2` ..., whichever is free, and take it."""
    name, number = wanted, 0
    while name in taken:
        number += 1
        name = f"{wanted}_{number}"
    taken.add(name)
    return name


def _constant_node(constant: gs.Constant) -> onnx.NodeProto:
    held = payload(constant)
    if isinstance(held, StoredSparseTensor):
        return onnx.helper.make_node("Constant", [], [constant.name], sparse_value=held.tensor)
    return onnx.helper.make_node("Constant", [], [constant.name], value=inline(constant.name, held))


def _plain_attribute(name: str, value: Any) -> onnx.AttributeProto:
    if isinstance(value, gs.Node.AttributeRef):
        kinds = {float: "FLOAT", int: "INT", str: "STRING", gs.Tensor: "TENSOR", gs.Graph: "GRAPH"}
        if value.type not in kinds:
            raise ModelError(f"attribute '{name}' refers to '{value.name}' with an unknown type")
        kind = onnx.AttributeProto.AttributeType.Value(kinds[value.type])
        return onnx.AttributeProto(name=name, ref_attr_name=value.name, type=kind)
    if isinstance(value, np.ndarray):
        return onnx.helper.make_attribute(name, numpy_helper.from_array(value, name))
    if isinstance(value, list) and not value:
        raise ModelError(f"attribute '{name}' is an empty list, whose type ONNX cannot tell")
    return onnx.helper.make_attribute(name, value)


def _same(value: Any, origin: Any) -> bool:
    return type(value) is type(origin) and bool(value == origin)
