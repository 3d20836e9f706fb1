"""Weight payloads: what a constant holds while nobody looks at it.

A payload is immutable and is shared by every copy of a graph. It knows shape and type without touching the bytes; the
bytes of external data are memory-mapped, so reading a weight costs page cache, not heap.
"""

from __future__ import annotations

# mypy: disallow-subclassing-any=False
import itertools
import math
import mmap
import os
import sys
import weakref
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper
from onnx_graphsurgeon.ir.tensor import LazyValues, SparseValues

from graphopt.errors import ModelError


def numpy_dtype(element_type: int) -> np.dtype:
    """Return the numpy (or ml_dtypes) type of an ONNX element type.

    Raises:
        ModelError: The installed onnx does not know the element type.
    """
    try:
        return np.dtype(onnx.helper.tensor_dtype_to_np_dtype(element_type))
    except KeyError:
        raise ModelError(f"tensor element type {element_type} is not known to onnx {onnx.__version__}") from None


def element_bits(element_type: int) -> int:
    """Return the stored bits of one element; sub-byte types are packed."""
    name = onnx.TensorProto.DataType.Name(element_type)
    if name in {"UINT4", "INT4", "FLOAT4E2M1"}:
        return 4
    if name in {"UINT2", "INT2"}:
        return 2
    if name in {"FLOAT6E2M3", "FLOAT6E3M2"}:
        return 6
    return numpy_dtype(element_type).itemsize * 8


def stored_bytes(element_type: int, shape: tuple[int, ...]) -> int:
    """Return how many bytes a dense tensor takes in a file."""
    return math.ceil(math.prod(shape) * element_bits(element_type) / 8)


