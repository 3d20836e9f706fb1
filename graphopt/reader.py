"""Reading model files, which are untrusted input."""

from __future__ import annotations

import math
import stat
from collections.abc import Sequence
from pathlib import Path, PurePosixPath, PureWindowsPath

import numpy as np
import onnx
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import DecodeError, Message
from onnx import numpy_helper

from graphopt.compressed import decompressed, is_compressed
from graphopt.errors import ModelError
from graphopt.ir.clean import sort_nodes
from graphopt.ir.payload import (
    element_bits,
    external_reference,
    is_external,
    numpy_dtype,
    stored_bytes,
    tensors_of,
)
from graphopt.model import PROTOBUF_LIMIT, Model, data_folder

_MOST_DIMENSIONS = 32  # what every numpy can hold
_MOST_BYTES = 2**63 - 1  # what an array may address


def load(path: str | Path) -> Model:
    """Read a model file; the bytes of external data stay on disk until a weight is looked at.

    Nodes out of topological order are sorted.

    Args:
        path: An ONNX file, compressed if its name ends in `.zst`. Its external data must lie in the same folder or
            below it.

    Raises:
        ModelError: The file is missing, truncated, refers to data outside its folder, states impossible sizes, or has
            parts that graphopt cannot carry. The message is one line and names the part.
    """
    path = Path(path)
    proto = _parse(path)
    try:
        _check_text(proto)
        _check_tensors(proto, path)
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
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise ModelError(f"'{path}' is a device or a pipe; give an ONNX file")
        size = status.st_size
        if size > PROTOBUF_LIMIT:
            raise ModelError(
                f"'{path}' has {size} bytes; a file above 2 GiB is no ONNX model, its weights lie beside it"
            )
        raw = path.read_bytes()
        if raw and is_compressed(path):
            raw = _decompressed(raw, path)
        if not raw:
            raise ModelError(f"'{path}' is empty")
        proto.ParseFromString(raw)
    except OSError as error:
        raise ModelError(f"cannot read '{path}': {error.strerror or error}") from error
    except ValueError as error:  # a path with a zero byte
        raise ModelError(f"cannot read {str(path)!r}: {error}") from error
    except DecodeError:
        raise ModelError(f"'{path}' is not an ONNX model, or is truncated, or nests its graphs too deeply") from None
    if not proto.HasField("graph") or not (proto.opset_import or proto.ir_version):
        raise ModelError(f"'{path}' is not an ONNX model: it has no graph or states no version")
    return proto


def _decompressed(raw: bytes, path: Path) -> bytes:
    try:
        return decompressed(raw, PROTOBUF_LIMIT)
    except ModelError as error:
        raise ModelError(f"'{path}' {error}") from error


def _check_text(proto: onnx.ModelProto) -> None:
    """Refuse names that are not UTF-8; protobuf hands them over as bytes and fails when they are written."""
    fields: dict[type[Message], list[FieldDescriptor]] = {}
    stack: list[Message] = [proto]
    while stack:
        message = stack.pop()
        kind = type(message)
        if kind not in fields:
            followed = (FieldDescriptor.TYPE_STRING, FieldDescriptor.TYPE_MESSAGE)
            fields[kind] = [field for field in kind.DESCRIPTOR.fields if field.type in followed]
        for field in fields[kind]:
            if field.is_repeated:
                values = getattr(message, field.name)
            elif message.HasField(field.name):
                values = (getattr(message, field.name),)
            else:
                continue
            if field.type == FieldDescriptor.TYPE_MESSAGE:
                stack.extend(values)
            elif any(isinstance(value, bytes) for value in values):
                raise ModelError(f"{kind.DESCRIPTOR.name}.{field.name} is {values[0]!r}, which is not UTF-8 text")


def _check_tensors(proto: onnx.ModelProto, path: Path) -> None:
    files = _DataFiles(path)
    for training in proto.training_info:
        holder = onnx.ModelProto(functions=[onnx.FunctionProto(node=training.algorithm.node)])
        holder.graph.CopyFrom(training.initialization)
        holder.graph.initializer.extend(training.algorithm.initializer)
        if any(isinstance(item, onnx.TensorProto) and is_external(item) for item in tensors_of(holder)):
            raise ModelError("its training info holds external data, which graphopt cannot carry")
    for item in tensors_of(proto):
        if isinstance(item, onnx.SparseTensorProto):
            _check_sparse(item)
        else:
            _check_dense(item, files)


