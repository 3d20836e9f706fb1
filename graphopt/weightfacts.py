"""What weights look like: range, zeros, how much lies around zero, channels that repeat others."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs

from graphopt.ir.graph import payload
from graphopt.ir.payload import StoredSparseTensor

_CHUNK = 2**22  # elements looked at together
_HALF_STEP = 1 / 254  # of 8 bits, symmetric, over the largest magnitude: 127 steps on each side


@dataclass(frozen=True)
class WeightFacts:
    """What one weight looks like.

    Attributes:
        name: Name of its tensor.
        dtype: Element type.
        shape: Its shape.
        low: Smallest value; None where there is none, or one is not finite.
        high: Largest value, likewise.
        zeros: Elements that are zero.
        near_zero: Elements, zeros included, that would be zero in 8 bits with one scale for the whole weight: of at
            most half a step. None for integers.
        channels: Output channels of a layer; None for other weights.
        repeated: Channels that equal an earlier one in every bit; those of zeros only are among them, but for one.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    low: float | None
    high: float | None
    zeros: int
    near_zero: int | None
    channels: int | None
    repeated: int | None

    @property
    def elements(self) -> int:
        """How many there are."""
        return math.prod(self.shape)


def weight_facts(constant: gs.Constant, axis: int | None) -> WeightFacts | None:
    """Return what a weight looks like, in a bounded piece of memory beside it; None for text and sparse tensors.

    Args:
        constant: The weight.
        axis: That of the output channels, see `channel_axis`.
    """
    held = payload(constant)
    if isinstance(held, StoredSparseTensor) or held.dtype == object:
        return None
    values = constant.values
    floating = "float" in values.dtype.name  # numpy does not know the short types for floats
    ends = [(float(part.min()), float(part.max())) for part in _chunks(values)]
    low, high = (min(end[0] for end in ends), max(end[1] for end in ends)) if ends else (math.nan, math.nan)
    finite = math.isfinite(low) and math.isfinite(high)
    limit = max(abs(low), abs(high)) * _HALF_STEP if finite and floating else 0.0
    return WeightFacts(
        name=constant.name,
        dtype=values.dtype.name,
        shape=tuple(values.shape),
        low=low if finite else None,
        high=high if finite else None,
        zeros=sum(int(np.count_nonzero(part == 0)) for part in _chunks(values)),
        near_zero=sum(int(np.count_nonzero(np.abs(part) <= limit)) for part in _chunks(values)) if floating else None,
        channels=None if axis is None else values.shape[axis],
        repeated=None if axis is None else repeated_channels(values, axis),
    )


def channel_axis(node: gs.Node, constant: gs.Constant) -> int | None:
    """Return the axis of a layer's weight that its output channels lie along; None where it has no such axis."""
    weight = node.inputs[1] if (node.domain or "") in ("", "ai.onnx") and len(node.inputs) > 1 else None
    source = weight.inputs[0] if weight is not None and weight.inputs else None
    held = source.attrs.get("value") if source is not None and source.op == "Constant" else weight
    if held is not constant:
        return None
    rank = len(payload(constant).shape)
    if node.op == "Conv":
        return 0
    if node.op == "ConvTranspose":
        return 1 if int(node.attrs.get("group", 1)) == 1 else None
    if node.op == "Gemm":
        return 0 if node.attrs.get("transB", 0) else 1
    return rank - 1 if node.op == "MatMul" and rank > 1 else None


def repeated_channels(values: np.ndarray, axis: int) -> int:
    """Return how many channels equal an earlier one, bit by bit.

    Channels are told apart by a random linear hash of their bits; those whose hashes agree are compared.

    Args:
        values: A weight, in any shape.
        axis: That of the channels.
    """
    rows = np.moveaxis(values, axis, 0).reshape(values.shape[axis], -1)
    if rows.size == 0:
        return max(len(rows) - 1, 0)
    hashes = np.concatenate([_hashes(rows[start : start + step]) for start, step in _steps(rows)])
    _, first, group = np.unique(hashes, return_index=True, return_inverse=True)
    copies = np.flatnonzero(first[group] != np.arange(len(rows)))
    return sum(int(_same(rows[index], rows[first[group[index]]])) for index in copies)


def _hashes(rows: np.ndarray) -> np.ndarray:
    """Return a 64-bit hash of each row: the sum of its bit patterns times random odd numbers, modulo 2^64."""
    patterns = np.ascontiguousarray(rows).view(f"u{rows.dtype.itemsize}").astype(np.uint64)
    factors = np.random.default_rng(0).integers(0, 2**63, rows.shape[1], np.uint64) * np.uint64(2) + np.uint64(1)
    return np.asarray((patterns * factors).sum(axis=1, dtype=np.uint64))


def _same(row: np.ndarray, other: np.ndarray) -> bool:
    return row.tobytes() == other.tobytes()


def _steps(rows: np.ndarray) -> Iterator[tuple[int, int]]:
    step = max(1, _CHUNK // rows.shape[1])
    return ((start, step) for start in range(0, len(rows), step))


def _chunks(values: np.ndarray) -> Iterator[np.ndarray]:
    """Yield pieces of a weight, flat, in a type that numpy reckons with."""
    flat = values.reshape(-1)
    for start in range(0, flat.size, _CHUNK):
        part = flat[start : start + _CHUNK]
        yield part if part.dtype.kind in "iufb" and part.dtype.itemsize > 2 else part.astype(np.float32)
