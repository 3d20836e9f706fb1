"""The forms in which a weight can be stored, each decoding to exactly the same bits.

A form is found by looking at the values alone: few distinct values become a palette, integers become short codes,
values that half precision holds exactly become half precision.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import ml_dtypes
import numpy as np
import onnx_graphsurgeon as gs

from graphopt.passes.pack.bits import packed_bytes
from graphopt.passes.pack.decoders import DecoderBuilder

_NODE_BYTES = 90  # rough size of a node of a decoder in the file, its names included


@dataclass(frozen=True)
class Form:
    """One way to store a weight.

    Attributes:
        kind: Name for the report.
        nbytes: Estimate of the bytes in the file, decoder included.
    """

    kind: str
    nbytes: int

    def build(self, name: str, values: np.ndarray, builder: DecoderBuilder) -> gs.Tensor:
        """Add the decoder and return the decoded tensor."""
        raise NotImplementedError


@dataclass(frozen=True)
class CastForm(Form):
    """A narrower floating type that holds every value exactly: Cast."""

    dtype: np.dtype

    def build(self, name: str, values: np.ndarray, builder: DecoderBuilder) -> gs.Tensor:
        """Add the decoder and return the decoded tensor."""
        return builder.cast(name, builder.stored(name, str(self.dtype), values.astype(self.dtype)), values.dtype)


@dataclass(frozen=True)
class PaletteForm(Form):
    """Codes into at most 256 levels: Gather."""

    bits: int
    levels: np.ndarray

    def build(self, name: str, values: np.ndarray, builder: DecoderBuilder) -> gs.Tensor:
        """Add the decoder and return the decoded tensor."""
        return builder.palette(name, palette_codes(values, self.levels), self.bits, self.levels, None)


@dataclass(frozen=True)
class IntegerForm(Form):
    """Codes of short integers: Sub, Cast."""

    bits: int
    low: int

    def build(self, name: str, values: np.ndarray, builder: DecoderBuilder) -> gs.Tensor:
        """Add the decoder and return the decoded tensor."""
        codes = (values.astype(np.int32) - self.low).astype(np.uint8)
        return builder.integers(name, codes, self.bits, -self.low, values.dtype, None)


def forms(values: np.ndarray) -> Iterator[Form]:
    """Yield every form that decodes to exactly these values.

    Args:
        values: A weight of a floating type or int8 or uint8, any shape.
    """
    if values.dtype in (np.dtype(np.int8), np.dtype(np.uint8)):
        yield from _integer_forms(values)
        return
    if values.dtype == np.float32:
        yield from _cast_forms(values)
    yield from _palette_forms(values)


def _integer_forms(values: np.ndarray) -> Iterator[Form]:
    low, high = int(values.min()), int(values.max())
    bits = max(1, math.ceil(math.log2(high - low + 1))) if high > low else 1
    if bits < 8:
        yield IntegerForm("int", packed_bytes(values.size, bits) + _decoder_bytes(bits), bits, low)
    distinct = np.unique(values)
    bits = _bits_for(len(distinct))
    if bits < 8:
        nbytes = packed_bytes(values.size, bits) + len(distinct) + _decoder_bytes(bits)
        yield PaletteForm("palette", nbytes, bits, distinct)


def _cast_forms(values: np.ndarray) -> Iterator[Form]:
    for dtype in (np.dtype(np.float16), np.dtype(ml_dtypes.bfloat16)):
        with np.errstate(over="ignore"):
            narrow = values.astype(dtype)
        if _same_bits(narrow.astype(values.dtype), values):
            yield CastForm(str(dtype), 2 * values.size + 2 * _NODE_BYTES, dtype)


def _palette_forms(values: np.ndarray) -> Iterator[Form]:
    levels = few_distinct(values)
    if levels is None:
        return
    bits = _bits_for(len(levels))
    nbytes = packed_bytes(values.size, bits) + levels.nbytes + _decoder_bytes(bits)
    yield PaletteForm("palette", nbytes, bits, levels)


def few_distinct(values: np.ndarray) -> np.ndarray | None:
    """Return the distinct values in ascending order of their bits, or None if there are more than 256."""
    raw = np.ascontiguousarray(values).ravel().view(f"u{values.dtype.itemsize}")
    if len(np.unique(raw[: 1 << 14])) > 256:
        return None
    distinct = np.unique(raw)
    return distinct.view(values.dtype) if len(distinct) <= 256 else None


def palette_codes(values: np.ndarray, levels: np.ndarray) -> np.ndarray:
    """Return the index of each value's level, compared bit by bit, uint8 with the shape of `values`."""
    kind = f"u{values.dtype.itemsize}"
    raw, keys = np.ascontiguousarray(values).view(kind), levels.view(kind)
    order = np.argsort(keys)
    return order[np.searchsorted(keys[order], raw)].astype(np.uint8)


def _bits_for(count: int) -> int:
    return max(1, math.ceil(math.log2(count))) if count > 1 else 1


def _decoder_bytes(bits: int) -> int:
    return _NODE_BYTES * {1: 20, 2: 12, 3: 34, 4: 8, 5: 28, 6: 20, 7: 42, 8: 4}[bits]


def _same_bits(left: np.ndarray, right: np.ndarray) -> bool:
    return left.tobytes() == right.tobytes()
