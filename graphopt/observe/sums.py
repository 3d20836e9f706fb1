"""What is kept of the samples seen so far: small, and such that two of a kind add up to what one would have been."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

_FINEST = -126  # exponent of the narrowest bins; below it is what float32 rounds to zero or to denormals
_PRECISION = 24  # bits of an index of a bin: those of float32, so that indices are exact in it


@dataclass
class Extent:
    """Smallest and largest finite value.

    Attributes:
        low: Infinite where there was no finite value.
        high: Likewise, negative.
        elements: How many elements there were.
        nonfinite: How many of them were NaN or infinite.
    """

    low: float = math.inf
    high: float = -math.inf
    elements: int = 0
    nonfinite: int = 0

    def include(self, other: Extent) -> None:
        """Add other elements."""
        self.low = min(self.low, other.low)
        self.high = max(self.high, other.high)
        self.elements += other.elements
        self.nonfinite += other.nonfinite

    def merge(self, other: Extent) -> Extent:
        """Return the sum."""
        merged = Extent()
        merged.include(self)
        merged.include(other)
        return merged


@dataclass
class ChannelExtent:
    """Smallest and largest finite value of each channel, [channels]; without axes before the first."""

    low: np.ndarray = field(default_factory=lambda: np.array(math.inf))
    high: np.ndarray = field(default_factory=lambda: np.array(-math.inf))

    def include(self, low: np.ndarray, high: np.ndarray) -> None:
        """Add other elements.

        Raises:
            ValueError: There are more or fewer channels than before.
        """
        if self.low.ndim and self.low.shape != low.shape:
            raise ValueError(f"shape {list(low.shape)} after {list(self.low.shape)}")
        self.low, self.high = np.minimum(self.low, low), np.maximum(self.high, high)

    def merge(self, other: ChannelExtent) -> ChannelExtent:
        """Return the sum."""
        merged = ChannelExtent(self.low, self.high)
        if other.low.ndim:
            merged.include(other.low, other.high)
        return merged


@dataclass
class Counts:
    """A histogram over bins [i * 2^exponent, (i + 1) * 2^exponent).

    The exponent is the smallest for which all values so far fit into the number of bins. So it depends on the values
    only, not on their order, and widening the bins merges whole ones: counts stay exact.

    Attributes:
        bins: Largest number of bins.
        exponent: Of the width.
        first: Index i of the first bin.
        counts: Weighted number of values, first to last bin in use; empty before the first value.
    """

    bins: int
    exponent: int = _FINEST
    first: int = 0
    counts: np.ndarray = field(default_factory=lambda: np.zeros(0))

    def add(self, values: np.ndarray, weight: float) -> None:
        """Count finite float32 values, each `weight` times."""
        if not values.size:
            return
        low, high = float(values.min()), float(values.max())
        precise = _bits(max(abs(low), abs(high))) - _PRECISION
        narrow = _bits(high - low) - self.bins.bit_length()
        self._widen(max(_FINEST, precise, narrow), lambda exponent: (_index(low, exponent), _index(high, exponent)))
        scaled = values * np.float32(2.0**-self.exponent)  # exact, unless it is too small for float32
        indices = np.floor(scaled, out=scaled).astype(np.intp)
        if low < 0 and self.exponent > 0:  # what lies just below zero may have become zero
            indices -= (values < 0) & (indices == 0)
        indices -= self.first
        self.counts += np.bincount(indices, minlength=self.counts.size) * weight

    def merge(self, other: Counts) -> Counts:
        """Return the sum."""
        merged = Counts(self.bins, self.exponent, self.first, self.counts.copy())
        if other.counts.size:
            merged._widen(other.exponent, other._span)
            shifted = Counts(self.bins, other.exponent, other.first, other.counts)
            shifted._widen(merged.exponent, merged._span)
            merged.counts += shifted.counts
        return merged

    def edges(self) -> np.ndarray:
        """Return the edges of the bins, one more than there are counts."""
        return np.ldexp(np.arange(self.first, self.first + self.counts.size + 1, dtype=np.float64), self.exponent)

    def _widen(self, exponent: int, needed: Callable[[int], tuple[int, int]]) -> None:
        """Make room for more bins.

        Args:
            exponent: Smallest one that suits the values to come.
            needed: Returns the first and the last index of theirs for a given exponent.
        """
        empty = not self.counts.size
        exponent = exponent if empty else max(exponent, self.exponent)
        while True:
            first, last = needed(exponent)
            if not empty:
                begin, end = self._span(exponent)
                first, last = min(first, begin), max(last, end)
            if last - first < self.bins:
                break
            exponent += 1
        if empty or exponent != self.exponent or last - first >= self.counts.size:
            indices = ((self.first + np.arange(self.counts.size)) >> min(exponent - self.exponent, 63)) - first
            total = np.zeros(last - first + 1)
            np.add.at(total, indices, self.counts)
            self.exponent, self.first, self.counts = exponent, first, total

    def _span(self, exponent: int) -> tuple[int, int]:
        """Indices of the first and the last bin in use, were the width 2^exponent."""
        shift = exponent - self.exponent
        return self.first >> shift, (self.first + self.counts.size - 1) >> shift


def _index(value: float, exponent: int) -> int:
    return math.floor(math.ldexp(value, -exponent))


def _bits(value: float) -> int:
    """The exponent e with 2^(e-1) <= value < 2^e; for 0, one that is never the largest."""
    return math.frexp(value)[1] if value else 2 * _FINEST


@dataclass
class WeightedSum:
    """A sum of arrays and of their weights, in float64.

    Attributes:
        total: Sum of the values; without axes before the first.
        weight: Sum of the weights: a number, or one per element.
    """

    total: np.ndarray = field(default_factory=lambda: np.zeros(()))
    weight: np.ndarray = field(default_factory=lambda: np.zeros(()))

    def add(self, total: np.ndarray, weight: np.ndarray | float) -> None:
        """Add sums over some elements.

        Raises:
            ValueError: The shape is not that of the arrays before.
        """
        if not self.total.ndim:
            self.total = np.array(total, np.float64)
        elif self.total.shape == total.shape:
            self.total += total  # in place: second moments are large
        else:
            raise ValueError(f"shape {list(total.shape)} after {list(self.total.shape)}")
        self.weight = self.weight + weight

    def merge(self, other: WeightedSum) -> WeightedSum:
        """Return the sum."""
        merged = WeightedSum()
        for item in (self, other):
            if item.total.ndim:
                merged.add(item.total, item.weight)
        return merged

    def mean(self) -> np.ndarray:
        """Return the weighted mean; NaN where nothing was added."""
        with np.errstate(invalid="ignore", divide="ignore"):
            mean: np.ndarray = self.total / self.weight
        return mean


Sum = Extent | ChannelExtent | Counts | WeightedSum
