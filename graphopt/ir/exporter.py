"""From GraphSurgeon back to protobuf, starting from each object's residue.

Where the bytes of the weights go is the caller's choice: a `PayloadWriter` turns a named payload into a TensorProto,
inline or as a reference to somewhere else.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from graphopt.errors import ModelError
from graphopt.ir.attributes import plain_attribute, same_value
from graphopt.ir.graph import (
    Function,
    Graph,
    OpaqueAttribute,
    payload,
    walk_nodes,
)
from graphopt.ir.infos import as_stated, output_info, value_info
from graphopt.ir.payload import StoredSparseTensor, StoredTensor
from graphopt.ir.placement import changed_names, constant_homes, unique_name
from graphopt.ir.tensors import inline

__all__ = [
    "PayloadWriter",
    "export_graph",
    "inline",
    "opset_imports",
    "output_info",
    "unique_name",
    "value_info",
]

_OVERRIDABLE = 4  # IR version
PayloadWriter = Callable[[str, StoredTensor | np.ndarray], onnx.TensorProto]


def export_graph(
    graph: gs.Graph,
    residue: onnx.ModelProto,
    write: PayloadWriter = inline,
    write_attribute: PayloadWriter = inline,
) -> onnx.ModelProto:
    """Return the ModelProto of a main graph.

    Args:
        graph: Main graph.
        residue: ModelProto fields without a GraphSurgeon counterpart.
        write: Where the bytes of initializers go.
        write_attribute: Where the bytes of tensors in attributes go; runtimes want them inline.

    Raises:
        ModelError: Something cannot be expressed in ONNX.
    """
    model = onnx.ModelProto()
    model.CopyFrom(residue)
    _Exporter(graph, write, write_attribute).fill(model)
    return model


class _Exporter:
    def __init__(self, graph: gs.Graph, write: PayloadWriter, write_attribute: PayloadWriter) -> None:
        self._graph = graph
        self._write = write
        self._write_attribute = write_attribute
        self._homes = constant_homes(graph)
        self._names = changed_names(graph, self._homes)

    def fill(self, model: onnx.ModelProto) -> None:
        graph = self._graph
        if graph.ir_version:
            model.ir_version = graph.ir_version
        if graph.producer_name:
            model.producer_name = graph.producer_name
        if graph.producer_version:
            model.producer_version = graph.producer_version
        model.opset_import.extend(opset_imports(graph))
        self._fill_graph(graph, model.graph)
        model.functions.extend(self._function(function) for function in graph.functions)

    def _name(self, tensor: gs.Tensor) -> str:
        return self._names.get(id(tensor)) or str(tensor.name)

    def _fill_graph(self, graph: gs.Graph, proto: onnx.GraphProto) -> None:
        if isinstance(graph, Graph):
            proto.CopyFrom(graph.residue)
        if graph.name:
            proto.name = graph.name
        if graph.doc_string:
            proto.doc_string = graph.doc_string
        self._fill_initializers(graph, proto)
        for node in graph.nodes:
            self._fill_node(node, proto.node.add())
        proto.input.extend(self._inputs(graph))
        proto.output.extend(output_info(graph, tensor, self._name(tensor)) for tensor in graph.outputs)
        proto.value_info.extend(self._inner_value_infos(graph))

    def _fill_initializers(self, graph: gs.Graph, proto: onnx.GraphProto) -> None:
        stored = [(constant.name, self._name(constant), payload(constant)) for constant in self._homes[id(graph)]]
        if isinstance(graph, Graph):
            names = {tensor.name: self._name(tensor) for tensor in graph.inputs}
            stored += [(name, names.get(name, name), held) for name, held in graph.defaults.items()]
            place = {name: number for number, name in enumerate(graph.initializer_order)}
            stored.sort(key=lambda item: place.get(item[0], len(place)))
        for _, name, held in stored:
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
        if (self._graph.ir_version or 0) < _OVERRIDABLE:  # from then on, a listed weight is one that a caller may set
            stored = {constant.name for constant in self._homes[id(graph)]}
            infos |= {name: info for name, info in graph.listed.items() if name in stored}
        ordered = [name for name in graph.input_order if name in infos]
        return [infos[name] for name in dict.fromkeys([*ordered, *infos])]

    def _inner_value_infos(self, graph: gs.Graph) -> list[onnx.ValueInfoProto]:
        """Types of the graph's own inner tensors, in order of first appearance; of a function's ends too.

        Only for tensors whose type the file stated: inferred types would make it larger.
        """
        ends = (*graph.inputs, *graph.outputs)
        hidden = set() if isinstance(graph, gs.Function) else {tensor.name for tensor in ends}
        listed = graph.listed if isinstance(graph, Graph) else {}
        inner = [tensor for node in graph.nodes for tensor in node.outputs]
        infos: dict[str, onnx.ValueInfoProto] = {}
        for tensor in (*self._homes[id(graph)], *(() if hidden else ends), *inner):
            name = self._name(tensor)
            if tensor.name in hidden or name in infos or not name or getattr(tensor, "origin", None) is None:
                continue
            forgotten = not isinstance(tensor, gs.Constant) and tensor.dtype is None and not as_stated(tensor)
            if not forgotten and tensor.name not in listed:
                infos[name] = self._value_info(tensor)
        return list(infos.values())

    def _value_info(self, tensor: gs.Tensor) -> onnx.ValueInfoProto:
        return value_info(tensor, self._name(tensor))

    def _fill_node(self, node: gs.Node, proto: onnx.NodeProto) -> None:
        residue = getattr(node, "residue", None)
        if residue is not None:
            proto.CopyFrom(residue)
        proto.op_type = node.op
        if node.name:
            proto.name = node.name
        if node.domain is not None:
            proto.domain = node.domain
        proto.input.extend(self._name(tensor) for tensor in node.inputs)
        proto.output.extend(self._name(tensor) for tensor in node.outputs)
        origins = getattr(node, "attribute_origins", {})
        for name, value in node.attrs.items():
            self._fill_attribute(name, value, origins.get(name), proto.attribute.add())

    def _fill_attribute(
        self, name: str, value: Any, origin: tuple[Any, onnx.AttributeProto] | None, proto: onnx.AttributeProto
    ) -> None:
        if origin is not None and not isinstance(value, (gs.Graph, gs.Tensor)) and same_value(value, origin[0]):
            proto.CopyFrom(origin[1])
            return
        if origin is not None and origin[1].doc_string:
            proto.doc_string = origin[1].doc_string
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
            proto.t.CopyFrom(self._write_attribute(value.name, held))
        else:
            proto.MergeFrom(plain_attribute(name, value, origin[1].type if origin is not None else None))
        proto.name = name

    def _function(self, function: gs.Function) -> onnx.FunctionProto:
        proto = onnx.FunctionProto()
        if isinstance(function, Function):
            proto.CopyFrom(function.residue)
        proto.name, proto.domain = function.name, function.domain or ""
        if function.doc_string:
            proto.doc_string = function.doc_string
        proto.input.extend(tensor.name for tensor in function.inputs)
        proto.output.extend(tensor.name for tensor in function.outputs)
        exporter = _Exporter(function, self._write_attribute, self._write_attribute)
        proto.node.extend(exporter._constant_node(constant) for constant in exporter._homes[id(function)])
        for node in function.nodes:
            exporter._fill_node(node, proto.node.add())
        proto.value_info.extend(exporter._inner_value_infos(function))
        proto.opset_import.extend(opset_imports(function))
        origins = getattr(function, "attribute_origins", {})
        for name, value in function.attrs.items():
            if value is None:
                proto.attribute.append(name)
            else:
                exporter._fill_attribute(name, value, origins.get(name), proto.attribute_proto.add())
        return proto

    def _constant_node(self, constant: gs.Constant) -> onnx.NodeProto:
        """Functions have no initializers."""
        name, held = self._name(constant), payload(constant)
        if isinstance(held, StoredSparseTensor):
            return onnx.helper.make_node("Constant", [], [name], sparse_value=held.tensor)
        return onnx.helper.make_node("Constant", [], [name], value=self._write_attribute(name, held))


def opset_imports(graph: gs.Graph) -> list[onnx.OperatorSetIdProto]:
    """Return the imports, with the graph's opset and version 1 of each domain that a pass started to use."""
    imports = []
    domains = graph.import_domains if graph.import_domains is not None else [onnx.helper.make_opsetid("", graph.opset)]
    for item in domains:
        kept = onnx.OperatorSetIdProto()
        kept.CopyFrom(item)
        if item.domain in ("", "ai.onnx") and graph.opset:
            kept.version = graph.opset
        imports.append(kept)
    known = {"" if item.domain == "ai.onnx" else item.domain for item in imports}
    used = {"" if node.domain in (None, "ai.onnx") else node.domain for node in walk_nodes(graph)}
    imports.extend(onnx.helper.make_opsetid(domain, 1) for domain in sorted(used - known) if domain == "com.microsoft")
    return imports
