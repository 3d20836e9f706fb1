"""A model as the pieces of its file: large weights go from where they lie to the file, one at a time.

In protobuf's encoding (https://protobuf.dev/programming-guides/encoding) the fields of a message may come in any
order, so the weights go last: what is around them is serialized as usual, and neither their messages nor the whole
file are ever held in memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import onnx
from google.protobuf.message import EncodeError

from graphopt.errors import ModelError
from graphopt.ir.payload import StoredTensor, stored_bytes, tensors_of
from graphopt.ir.tensors import header, inline

_LARGE = 1024  # bytes; smaller weights are serialized at once
_CHUNK = 2**24  # bytes handed out at a time
_LIMIT = 2**31 - 1  # bytes of a message
_GRAPH = onnx.ModelProto.DESCRIPTOR.fields_by_name["graph"].number
_INITIALIZER = onnx.GraphProto.DESCRIPTOR.fields_by_name["initializer"].number
_RAW_DATA = onnx.TensorProto.DESCRIPTOR.fields_by_name["raw_data"].number

Dense = StoredTensor | np.ndarray
Piece = bytes | memoryview


@dataclass(frozen=True)
class TensorMessage:
    """The message of a weight, which is made only piece by piece.

    Attributes:
        name: Name of the tensor.
        held: Its values.
    """

    name: str
    held: Dense

    def __len__(self) -> int:
        """Return its bytes."""
        ready = self._ready()
        if ready is not None:
            return int(ready.ByteSize())
        head, raw = self._header(), self._raw_size()
        return int(head.ByteSize()) + len(_opening(_RAW_DATA, raw)) + raw

    def pieces(self) -> Iterator[Piece]:
        """Yield it."""
        ready = self._ready()
        if ready is not None:
            yield serialized(ready)
            return
        yield serialized(self._header())
        yield _opening(_RAW_DATA, self._raw_size())
        yield from raw_chunks(self.held)

    def _ready(self) -> onnx.TensorProto | None:
        """Return the message as the file had it, where it has more to it than bytes.

        Of all others the size is added up: protobuf serializes a message to learn its size.
        """
        held = self.held
        if not isinstance(held, StoredTensor) or held.is_external or held.tensor.name != self.name:
            return None
        tensor = held.tensor
        plain = tensor.HasField("raw_data") and not tensor.HasField("data_location")
        return None if plain and not tensor.HasField("segment") and not tensor.external_data else tensor

    def _header(self) -> onnx.TensorProto:
        return header(self.name, self.held)

    def _raw_size(self) -> int:
        return stored_bytes(onnx.helper.np_dtype_to_tensor_dtype(self.held.dtype), tuple(self.held.shape))


class Pieces:
    """Keeps large weights out of a proto: export it with `write`, then write what `of` makes of it."""

    def __init__(self) -> None:
        self._held: list[Dense] = []

    def write(self, name: str, held: Dense) -> onnx.TensorProto:
        """Return a tensor, or what stands in for a large one; a `PayloadWriter`."""
        if held.nbytes < _LARGE or held.dtype == object:
            return inline(name, held)
        stand_in = onnx.TensorProto(name=name, data_location=onnx.TensorProto.EXTERNAL)
        stand_in.external_data.add(key="location", value=str(len(self._held)))
        self._held.append(held)
        return stand_in

    def of(self, proto: onnx.ModelProto) -> Iterator[Piece]:
        """Yield the file of a model, which loses its weights on the way.

        Args:
            proto: Exported with `write`.

        Raises:
            ModelError: The file would exceed protobuf's limit of 2 GiB; raised before the first piece.
        """
        weights = [self._behind(tensor) or serialized(tensor) for tensor in proto.graph.initializer]
        del proto.graph.initializer[:]
        for tensor in tensors_of(proto):  # weights of bodies stay where they are
            message = self._behind(tensor) if isinstance(tensor, onnx.TensorProto) else None
            if message is not None:
                tensor.ParseFromString(b"".join(message.pieces()))
        inner = serialized(proto.graph)
        proto.ClearField("graph")
        outer = serialized(proto)
        sizes = [len(weight) for weight in weights]
        openings = [_opening(_INITIALIZER, nbytes) for nbytes in sizes]
        size = len(inner) + sum(map(len, openings)) + sum(sizes)
        if len(outer) + size > _LIMIT:
            raise ModelError(f"the model has {size} bytes and does not fit into one protobuf message of 2 GiB")
        yield from (outer, _opening(_GRAPH, size), inner)
        for opening, weight in zip(openings, weights, strict=True):
            yield opening
            yield from (weight,) if isinstance(weight, bytes) else weight.pieces()

    def _behind(self, tensor: onnx.TensorProto) -> TensorMessage | None:
        """Return what a tensor stands in for; no other one that was exported inline is external."""
        if tensor.data_location != onnx.TensorProto.EXTERNAL:
            return None
        return TensorMessage(tensor.name, self._held[int(tensor.external_data[0].value)])


def raw_chunks(held: Dense) -> Iterator[memoryview]:
    """Yield the little-endian packed bytes of a weight, as ONNX's raw_data has them, in pieces of 16 MB."""
    if isinstance(held, StoredTensor):
        return held.raw_chunks(_CHUNK)
    raw = memoryview(inline("", held).raw_data)
    return (raw[start : start + _CHUNK] for start in range(0, len(raw), _CHUNK))


def varint_bytes(value: int) -> int:
    """Return how many bytes a number takes: seven bits each."""
    return max(1, -(-value.bit_length() // 7))


def serialized(proto: onnx.ModelProto | onnx.GraphProto | onnx.TensorProto) -> bytes:
    """Return the bytes of a message, the same every time.

    Raises:
        ModelError: They exceed protobuf's limit of 2 GiB.
    """
    try:
        return bytes(proto.SerializeToString(deterministic=True))
    except (EncodeError, ValueError) as error:
        raise ModelError(f"the model does not fit into one protobuf message of 2 GiB: {error}") from error


def _opening(field: int, size: int) -> bytes:
    """Return what stands before the content of a field of bytes or of a message: its number, wire type 2, its size."""
    return _varint(field << 3 | 2) + _varint(size)


def _varint(value: int) -> bytes:
    last = varint_bytes(value) - 1
    return bytes((value >> 7 * place & 0x7F) | (0x80 if place < last else 0) for place in range(last + 1))
