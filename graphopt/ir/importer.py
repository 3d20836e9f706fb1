"""From protobuf to GraphSurgeon, losing nothing.

GraphSurgeon's own importer skips what it does not know; this one either places a field in the GraphSurgeon object,
keeps it in the object's residue (see `graphopt.ir.graph`), or refuses the model and names the field.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from graphopt.errors import ModelError
from graphopt.ir.graph import Constant, Function, Graph, Node, OpaqueAttribute, Payload, Variable, payload
from graphopt.ir.infos import infos_of, make_variable, stray_infos
from graphopt.ir.payload import (
    DataFile,
    StoredSparseTensor,
    StoredTensor,
    external_reference,
    is_external,
)
from graphopt.ir.residue import residue_of
from graphopt.ir.scope import Infos, Scope

__all__ = ["Importer", "default_opset", "make_variable", "stored_payloads"]

TensorFactory = Callable[[onnx.TensorProto], StoredTensor | np.ndarray]

_NODE_FIELDS = frozenset({"input", "output", "name", "op_type", "domain", "attribute"})
_GRAPH_FIELDS = frozenset(
    {"node", "name", "initializer", "sparse_initializer", "doc_string", "input", "output", "value_info"}
)
_FUNCTION_FIELDS = frozenset(
    {"name", "input", "output", "attribute", "attribute_proto", "node", "doc_string", "opset_import", "domain",
     "value_info"}
)  # fmt: skip
_OPAQUE = {
    onnx.AttributeProto.TENSORS,
    onnx.AttributeProto.SPARSE_TENSOR,
    onnx.AttributeProto.SPARSE_TENSORS,
    onnx.AttributeProto.TYPE_PROTO,
    onnx.AttributeProto.TYPE_PROTOS,
}
_REFERENCE_TYPES = {
    onnx.AttributeProto.FLOAT: float,
    onnx.AttributeProto.INT: int,
    onnx.AttributeProto.STRING: str,
    onnx.AttributeProto.TENSOR: gs.Tensor,
    onnx.AttributeProto.GRAPH: gs.Graph,
}


class Importer:
    """Turns one ModelProto's graph and functions into GraphSurgeon objects.

    Args:
        model: The proto; it must not be written to while the graph lives, since weights refer to it.
        make_payload: Maps a dense TensorProto to what its constant holds.
    """

    def __init__(self, model: onnx.ModelProto, make_payload: TensorFactory) -> None:
        self._model = model
        self._make_payload = make_payload
        self._opset = default_opset(model.opset_import) or 1  # without imports: ONNX IR, OperatorSetIdProto

    def graph(self) -> Graph:
        """Return the main graph with its functions."""
        model = self._model
        functions = [self._function(proto) for proto in model.functions]
        identities = [function.unique_id for function in functions]
        for domain, name, overload in identities:
            if identities.count((domain, name, overload)) > 1:
                raise ModelError(f"function '{domain}.{name}' (overload '{overload}') is defined more than once")
        return self._graph(
            model.graph,
            None,
            import_domains=list(model.opset_import),
            producer_name=model.producer_name,
            producer_version=model.producer_version,
            ir_version=model.ir_version,
            functions=functions,
        )

    def _graph(self, proto: onnx.GraphProto, outer: Scope | None, **model_fields: Any) -> Graph:
        where = f"graph '{proto.name}'"
        scope = Scope(outer)
        infos = infos_of(proto)
        declared = self._initializers(proto, infos)
        overridable = self._overridable(proto)
        defaults: dict[str, Payload] = {}
        listed: Infos = {}
        for name, constant in declared.items():
            if name in overridable:
                defaults[name] = payload(constant)
            else:
                scope[name] = constant
        inputs = []
        for info in proto.input:
            found = scope.local(info.name)
            if info.name in listed or isinstance(found, gs.Variable):
                raise ModelError(f"{where}: input '{info.name}' is listed more than once")
            if isinstance(found, gs.Constant):
                listed[info.name] = info
            else:
                inputs.append(scope.define(info.name, infos))
        scope.define_outputs(proto.node, infos)
        nodes = [self._node(node, scope, infos) for node in proto.node]
        outputs = [scope.find(info.name, infos) for info in proto.output]
        residue = residue_of(proto, _GRAPH_FIELDS, where)
        shown = {info.name for infos_ in (proto.input, proto.output) for info in infos_}
        residue.value_info.extend(stray_infos(proto.value_info, scope.keys(), shown))
        graph = Graph(
            nodes,
            inputs,
            outputs,
            name=proto.name,
            doc_string=proto.doc_string,
            opset=self._opset,
            residue=residue,
            **({"import_domains": list(self._model.opset_import)} | model_fields),
        )
        graph.declared = [constant for name, constant in declared.items() if name not in overridable]
        graph.defaults, graph.listed = defaults, listed
        graph.input_order = [info.name for info in proto.input]
        graph.initializer_order = list(declared)
        graph.output_infos = {
            info.name: info
            for info, tensor in zip(proto.output, outputs, strict=True)
            if tensor.origin is None or tensor.origin != info
        }
        return graph

    def _initializers(self, proto: onnx.GraphProto, infos: Infos) -> dict[str, Constant]:
        declared: dict[str, Constant] = {}
        for tensor in proto.initializer:
            declared[tensor.name] = Constant(tensor.name, self._make_payload(tensor), origin=infos.get(tensor.name))
        for sparse in proto.sparse_initializer:
            name = sparse.values.name
            declared[name] = Constant(name, StoredSparseTensor(sparse), origin=infos.get(name))
        if len(declared) != len(proto.initializer) + len(proto.sparse_initializer):
            names = [t.name for t in proto.initializer] + [t.values.name for t in proto.sparse_initializer]
            twice = sorted({name for name in names if names.count(name) > 1})
            raise ModelError(f"graph '{proto.name}': initializers {twice} are defined more than once")
        return declared

    def _overridable(self, proto: onnx.GraphProto) -> frozenset[str]:
        """Names of initializers that a caller may replace: listed as inputs, from IR version 4 on."""
        if self._model.ir_version < 4:
            return frozenset()
        return frozenset(info.name for info in proto.input)

    def _node(self, proto: onnx.NodeProto, scope: Scope, infos: Infos) -> Node:
        node = Node(
            proto.op_type,
            proto.name,
            inputs=[scope.find(name, infos) if name else Variable("") for name in proto.input],
            outputs=[scope[name] if name else Variable("") for name in proto.output],
            domain=proto.domain if proto.HasField("domain") else None,
            residue=residue_of(proto, _NODE_FIELDS, f"node '{proto.name}' ({proto.op_type})"),
        )
        node.attrs, node.attribute_origins = self._attributes(proto.attribute, scope, f"node '{proto.name}'")
        return node

    def _attributes(
        self, protos: Iterable[onnx.AttributeProto], scope: Scope, where: str
    ) -> tuple[OrderedDict[str, Any], dict[str, tuple[Any, onnx.AttributeProto]]]:
        values: OrderedDict[str, Any] = OrderedDict()
        origins: dict[str, tuple[Any, onnx.AttributeProto]] = {}
        for proto in protos:
            if proto.name in values:
                raise ModelError(f"{where}: attribute '{proto.name}' is given more than once")
            value = self._attribute(proto, scope, where)
            values[proto.name] = value
            origins[proto.name] = (list(value) if isinstance(value, list) else value, proto)
        return values, origins

    def _attribute(self, proto: onnx.AttributeProto, scope: Scope, where: str) -> Any:
        kind = proto.type
        if proto.ref_attr_name:
            return gs.Node.AttributeRef(proto.ref_attr_name, _REFERENCE_TYPES.get(kind, list))
        if kind in _OPAQUE:
            if any(is_external(tensor) for tensor in _tensors_in(proto)):
                raise ModelError(
                    f"{where}: attribute '{proto.name}' holds external data in a form graphopt cannot carry"
                )
            return OpaqueAttribute(proto)
        if kind == onnx.AttributeProto.GRAPH:
            return self._graph(proto.g, scope)
        if kind == onnx.AttributeProto.TENSOR:
            return Constant(proto.t.name, self._make_payload(proto.t))
        if kind == onnx.AttributeProto.STRING:
            return _text(proto.s)
        if kind == onnx.AttributeProto.STRINGS:
            return [_text(item) for item in proto.strings]
        simple = {
            onnx.AttributeProto.FLOAT: "f",
            onnx.AttributeProto.INT: "i",
            onnx.AttributeProto.FLOATS: "floats",
            onnx.AttributeProto.INTS: "ints",
        }
        if kind not in simple:
            kind_name = onnx.AttributeProto.AttributeType.Name(kind)
            raise ModelError(f"{where}: attribute '{proto.name}' has type {kind_name}, which graphopt cannot carry")
        value = getattr(proto, simple[kind])
        return value if isinstance(value, (int, float)) else list(value)

    def _function(self, proto: onnx.FunctionProto) -> Function:
        scope = Scope(None)
        infos = {info.name: info for info in proto.value_info}
        inputs = [scope.define(name, infos) for name in proto.input]
        scope.define_outputs(proto.node, infos)
        nodes = [self._node(node, scope, infos) for node in proto.node]
        outputs = [scope.find(name, infos) for name in proto.output]
        where = f"function '{proto.domain}.{proto.name}'"
        residue = residue_of(proto, _FUNCTION_FIELDS, where)
        residue.value_info.extend(stray_infos(proto.value_info, scope.keys(), set()))
        defaults, origins = self._attributes(proto.attribute_proto, scope, where)
        function = Function(
            proto.name,
            proto.domain,
            nodes,
            inputs,
            outputs,
            doc_string=proto.doc_string,
            opset=default_opset(proto.opset_import) or self._opset,
            import_domains=list(proto.opset_import),
            attrs={**dict.fromkeys(proto.attribute), **defaults},
            residue=residue,
        )
        function.attribute_origins = origins
        return function


def default_opset(imports: Iterable[onnx.OperatorSetIdProto]) -> int | None:
    """Return the version of the standard operator set, or None."""
    return next((item.version for item in imports if item.domain in ("", "ai.onnx")), None)


def _tensors_in(proto: onnx.AttributeProto) -> list[onnx.TensorProto]:
    sparse = (proto.sparse_tensor, *proto.sparse_tensors)
    return [*proto.tensors, *(part for tensor in sparse for part in (tensor.values, tensor.indices))]


def _text(raw: bytes) -> str | bytes:
    """Strings are UTF-8 by the standard; other bytes are carried as they are."""
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return raw


def stored_payloads(folder: Path | None) -> TensorFactory:
    """Return the payload factory for a model whose external data is relative to `folder`."""
    files: dict[str, DataFile] = {}

    def stored(tensor: onnx.TensorProto) -> StoredTensor:
        if folder is None or not is_external(tensor):
            return StoredTensor(tensor)
        location, _, _ = external_reference(tensor)
        if location not in files:
            try:
                files[location] = DataFile(folder / location)
            except OSError as error:
                raise ModelError(f"tensor '{tensor.name}': cannot read external data '{location}': {error}") from error
        return StoredTensor(tensor, folder, files[location])

    return stored
