"""Which range of an activation the 256 integers should cover, chosen from its histogram.

A wider range rounds more coarsely, a narrower one clips. The functions are pure and take a histogram of equal bins.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

RangeMethod = Literal["minmax", "percentile", "mse", "entropy"]
METHODS: tuple[RangeMethod, ...] = get_args(RangeMethod)
LEVELS = 255  # steps of an unsigned 8-bit integer
_SIGNED = 127  # largest signed one
_TINY = 1e-12  # ranges narrower than this are no ranges
_SHRINK = np.linspace(0.1, 1.0, 46)  # candidate ends, as fractions of the observed end
_FINE = 2  # bins to a level that the divergence needs
_SWEEPS = 2  # of coordinate descent over the two ends
_PERCENTILE = 1e-5  # of the values clipped at each end; the default of other tools (99.999 %)


@dataclass(frozen=True)
class Affine:
    """How integers stand for reals: real = scale * (integer - zero_point).

    Attributes:
        scale: Positive.
        zero_point: In [0, 255]; 0 where integers are signed.
        signed: Whether they are int8, -128 to 127; else uint8.
    """

    scale: np.float32
    zero_point: int
    signed: bool = False

    @property
    def dtype(self) -> np.dtype:
        """Type of the integers."""
        return np.dtype(np.int8 if self.signed else np.uint8)

    @property
    def _ends(self) -> tuple[int, int]:
        return (-128, 127) if self.signed else (0, LEVELS)

    @property
    def low(self) -> float:
        """Least real value that can be stored."""
        return float(self.scale) * (self._ends[0] - self.zero_point)

    @property
    def high(self) -> float:
        """Largest real value that can be stored."""
        return float(self.scale) * (self._ends[1] - self.zero_point)

    def round_trip(self, values: np.ndarray) -> np.ndarray:
        """Return what is left of the values after storing them as integers."""
        codes = self.codes(values).astype(np.float32) - self.zero_point
        return np.asarray(codes * self.scale, values.dtype)

    def codes(self, values: np.ndarray) -> np.ndarray:
        """Return the integers that stand for the values."""
        codes: np.ndarray = np.clip(np.rint(values / self.scale) + self.zero_point, *self._ends)
        return codes.astype(self.dtype)


def affine(low: float, high: float, *, signed: bool = False) -> Affine:
    """Return the parameters that cover a range; it is widened to hold zero, which must be exact (padding, ReLU).

    Args:
        low: Lower end.
        high: Upper end; a range without extent gives a scale that stores its one value exactly.
        signed: Whether integers are signed, with zero for zero; the range is widened to reach as far on both sides.

    Raises:
        ValueError: An end is not finite.
    """
    if not (np.isfinite(low) and np.isfinite(high)):
        raise ValueError(f"a range must be finite, not [{low}, {high}]")
    low, high = min(low, 0.0), max(high, 0.0)
    if high - low < _TINY:
        return Affine(np.float32(1.0), 0, signed)
    if signed:
        return Affine(np.float32(max(-low, high) / _SIGNED), 0, signed)
    scale = np.float32((high - low) / LEVELS)
    return Affine(scale, int(np.clip(np.rint(-low / float(scale)), 0, LEVELS)))


def choose_range(
    method: RangeMethod, low: float, high: float, counts: np.ndarray, edges: np.ndarray, *, symmetric: bool = False
) -> tuple[float, float]:
    """Return the range to cover.

    Args:
        method: Criterion.
        low: Least value seen.
        high: Largest value seen.
        counts: Histogram, [bins].
        edges: Ends of the bins, ascending, [bins + 1].
        symmetric: Whether the range must reach as far below zero as above.
    """
    costs = squared_errors if method == "mse" else divergences
    if symmetric and method in ("mse", "entropy") and np.any(counts) and high - low >= _TINY:
        ends = max(-low, high) * _SHRINK
        end = float(ends[np.argmin(costs(-ends, ends, counts, edges))])
        return -end, end
    if method == "minmax" or not np.any(counts) or high - low < _TINY:
        return low, high
    if method == "percentile":
        return _percentile(low, high, counts, edges)
    return _descend(costs, min(low, 0.0), max(high, 0.0), counts, edges)


def squared_errors(lows: np.ndarray, highs: np.ndarray, counts: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """Return the mean squared error of storing the values in each of several ranges.

    Inside a range rounding is noise of variance step^2 / 12; values outside go to its end. Zero is stored exactly, so
    the bin with zero in it (half of a ReLU's output) costs nothing.

    Args:
        lows: Lower ends.
        highs: Upper ends, of as many ranges.
        counts: Histogram, [bins].
        edges: Ends of the bins, ascending, [bins + 1].
    """
    centers = (edges[1:] + edges[:-1]) / 2
    number, first, second = (np.append(0.0, np.cumsum(counts * centers**power)) for power in range(3))
    noisy = np.append(0.0, np.cumsum(np.where((edges[:-1] <= 0) & (edges[1:] > 0), 0.0, counts)))
    begin, end = np.searchsorted(centers, lows, side="left"), np.searchsorted(centers, highs, side="right")
    below = second[begin] - 2 * lows * first[begin] + lows**2 * number[begin]
    above = (second[-1] - second[end]) - 2 * highs * (first[-1] - first[end]) + highs**2 * (number[-1] - number[end])
    inside = (noisy[end] - noisy[begin]) * ((highs - lows) / LEVELS) ** 2 / 12
    found: np.ndarray = (np.maximum(below, 0.0) + np.maximum(above, 0.0) + inside) / max(number[-1], 1.0)
    return found


def divergences(lows: np.ndarray, highs: np.ndarray, counts: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """Return the divergence of each of several ranges; see `divergence`."""
    return np.array([divergence(float(low), float(high), counts, edges) for low, high in zip(lows, highs, strict=True)])


def divergence(low: float, high: float, counts: np.ndarray, edges: np.ndarray) -> float:
    """Return the Kullback-Leibler divergence between the clipped values and the same after rounding to 256 levels.

    The criterion of TensorRT's calibrator, for ranges with two ends: values outside count at the ends of the clipped
    distribution, and each level spreads its mass evenly over its non-empty bins.
    """
    centers = (edges[1:] + edges[:-1]) / 2
    inside = (centers >= low) & (centers <= high)
    if np.count_nonzero(inside) < _FINE * (LEVELS + 1) and not inside.all():
        return float("inf")  # too few bins to a level to see what rounding does: narrow ranges would look exact
    kept = counts[inside].astype(np.float64)
    reference = kept.copy()
    reference[0] += counts[centers < low].sum()
    reference[-1] += counts[centers > high].sum()
    level = np.rint((centers[inside] - low) / (high - low) * LEVELS).astype(np.int64)
    filled = (kept > 0).astype(np.float64)
    mass, bins = np.bincount(level, kept), np.bincount(level, filled)
    spread = np.where(filled > 0, mass[level] / np.maximum(bins[level], 1.0), 0.0)
    p, q = reference / reference.sum(), spread / spread.sum()
    both = (p > 0) & (q > 0)
    lost = p[(p > 0) & (q == 0)].sum()
    return float(np.sum(p[both] * np.log(p[both] / q[both])) + lost)


def _percentile(low: float, high: float, counts: np.ndarray, edges: np.ndarray) -> tuple[float, float]:
    share = np.cumsum(counts) / np.sum(counts)
    first = int(np.searchsorted(share, _PERCENTILE, side="right"))
    last = int(np.searchsorted(share, 1 - _PERCENTILE, side="left"))
    return max(low, float(edges[first])), min(high, float(edges[min(last, len(counts) - 1) + 1]))


_Costs = Callable[[np.ndarray, np.ndarray, np.ndarray, np.ndarray], np.ndarray]


def _descend(costs: _Costs, low: float, high: float, counts: np.ndarray, edges: np.ndarray) -> tuple[float, float]:
    """Move one end at a time to where the cost is least."""
    lows, highs = low * _SHRINK, high * _SHRINK
    best_low, best_high = low, high
    for _ in range(_SWEEPS):
        if high > 0:
            best_high = float(highs[np.argmin(costs(np.full_like(highs, best_low), highs, counts, edges))])
        if low < 0:
            best_low = float(lows[np.argmin(costs(lows, np.full_like(lows, best_high), counts, edges))])
    return best_low, best_high
