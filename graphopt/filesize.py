"""How large the file of a model would be, as it is and compressed, without writing it.

The compressed size is that of a sequence of zstd frames: one holds the structure and the small weights, and every large
weight begins a frame of its own. Such a sequence is a valid zstd file, and it lets a weight that a pass did not touch
keep its measured size.
"""

from __future__ import annotations

import io
import weakref
from collections.abc import Iterable
from dataclasses import dataclass

import onnx
import zstandard

from graphopt.ir.exporter import export_graph
from graphopt.ir.payload import StoredTensor
from graphopt.ir.tensors import inline
from graphopt.ir.wire import Dense, TensorMessage, serialized, varint_bytes
from graphopt.model import PROTOBUF_LIMIT, Model
from graphopt.writer import DataStream

_OWN_FRAME = 2**16  # bytes; a smaller weight is compressed better together with its neighbours
_CHUNK = 2**24  # bytes handed to the compressor at a time
_MARGIN = 2**26  # bytes that `Model.save` leaves for the structure when it decides on external data


@dataclass(frozen=True)
class FileSize:
    """Size of a model file with its external data.

    Attributes:
        nbytes: Bytes on disk.
        zstd_nbytes: Bytes after zstd; None where that was not asked for.
    """

    nbytes: int
    zstd_nbytes: int | None


class Scale:
    """Weighs models; remembers the weights it has seen, so that the next version of a model costs only what changed.

    Args:
        level: zstd compression level, 1 to 22; None: do not compress. Level 3 takes a few seconds a gigabyte, level 19
            minutes.

    Raises:
        ValueError: There is no such level.
    """

    def __init__(self, level: int | None = 3) -> None:
        if level is not None and not 1 <= level <= zstandard.MAX_COMPRESSION_LEVEL:
            raise ValueError(f"zstd level must be between 1 and {zstandard.MAX_COMPRESSION_LEVEL}, not {level}")
        self.level = level
        self._known: dict[tuple[int, str], tuple[weakref.ref[Dense], FileSize]] = {}

    def weigh(self, model: Model) -> FileSize:
        """Return the size of what `Model.save` would write under the name of the model's own path."""
        external = model.uses_external_data or model.weight_bytes > PROTOBUF_LIMIT - _MARGIN
        return self._weigh_pair(model) if external else self._weigh_single(model)

    def _weigh_single(self, model: Model) -> FileSize:
        """Weigh a model that is one file: large weights are weighed apart and stood in for."""
        weighed: list[FileSize] = []

        def write(name: str, held: Dense) -> onnx.TensorProto:
            if held.nbytes < _OWN_FRAME or held.dtype == object:
                return inline(name, held)
            weighed.append(self._remembered(held, name))
            return onnx.TensorProto(name=str(len(weighed) - 1), data_location=onnx.TensorProto.EXTERNAL)

        proto = export_graph(model.graph, model.residue, write)
        structure = serialized(proto)
        sizes = [size.nbytes for size in weighed]
        growth = _field_growth(proto.graph.ByteSize(), _growth(proto.graph, sizes)) if sizes else 0
        compressed = _sum([self._compressed(structure), *(size.zstd_nbytes for size in weighed)])
        return FileSize(len(structure) + growth, compressed)

    def _weigh_pair(self, model: Model) -> FileSize:
        """Weigh a model whose large weights are in a file of their own."""
        name = model.path.name if model.path is not None else "model.onnx"
        stream = DataStream(_Nowhere(), f"{name}.data")
        weighed: dict[int, FileSize] = {}

        def write(name: str, held: Dense) -> onnx.TensorProto:
            proto = stream.write(name, held)
            if proto.data_location == onnx.TensorProto.EXTERNAL:
                weighed[id(held)] = self._remembered(held, None)
            return proto

        structure = serialized(export_graph(model.graph, model.residue, write))
        compressed = _sum([self._compressed(structure), *(size.zstd_nbytes for size in weighed.values())])
        return FileSize(len(structure) + stream.used, compressed)

    def _remembered(self, held: Dense, name: str | None) -> FileSize:
        """Return the size of a weight: of its tensor message under a name, or of its bytes alone."""
        key = (id(held), "" if name is None else f"={name}")
        reference, size = self._known.get(key, (None, None))
        if reference is None or size is None or reference() is not held:
            if self.level is None:
                return FileSize(held.nbytes if name is None else len(TensorMessage(name, held)), None)
            content = _raw_bytes(held) if name is None else b"".join(TensorMessage(name, held).pieces())
            size = FileSize(len(content), self._compressed(content))
            self._known[key] = (weakref.ref(held), size)
        return size

    def _compressed(self, content: bytes | memoryview) -> int | None:
        if self.level is None:
            return None
        frame = zstandard.ZstdCompressor(level=self.level).compressobj(size=len(content))
        chunks = (content[start : start + _CHUNK] for start in range(0, len(content), _CHUNK))
        return sum(len(frame.compress(chunk)) for chunk in chunks) + len(frame.flush())


def _sum(sizes: Iterable[int | None]) -> int | None:
    known = [size for size in sizes if size is not None]
    return sum(known) if known else None


class _Nowhere(io.BytesIO):
    """A file that keeps nothing."""

    def write(self, content: object, /) -> int:
        return memoryview(content).nbytes  # type: ignore[arg-type]


def _raw_bytes(held: Dense) -> bytes | memoryview:
    return held.raw_bytes() if isinstance(held, StoredTensor) else inline("", held).raw_data


def _growth(graph: onnx.GraphProto, sizes: list[int]) -> int:
    """Return the bytes that a serialized graph gains when its stand-ins become the tensors they stand for."""
    growth = 0
    for tensor in graph.initializer:
        if tensor.data_location == onnx.TensorProto.EXTERNAL:  # nothing else is, of what was exported inline
            small = tensor.ByteSize()
            growth += _field_growth(small, sizes[int(tensor.name)] - small)
    for node in graph.node:
        inner = 0
        for attribute in node.attribute:
            if attribute.HasField("g"):
                body = _field_growth(attribute.g.ByteSize(), _growth(attribute.g, sizes))
                inner += _field_growth(attribute.ByteSize(), body)
        growth += _field_growth(node.ByteSize(), inner) if inner else 0
    return growth


def _field_growth(before: int, growth: int) -> int:
    """Return the growth of a length-prefixed field whose content grows: the length itself may need more bytes."""
    return growth + varint_bytes(before + growth) - varint_bytes(before)
