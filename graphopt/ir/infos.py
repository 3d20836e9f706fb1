"""Types and shapes: between ValueInfoProto and GraphSurgeon's tensors."""

from __future__ import annotations

from collections.abc import Sequence, Set

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from graphopt.ir.graph import Graph, Variable
from graphopt.ir.payload import numpy_dtype


def make_variable(name: str, info: onnx.ValueInfoProto | None) -> Variable:
    """Return the run-time tensor that a ValueInfoProto describes, as far as GraphSurgeon can express it."""
    variable = Variable(name, origin=info)
    if info is not None and info.type.WhichOneof("value"):
        variable.type = info.type.WhichOneof("value")
        variable.dtype, variable.shape = _stated(info)
    return variable


def _stated(info: onnx.ValueInfoProto) -> tuple[np.dtype | None, list[int | str | None] | None]:
    """Return the element type and the dimensions that a ValueInfoProto states; nothing for what is no tensor."""
    kind = info.type.WhichOneof("value")
    if kind not in ("tensor_type", "sparse_tensor_type"):
        return None, None
    tensor = getattr(info.type, kind)
    return numpy_dtype(tensor.elem_type) if tensor.elem_type else None, read_shape(tensor)


def read_shape(tensor: onnx.TypeProto.Tensor) -> list[int | str | None] | None:
    """Return the dimensions (number, name, or None where unknown), or None for an unknown rank."""
    if not tensor.HasField("shape"):
        return None
    return [getattr(dim, which) if (which := dim.WhichOneof("value")) else None for dim in tensor.shape.dim]


def value_info(tensor: gs.Tensor, name: str) -> onnx.ValueInfoProto:
    """Return the ValueInfoProto of a tensor; the one it was read from if type and shape still agree with it."""
    origin = getattr(tensor, "origin", None)
    if origin is not None and (isinstance(tensor, gs.Constant) or as_stated(tensor)):
        return _named(origin, name)
    shape = list(tensor.shape) if tensor.shape is not None else None
    if tensor.dtype is None:
        info = onnx.helper.make_empty_tensor_value_info(name)
    else:
        element_type = onnx.helper.np_dtype_to_tensor_dtype(np.dtype(tensor.dtype))
        info = onnx.helper.make_tensor_value_info(name, element_type, shape)
    if origin is not None:
        info.metadata_props.extend(origin.metadata_props)
        if origin.doc_string:
            info.doc_string = origin.doc_string
        if origin.type.denotation:
            info.type.denotation = origin.type.denotation
    return info


def output_info(graph: gs.Graph, tensor: gs.Tensor, name: str) -> onnx.ValueInfoProto:
    """Return the ValueInfoProto of a graph output, which may state the type otherwise than elsewhere."""
    stated = graph.output_infos.get(tensor.name) if isinstance(graph, Graph) else None
    return value_info(tensor, name) if stated is None or not _agree(stated, tensor) else _named(stated, name)


def _named(info: onnx.ValueInfoProto, name: str) -> onnx.ValueInfoProto:
    copied = onnx.ValueInfoProto()
    copied.CopyFrom(info)
    copied.name = name
    return copied


def as_stated(tensor: gs.Variable) -> bool:
    """Whether type and shape are those of the ValueInfoProto that the tensor was read from."""
    dtype, shape = _stated(tensor.origin)
    return bool(dtype == tensor.dtype and shape == (None if tensor.shape is None else list(tensor.shape)))


def _agree(info: onnx.ValueInfoProto, tensor: gs.Tensor) -> bool:
    """Whether what is known of the tensor allows what the proto states."""
    dtype, shape = _stated(info)
    if dtype is not None and tensor.dtype is not None and dtype != tensor.dtype:
        return False
    if shape is None or tensor.shape is None:
        return True
    sizes = list(zip(shape, tensor.shape, strict=False))
    fixed = [(a, b) for a, b in sizes if isinstance(a, int) and isinstance(b, int)]
    return len(shape) == len(tensor.shape) and all(a == b for a, b in fixed)


def infos_of(proto: onnx.GraphProto) -> dict[str, onnx.ValueInfoProto]:
    """Return what the graph states about each of its tensors; the last word is that of the inputs."""
    return {info.name: info for infos in (proto.value_info, proto.output, proto.input) for info in infos}


def stray_infos(infos: Sequence[onnx.ValueInfoProto], known: Set[str], shown: Set[str]) -> list[onnx.ValueInfoProto]:
    """Types of names that are no inner tensor of this graph, or are stated twice: of no use, but part of the file."""
    last = {info.name: number for number, info in enumerate(infos)}
    return [
        info
        for number, info in enumerate(infos)
        if info.name in shown or info.name not in known or last[info.name] != number
    ]