def _check_dense(tensor: onnx.TensorProto, files: _DataFiles | None) -> None:
    _check_dimensions(tensor.name, tensor.dims, tensor.data_type)
    if tensor.HasField("segment"):
        raise ModelError(f"tensor '{tensor.name}' is stored in segments, which graphopt cannot carry")
    if not is_external(tensor):
        _check_inline(tensor)
    elif files is None:
        raise ModelError(f"sparse tensor '{tensor.name}' is external data, which graphopt cannot carry")
    else:
        files.check(tensor)


def _check_dimensions(name: str, dims: Sequence[int], element_type: int) -> None:
    if any(dim < 0 for dim in dims):
        raise ModelError(f"tensor '{name}' has a negative dimension in {list(dims)}")
    if len(dims) > _MOST_DIMENSIONS:
        raise ModelError(f"tensor '{name}' has {len(dims)} dimensions; at most {_MOST_DIMENSIONS} are possible")
    if math.prod(dim for dim in dims if dim) * numpy_dtype(element_type).itemsize > _MOST_BYTES:
        raise ModelError(f"tensor '{name}' has an impossible size: {list(dims)}")


def _check_sparse(sparse: onnx.SparseTensorProto) -> None:
    """Refuse indices that lie outside the tensor, or do not fit the values (ONNX IR: SparseTensorProto)."""
    name, shape = sparse.values.name, tuple(sparse.dims)
    _check_dimensions(name, shape, sparse.values.data_type)
    for part in (sparse.values, sparse.indices):
        _check_dense(part, None)
    count = math.prod(sparse.values.dims)
    if sparse.indices.data_type != onnx.TensorProto.INT64 or len(sparse.values.dims) != 1:
        raise ModelError(f"sparse tensor '{name}' must have values along one axis, and indices of type int64")
    if tuple(sparse.indices.dims) not in ((count,), (count, len(shape))):
        found = list(sparse.indices.dims)
        raise ModelError(f"sparse tensor '{name}' has indices of shape {found} for {count} values of rank {len(shape)}")
    indices = numpy_helper.to_array(sparse.indices)
    limit = math.prod(shape) if indices.ndim == 1 else np.array(shape, np.int64)
    if ((indices < 0) | (indices >= limit)).any():
        raise ModelError(f"sparse tensor '{name}' has indices outside its shape {list(shape)}")


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
    """Return the entries that a typed field has: two for a complex number; 4 and 2 bits are packed into bytes."""
    if element_type in (onnx.TensorProto.COMPLEX64, onnx.TensorProto.COMPLEX128):
        return 2 * math.prod(shape)
    bits = element_bits(element_type)
    return stored_bytes(element_type, shape) if bits in (2, 4) else math.prod(shape)


class _DataFiles:
    """The files of external data that a model may refer to.

    They are looked for in the model's folder. Where the model is a link, its data may be links to the folder that the
    model really lies in, as in download caches.
    """

    def __init__(self, path: Path) -> None:
        self._folder = data_folder(path)
        self._allowed = (self._folder, path.resolve().parent)
        self._sizes: dict[str, int] = {}

    def check(self, tensor: onnx.TensorProto) -> None:
        """Refuse a reference that leaves the folder or its file.

        Raises:
            ModelError: The location is absolute, climbs with `..`, is a link to the outside, is no regular file, or is
                too short.
        """
        location, offset, length = external_reference(tensor)
        what = f"tensor '{tensor.name}': external data {location!r}"
        if tensor.data_type == onnx.TensorProto.STRING:
            raise ModelError(f"tensor '{tensor.name}': strings cannot be external data")
        if location not in self._sizes:
            try:
                self._sizes[location] = self._size(location, what)
            except (OSError, RuntimeError, ValueError) as error:  # too long, a ring of links, a zero byte
                raise ModelError(f"{what} cannot be read: {error}") from error
        wanted, size = stored_bytes(tensor.data_type, tuple(tensor.dims)), self._sizes[location]
        if length is not None and length != wanted:
            raise ModelError(f"{what} has {length} bytes but shape {list(tensor.dims)} needs {wanted}")
        if offset < 0 or offset + wanted > size:
            raise ModelError(f"{what} has {size} bytes but bytes {offset} to {offset + wanted} are asked for")

    def _size(self, location: str, what: str) -> int:
        for flavour in (PurePosixPath(location), PureWindowsPath(location)):
            if not location or flavour.is_absolute() or flavour.drive or ".." in flavour.parts:
                raise ModelError(f"{what} must be a path inside the model's folder")
        resolved = (self._folder / location).resolve()
        if not any(resolved.is_relative_to(folder) for folder in self._allowed):
            raise ModelError(f"{what} is a link that leaves the model's folder")
        if not resolved.is_file():
            raise ModelError(f"{what} does not exist or is not a file")
        return resolved.stat().st_size
