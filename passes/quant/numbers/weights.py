"""Weights as 8-bit integers with one scale per output channel.

On processors without VNNI the integer kernels add the products of two neighbouring inputs in 16 bits (VPMADDUBSW),
which saturates when 255 * (w0 + w1) exceeds 32767, that is, when two neighbours of one sign add up to more than 128.
The usual remedy is 7-bit weights. But only *pairs* matter: a channel may use all 8 bits as long as no pair exceeds the
sum. So the sum of a pair is bounded here instead of each weight, and the scale that loses least under that bound is
searched.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

Pairing = Literal["none", "even", "all"]
"""Which neighbours along the inputs share a 16-bit sum: none, those at (0, 1), (2, 3), ..., or, where the alignment is
not known, every two neighbours."""

LIMIT, PAIR_LIMIT = 127, 128
_BATCH = 2**20  # weights in one step of the search
_FINEST, _COARSEST = 0.7, 2.05  # scale to try, in units of absmax / 127; with pairs bounded, 127 / 64 is always enough
_TRIED = 28


@dataclass(frozen=True)
class QuantizedWeight:
    """A weight in integers.

    Attributes:
        values: int8, in the shape of the weight.
        scale: float32, one per output channel, positive.
        axis: Axis of `values` that `scale` runs along; None if it has one element for all.
    """

    values: np.ndarray
    scale: np.ndarray
    axis: int | None

    def restored(self) -> np.ndarray:
        """Return the real weights that the integers stand for, float32."""
        if self.axis is None:
            return np.asarray(self.values * self.scale, np.float32)
        shape = [1] * self.values.ndim
        shape[self.axis] = -1
        return np.asarray(self.values * self.scale.reshape(shape), np.float32)


def fits(weight: QuantizedWeight, least: np.ndarray | None) -> bool:
    """Whether the scales are at least so large."""
    return least is None or not np.any(weight.scale < least)


def quantize_rows(
    rows: np.ndarray, pairing: Pairing = "none", least: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Quantize a matrix symmetrically with one scale a row, the one with the least squared error.

    Args:
        rows: [channels, inputs], in the order in which the kernel sums over the inputs.
        pairing: Which neighbours must not add up to more than `PAIR_LIMIT`.
        least: Least scale of each row; none by default.

    Returns:
        Codes int8 [channels, inputs] and scales float32 [channels]. A row of zeros gets the scale 1.
    """
    codes, scales = np.empty(rows.shape, np.int8), np.empty(len(rows), np.float32)
    step = max(1, _BATCH // max(rows.shape[1], 1))
    for start in range(0, len(rows), step):
        part = slice(start, start + step)
        scales[part] = best_scales(rows[part].astype(np.float32), pairing)
        if least is not None:
            scales[part] = np.maximum(scales[part], least[part])
        codes[part] = encode(rows[part], scales[part], pairing)
    return codes, scales


def best_scales(rows: np.ndarray, pairing: Pairing) -> np.ndarray:
    """Return the scale of each row with the least squared error, [channels]."""
    unit = np.abs(rows).max(axis=1, initial=0.0) / LIMIT
    unit = np.where(unit > np.finfo(np.float32).tiny, unit, 1.0).astype(np.float32)
    coarsest = 1.0 if pairing == "none" else _COARSEST
    best, error = unit, np.full(len(rows), np.inf)
    for factor in np.linspace(_FINEST, coarsest, _TRIED, dtype=np.float32):
        scale = unit * factor
        difference = encode(rows, scale, pairing) * scale[:, None] - rows
        found = np.einsum("ij,ij->i", difference, difference)
        best, error = np.where(found < error, scale, best), np.minimum(found, error)
    return np.asarray(best, np.float32)


def encode(rows: np.ndarray, scale: np.ndarray, pairing: Pairing) -> np.ndarray:
    """Return the codes of the rows under given scales, int8 [channels, inputs].

    A pair that exceeds the bound is moved to the nearest one that does not: both neighbours give half of the excess.
    """
    codes: np.ndarray = np.clip(np.rint(rows / scale[:, None]), -LIMIT, LIMIT).astype(np.int16)
    _bound(codes, pairing)
    return codes.astype(np.int8)


def _bound(codes: np.ndarray, pairing: Pairing) -> None:
    if pairing != "none":
        _bound_pairs(codes[:, 0:], PAIR_LIMIT)
    if pairing == "all":
        _bound_pairs(codes[:, 1:], PAIR_LIMIT)


def _bound_pairs(codes: np.ndarray, limit: int) -> None:
    """Bound the sums of neighbours (0, 1), (2, 3), ... in place; giving way never breaks another pair's bound."""
    even = codes.shape[1] // 2 * 2
    first, second = codes[:, 0:even:2], codes[:, 1:even:2]
    total = first + second
    excess = np.sign(total) * np.maximum(np.abs(total) - limit, 0)
    half = excess // 2
    first -= excess - half
    second -= half


def saturates(codes: np.ndarray, pairing: Pairing) -> bool:
    """Whether a pair of the codes [channels, inputs] may exceed 16 bits."""
    sums = np.abs(codes[:, :-1].astype(np.int16) + codes[:, 1:])
    sums = sums[:, ::2] if pairing == "even" else sums
    return bool(pairing != "none" and (sums > PAIR_LIMIT).any())


def quantize_weight(
    weight: np.ndarray, axis: int, group: int = 1, *, pairs: bool = False, least: np.ndarray | None = None
) -> QuantizedWeight:
    """Quantize the weight of a Conv (axis 0), Gemm or MatMul (axis of its outputs).

    Args:
        weight: Conv [out, in / group, *kernel], matrix [in, out] or [out, in].
        axis: Axis of the outputs.
        group: Groups of a convolution.
        pairs: Whether the target's 16-bit sums must not saturate.
        least: Least scale of each output; none by default.
    """
    codes, scale = quantize_rows(to_rows(weight, axis), pairing_of(weight, group) if pairs else "none", least)
    return QuantizedWeight(from_rows(codes, weight.shape, axis), scale, axis)


def to_rows(weight: np.ndarray, axis: int) -> np.ndarray:
    """Return a weight as [outputs, inputs], the inputs in the order in which kernels sum over them.

    Convolutions sum over the channels of one position before they go on to the next.
    """
    rows = np.moveaxis(weight, axis, 0)
    if weight.ndim > 2:
        rows = np.moveaxis(rows, 1, -1)
    return rows.reshape(len(rows), -1)


def from_rows(rows: np.ndarray, shape: tuple[int, ...], axis: int) -> np.ndarray:
    """Return rows [outputs, inputs] in the shape of the weight; the inverse of `to_rows`."""
    shape = (shape[axis], *shape[:axis], *shape[axis + 1 :])
    convolution = len(shape) > 2
    values = rows.reshape(shape[0], *shape[2:], shape[1]) if convolution else rows.reshape(shape)
    values = np.moveaxis(values, -1, 1) if convolution else values
    return np.ascontiguousarray(np.moveaxis(values, 0, axis))


def bounded(codes: np.ndarray, axis: int, group: int = 1) -> np.ndarray:
    """Return codes in the shape of a weight with the sums of pairs bounded, int8."""
    rows = to_rows(codes, axis).astype(np.int16)
    _bound(rows, pairing_of(codes, group))
    return from_rows(rows.astype(np.int8), codes.shape, axis)


def pairing_of(weight: np.ndarray, group: int) -> Pairing:
    """Return which neighbours share a 16-bit sum in the kernels for a weight."""
    if weight.ndim == 2:
        return "even"
    if weight.shape[1] == 1 and group > 1:
        return "none"  # the depthwise kernels widen before they multiply (tested)
    return "even" if weight.shape[1] % 2 == 0 else "all"


def quantize_tensor(weight: np.ndarray, *, limit: int = LIMIT, least: float | None = None) -> QuantizedWeight:
    """Quantize with one scale (at least `least`) for the whole tensor, codes in [-limit, limit]."""
    scale = np.float32(max(np.abs(weight).max(initial=0.0) / limit, least or 0.0)) or np.float32(1.0)
    codes = np.clip(np.rint(weight / scale), -limit, limit).astype(np.int8)
    return QuantizedWeight(codes, np.asarray(scale, np.float32), None)


_BIAS_LIMIT = 2**30  # half of int32, so that the sum of products still has room


def quantize_bias(bias: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """Return the bias in int32 units of `scale` (input scale times weight scale), [channels].

    Raises:
        ValueError: It does not fit; `least_scale` tells which weight scale it takes.
    """
    codes = np.rint(bias.astype(np.float64) / scale)
    if np.any(np.abs(codes) > 2 * _BIAS_LIMIT - 1):
        raise ValueError("the bias does not fit into 32 bits at this scale")
    return np.asarray(codes, np.int32)


def least_scale(bias: np.ndarray, input_scale: float) -> np.ndarray:
    """Return the least weight scale of each channel with which its bias fits into 32 bits, with room for products."""
    return np.asarray(np.abs(bias.astype(np.float64)) / (float(input_scale) * _BIAS_LIMIT), np.float32)
