"""Reading model files, which are untrusted input."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError

from graphopt.errors import ModelError
from graphopt.ir.clean import sort_nodes
from graphopt.ir.payload import element_bits, external_reference, is_external, numpy_dtype, stored_bytes
from graphopt.model import Model



def load(path: str | Path) -> Model:
    """Read a model file; the bytes of external data stay on disk until a weight is looked at.

    Nodes out of topological order are sorted.

    Args:
        path: An ONNX file. Its external data must lie in the same folder or below it.

    Raises:
        ModelError: The file is missing, truncated, refers to data outside its folder, states impossible sizes, or has
            parts that graphopt cannot carry. The message is one line and names the part.
    """
    path = Path(path)
    proto = _parse(path)
    _check_tensors(proto, path)
    try:
        model = Model.from_proto(proto, path)
        for root in (model.graph, *model.graph.functions):
            sort_nodes(root)
    except ModelError as error:
        raise ModelError(f"'{path}': {error}") from error
    return model


def _parse(path: Path) -> onnx.ModelProto:
    proto = onnx.ModelProto()
    try:
        if path.is_dir():
            raise ModelError(f"'{path}' is a folder; give the .onnx file in it")
        raw = path.read_bytes()
        if not raw:
            raise ModelError(f"'{path}' is empty")
        proto.ParseFromString(raw)
    except OSError as error:
        raise ModelError(f"cannot read '{path}': {error.strerror or error}") from error
    except DecodeError:
        raise ModelError(f"'{path}' is not an ONNX model, or is truncated") from None
    except RecursionError:
        raise ModelError(f"'{path}' nests its graphs too deeply") from None
    if not proto.HasField("graph") or not (proto.opset_import or proto.ir_version):
        raise ModelError(f"'{path}' is not an ONNX model: it has no graph or states no version")
    return proto


def tensors_of(proto: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """Yield every dense tensor of a model: initializers, attributes, bodies, functions."""
    stack: list[onnx.GraphProto | onnx.FunctionProto] = [proto.graph, *proto.functions]
    while stack:
        graph = stack.pop()
        if isinstance(graph, onnx.GraphProto):
            yield from graph.initializer
            for sparse in graph.sparse_initializer:
                yield from (sparse.values, sparse.indices)
        for node in graph.node:
            for attribute in node.attribute:
                if attribute.HasField("t"):
                    yield attribute.t
                if attribute.HasField("sparse_tensor"):
                    yield from (attribute.sparse_tensor.values, attribute.sparse_tensor.indices)
                yield from attribute.tensors
                if attribute.HasField("g"):
                    stack.append(attribute.g)
                stack.extend(attribute.graphs)


def _check_tensors(proto: onnx.ModelProto, path: Path) -> None:
    folder = path.resolve().parent
    sizes: dict[Path, int] = {}
    for tensor in tensors_of(proto):
        try:
            if any(dim < 0 for dim in tensor.dims):
                raise ModelError(f"tensor '{tensor.name}' has a negative dimension in {list(tensor.dims)}")
            if tensor.HasField("segment"):
                raise ModelError(f"tensor '{tensor.name}' is stored in segments, which graphopt cannot carry")
            numpy_dtype(tensor.data_type)
            if is_external(tensor):
                _check_external(tensor, folder, sizes)
            else:
                _check_inline(tensor)
        except ModelError as error:
            raise ModelError(f"'{path}': {error}") from None


def _check_inline(tensor: onnx.TensorProto) -> None:
    shape = tuple(tensor.dims)
    if tensor.HasField("raw_data"):
        found, wanted, unit = len(tensor.raw_data), stored_bytes(tensor.data_type, shape), "bytes"
        if tensor.data_type == onnx.TensorProto.STRING:
            raise ModelError(f"tensor '{tensor.name}' holds strings as raw bytes, which ONNX does not allow")
    else:
        field = onnx.helper.tensor_dtype_to_field(tensor.data_type)
        found, wanted, unit = len(getattr(tensor, field)), _field_length(tensor.data_type, shape), "values"
    if found != wanted:
        raise ModelError(f"tensor '{tensor.name}' of shape {list(shape)} needs {wanted} {unit} but holds {found}")


def _field_length(element_type: int, shape: tuple[int, ...]) -> int:
    """Return the entries that a typed field has: packed below a byte, two for a complex number."""
    bits = element_bits(element_type)
    if element_type in (onnx.TensorProto.COMPLEX64, onnx.TensorProto.COMPLEX128):
        return 2 * math.prod(shape)
    return math.ceil(math.prod(shape) * bits / 8) if bits < 8 else math.prod(shape)


def _check_external(tensor: onnx.TensorProto, folder: Path, sizes: dict[Path, int]) -> None:
    """Refuse references that leave the model's folder or its files.

    Raises:
        ModelError: The location is absolute, climbs with `..`, is a link to the outside, is no regular file, or is
            too short.
    """
    location, offset, length = external_reference(tensor)
    file = folder / location
    what = f"tensor '{tensor.name}': external data '{location}'"
    if Path(location).is_absolute() or ".." in Path(location).parts or not location:
        raise ModelError(f"{what} must be a path inside the model's folder")
    if tensor.data_type == onnx.TensorProto.STRING:
        raise ModelError(f"tensor '{tensor.name}': strings cannot be external data")
    if file not in sizes:
        resolved = file.resolve()
        if not resolved.is_relative_to(folder):
            raise ModelError(f"{what} is a link that leaves the model's folder")
        if not resolved.is_file():
            raise ModelError(f"{what} does not exist or is not a file")
        sizes[file] = resolved.stat().st_size
    wanted = stored_bytes(tensor.data_type, tuple(tensor.dims))
    if length is not None and length != wanted:
        raise ModelError(f"{what} has {length} bytes but shape {list(tensor.dims)} needs {wanted}")
    if offset < 0 or offset + wanted > sizes[file]:
        raise ModelError(f"{what} has {sizes[file]} bytes but bytes {offset} to {offset + wanted} are asked for")