class DataFile:
    """A file of external data, held open: what was checked when it was opened is what is read later.

    Attributes:
        path: The file.
        nbytes: Its size in bytes.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
        weakref.finalize(self, os.close, descriptor)
        self._descriptor = descriptor
        self.nbytes = os.fstat(descriptor).st_size

    def map(self, offset: int, length: int) -> np.ndarray:
        """Return bytes of the file as a read-only array; they stay on disk until they are looked at.

        Raises:
            ModelError: The file has become shorter since it was opened.
        """
        if length == 0:
            return np.empty(0, np.uint8)
        before = offset % mmap.ALLOCATIONGRANULARITY
        try:
            mapped = mmap.mmap(self._descriptor, before + length, access=mmap.ACCESS_READ, offset=offset - before)
        except (OSError, ValueError) as error:
            raise ModelError(f"external data '{self.path}' cannot be read at byte {offset}: {error}") from error
        return np.frombuffer(mapped, np.uint8, length, before)


class StoredTensor(LazyValues):
    """A dense tensor as the file has it.

    Attributes:
        tensor: The TensorProto; never written to.
        shape: Dimensions.
        dtype: numpy or ml_dtypes type.
        nbytes: Bytes in the file.
        folder: Folder that external data is relative to; None when the bytes are in the proto.
        serial: A number that no other payload of this process has.
    """

    _serials = itertools.count()

    def __init__(self, tensor: onnx.TensorProto, folder: Path | None = None, file: DataFile | None = None) -> None:
        if is_external(tensor) and (folder is None or file is None):
            raise ModelError(f"tensor '{tensor.name}' is external data, but of a model that was not read from a file")
        self.tensor = tensor
        self.shape = tuple(tensor.dims)
        self.dtype = numpy_dtype(tensor.data_type)
        self.nbytes = _tensor_bytes(tensor)
        self.folder = folder if is_external(tensor) else None
        self.serial = next(self._serials)
        self._file = file if is_external(tensor) else None
        self._cache: weakref.ref[np.ndarray] | None = None

    @property
    def is_external(self) -> bool:
        """Whether the bytes lie in a file of their own."""
        return self._file is not None

    def load(self) -> np.ndarray:
        """Return the values, read-only; two calls share memory while the first result lives."""
        values = self._cache() if self._cache is not None else None
        if values is None:
            values = self._read()
            values.flags.writeable = False
            self._cache = weakref.ref(values)
        return values

    def raw_bytes(self) -> memoryview:
        """Return the little-endian packed bytes as the ONNX raw_data field would hold them."""
        if self._file is not None:
            return self._map(self._file).data
        if self.tensor.HasField("raw_data"):
            return memoryview(self.tensor.raw_data)
        return memoryview(numpy_helper.from_array(self.load()).raw_data)

    def raw_chunks(self, nbytes: int) -> Iterator[memoryview]:
        """Yield `raw_bytes` in pieces; of external data only one piece is mapped at a time."""
        if self._file is None:
            raw = self.raw_bytes()
            yield from (raw[start : start + nbytes] for start in range(0, len(raw), nbytes))
            return
        _, offset, _ = external_reference(self.tensor)
        for start in range(0, self.nbytes, nbytes):
            yield self._file.map(offset + start, min(nbytes, self.nbytes - start)).data

    def _map(self, file: DataFile) -> np.ndarray:
        _, offset, _ = external_reference(self.tensor)
        return file.map(offset, self.nbytes)

    def _read(self) -> np.ndarray:
        if self._file is None:
            return numpy_helper.to_array(self.tensor).view()
        raw = self._map(self._file)
        if element_bits(self.tensor.data_type) % 8 == 0 and sys.byteorder == "little":
            return raw.view(self.dtype).reshape(self.shape)
        proto = onnx.TensorProto(data_type=self.tensor.data_type, dims=self.shape, raw_data=raw.tobytes())
        return numpy_helper.to_array(proto).view()

    def __repr__(self) -> str:
        return f"StoredTensor({self.tensor.name!r}, {self.dtype}, {self.shape})"


class StoredSparseTensor(SparseValues):
    """A sparse initializer as the file has it; see `StoredTensor` for the attributes."""

    def __init__(self, tensor: onnx.SparseTensorProto) -> None:
        if is_external(tensor.values) or is_external(tensor.indices):
            raise ModelError(f"sparse tensor '{tensor.values.name}' is external data, which graphopt cannot carry")
        self.tensor = tensor
        self.shape = tuple(tensor.dims)
        self.dtype = numpy_dtype(tensor.values.data_type)
        self.nbytes = sum(stored_bytes(part.data_type, tuple(part.dims)) for part in (tensor.values, tensor.indices))

    def load(self) -> np.ndarray:
        """Return the dense values, read-only (linear or coordinate indices, ONNX IR: SparseTensorProto).

        Raises:
            ModelError: They do not fit into memory.
        """
        indices = numpy_helper.to_array(self.tensor.indices)
        try:
            dense = np.zeros(math.prod(self.shape), self.dtype)
        except (MemoryError, ValueError) as error:
            raise ModelError(
                f"sparse tensor '{self.tensor.values.name}' is too large as a dense one: {error}"
            ) from error
        linear = indices if indices.ndim == 1 else np.ravel_multi_index(tuple(indices.T), self.shape)
        dense[linear] = numpy_helper.to_array(self.tensor.values)
        dense = dense.reshape(self.shape)
        dense.flags.writeable = False
        return dense

    def __repr__(self) -> str:
        return f"StoredSparseTensor({self.tensor.values.name!r}, {self.dtype}, {self.shape})"


def _tensor_bytes(tensor: onnx.TensorProto) -> int:
    if tensor.data_type == onnx.TensorProto.STRING:
        return sum(map(len, tensor.string_data))
    return stored_bytes(tensor.data_type, tuple(tensor.dims))


def is_external(tensor: onnx.TensorProto) -> bool:
    """Whether the proto only refers to its bytes."""
    return tensor.data_location == onnx.TensorProto.EXTERNAL


def external_reference(tensor: onnx.TensorProto) -> tuple[str, int, int | None]:
    """Return location, offset in bytes and length in bytes (None: to the end) of external data.

    Raises:
        ModelError: An entry is missing or is not a number.
    """
    entries = {entry.key: entry.value for entry in tensor.external_data}
    try:
        length = int(entries["length"]) if "length" in entries else None
        return entries["location"], int(entries.get("offset", 0)), length
    except (KeyError, ValueError):
        raise ModelError(f"tensor '{tensor.name}': external data entry {entries} is not readable") from None


def tensors_of(proto: onnx.ModelProto) -> Iterator[onnx.TensorProto | onnx.SparseTensorProto]:
    """Yield every tensor of a model: initializers, attributes, bodies, functions, training info."""
    stack: list[onnx.GraphProto | onnx.FunctionProto] = [proto.graph, *proto.functions]
    for training in proto.training_info:
        stack.extend((training.initialization, training.algorithm))
    while stack:
        graph = stack.pop()
        if isinstance(graph, onnx.GraphProto):
            yield from graph.initializer
            yield from graph.sparse_initializer
        attributes = [attribute for node in graph.node for attribute in node.attribute]
        if isinstance(graph, onnx.FunctionProto):
            attributes.extend(graph.attribute_proto)
        for attribute in attributes:
            if attribute.HasField("t"):
                yield attribute.t
            if attribute.HasField("sparse_tensor"):
                yield attribute.sparse_tensor
            yield from attribute.tensors
            yield from attribute.sparse_tensors
            if attribute.HasField("g"):
                stack.append(attribute.g)
            stack.extend(attribute.graphs)
