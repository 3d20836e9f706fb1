"""The forms in which a weight can be stored, each decoding to exactly the same bits.

A form is found by looking at the values alone: few distinct values become a palette, values that a narrower type holds
exactly become that type, whole numbers times a scale become whole numbers and a scale, zeros become a bitmap.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import ml_dtypes
import numpy as np
import onnx_graphsurgeon as gs

from graphopt.passes.pack.bits import bits_for, packed_bytes, padded_count
from graphopt.passes.pack.decoders import Draft
from graphopt.passes.pack.scales import find_scales

_NODE_BYTES = 80  # rough size of a node of a decoder
_SAMPLED = 1 << 14  # elements that are looked at before all are
_NARROWER: dict[np.dtype, tuple[np.dtype, ...]] = {
    np.dtype(np.float64): tuple(map(np.dtype, (np.int8, np.uint8, np.float16, np.float32))),
    np.dtype(np.float32): tuple(map(np.dtype, (np.int8, np.uint8, np.float16, ml_dtypes.bfloat16))),
    np.dtype(np.float16): tuple(map(np.dtype, (np.int8, np.uint8))),
    np.dtype(np.int64): tuple(map(np.dtype, (np.int8, np.uint8, np.int16, np.int32))),
    np.dtype(np.int32): tuple(map(np.dtype, (np.int8, np.uint8, np.int16))),
}
STORED = frozenset(
    (*_NARROWER, *map(np.dtype, (np.int8, np.uint8, np.bool_, ml_dtypes.bfloat16)))
)  # types of weights that there are decoders for


@dataclass(frozen=True, eq=False)
class Form:
    """One way to store a weight.

    Attributes:
        kind: Name for the report.
        nbytes: Bytes in the file, its nodes estimated.
        opset: First operator set version that has what its decoder needs.
    """

    kind: str
    nbytes: int
    opset: int

    def build(self, draft: Draft) -> gs.Tensor:
        """Add the decoder to a draft and return the decoded tensor."""
        raise NotImplementedError


@dataclass(frozen=True, eq=False)
class EqualForm(Form):
    """One value everywhere: Expand."""

    value: np.ndarray
    shape: tuple[int, ...]

    def build(self, draft: Draft) -> gs.Tensor:
        """Add the decoder to a draft and return the decoded tensor."""
        shape = draft.common("shape", np.array(self.shape, np.int64))
        return draft.node("Expand", [draft.stored("value", self.value), shape])


@dataclass(frozen=True, eq=False)
class CastForm(Form):
    """A narrower type that holds every value exactly: Cast."""

    narrow: np.ndarray
    dtype: np.dtype

    def build(self, draft: Draft) -> gs.Tensor:
        """Add the decoder to a draft and return the decoded tensor."""
        return draft.widened(str(self.narrow.dtype), self.narrow, self.dtype)


@dataclass(frozen=True, eq=False)
class PaletteForm(Form):
    """Codes into at most 256 levels: Gather."""

    values: np.ndarray
    distinct: np.ndarray

    def build(self, draft: Draft) -> gs.Tensor:
        """Add the decoder to a draft and return the decoded tensor."""
        return draft.levels(palette_codes(self.values, self.distinct), self.distinct)


@dataclass(frozen=True, eq=False)
class ScaledForm(Form):
    """Values of another form times a scale for each index of one axis: Mul."""

    inner: Form
    scale: np.ndarray

    def build(self, draft: Draft) -> gs.Tensor:
        """Add the decoder to a draft and return the decoded tensor."""
        return draft.scaled(self.inner.build(draft), self.scale)


@dataclass(frozen=True, eq=False)
class SparseForm(Form):
    """A bit for each value that is not zero, and these values in another form: CumSum, Gather."""

    mask: np.ndarray
    inner: Form

    def build(self, draft: Draft) -> gs.Tensor:
        """Add the decoder to a draft and return the decoded tensor."""
        bits = draft.bits(self.mask.reshape(-1))
        place = draft.node("CumSum", [bits, draft.common("axis0", np.array(0, np.int64))])
        index = draft.node("Mul", [place, bits])
        return draft.reshape(draft.node("Gather", [self.inner.build(draft), index]), self.mask.shape)


def forms(values: np.ndarray) -> Iterator[Form]:
    """Yield every form that decodes to exactly these values.

    Args:
        values: A weight of one of the `STORED` types, any shape but empty.
    """
    values = np.ascontiguousarray(values)
    raw = _raw(values)
    if raw.size > 1 and (raw == raw[0]).all():
        yield EqualForm("one value", 2 * _NODE_BYTES, 8, values.reshape(-1)[:1].reshape(()), values.shape)
        return
    yield from _dense_forms(values)
    yield from _scaled_forms(values)
    yield from _sparse_forms(values, raw)


def _dense_forms(values: np.ndarray) -> Iterator[Form]:
    yield from _cast_forms(values)
    distinct = few_distinct(values)
    if distinct is None:
        return
    bits = bits_for(len(distinct))
    nbytes = packed_bytes(values.size, bits) + len(distinct) * values.dtype.itemsize
    if nbytes < values.nbytes:
        nodes = {1: 5, 2: 5, 4: 5, 8: 3}.get(bits, 8)
        opset = 7 if padded_count(values.size, bits) == values.size else 10
        yield PaletteForm(f"{bits}-bit palette", nbytes + nodes * _NODE_BYTES, opset, values, distinct)


def _cast_forms(values: np.ndarray) -> Iterator[Form]:
    for dtype in _NARROWER.get(values.dtype, ()):
        if _holds(dtype, values.reshape(-1)[:_SAMPLED]) and _holds(dtype, values):
            narrow = values.astype(dtype)
            opset = 13 if dtype == ml_dtypes.bfloat16 else 9
            yield CastForm(str(dtype), narrow.nbytes + 2 * _NODE_BYTES, opset, narrow, values.dtype)
            return


def _scaled_forms(values: np.ndarray) -> Iterator[Form]:
    if values.dtype != np.float32 or values.ndim < 2:
        return
    for axis in dict.fromkeys((0, values.ndim - 1)):
        found = find_scales(values, axis)
        if found is None:
            continue
        whole, scale = found
        for inner in (*_dense_forms(whole), *_sparse_forms(whole, _raw(whole))):
            nbytes = inner.nbytes + scale.nbytes + 2 * _NODE_BYTES
            yield ScaledForm(f"{inner.kind} and scales", nbytes, inner.opset, inner, scale)


def _sparse_forms(values: np.ndarray, raw: np.ndarray) -> Iterator[Form]:
    """Yield the forms in which the values that are not zero come after a zero, which stands for all others."""
    mask = raw != 0
    kept = int(np.count_nonzero(mask))
    if not 0 < kept < 7 * mask.size // 8:
        return
    listed = np.concatenate([np.zeros(1, values.dtype), values.reshape(-1)[mask]])
    bitmap = packed_bytes(mask.size, 1) + 6 * _NODE_BYTES
    for inner in (PlainForm("", listed.nbytes + _NODE_BYTES, 11, listed), *_dense_forms(listed)):
        nbytes = bitmap + inner.nbytes
        yield SparseForm(
            f"sparse {inner.kind}".strip(), nbytes, max(11, inner.opset), mask.reshape(values.shape), inner
        )


@dataclass(frozen=True, eq=False)
class PlainForm(Form):
    """The values as they are, inside another form."""

    values: np.ndarray

    def build(self, draft: Draft) -> gs.Tensor:
        """Add the values to a draft."""
        return draft.plain("values", self.values)


def few_distinct(values: np.ndarray) -> np.ndarray | None:
    """Return the distinct values in ascending order of their bits, or None if there are more than 256."""
    raw = _raw(values)
    if len(np.unique(raw[:_SAMPLED])) > 256:
        return None
    distinct = np.unique(raw)
    return distinct.view(values.dtype) if len(distinct) <= 256 else None


def palette_codes(values: np.ndarray, distinct: np.ndarray) -> np.ndarray:
    """Return the index of each value among `distinct` (as `few_distinct` gives them), uint8, shaped like `values`."""
    return np.searchsorted(_raw(distinct), _raw(values)).astype(np.uint8).reshape(values.shape)


def _raw(values: np.ndarray) -> np.ndarray:
    """Return the bits of the values, flat."""
    return np.ascontiguousarray(values).reshape(-1).view(f"u{values.dtype.itemsize}")


def _holds(dtype: np.dtype, values: np.ndarray) -> bool:
    """Whether a type holds the values exactly, down to signed zeros and the bits of NaN."""
    with np.errstate(over="ignore", invalid="ignore"):
        back = values.astype(dtype).astype(values.dtype)
    return bool(np.array_equal(_raw(back), _raw(values)))
