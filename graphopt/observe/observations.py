"""What a run over the samples found."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from graphopt.observe.statistics import ChannelMean, ChannelRange, Histogram, Range, SecondMoment, Statistic
from graphopt.observe.sums import ChannelExtent, Counts, Extent, Sum, WeightedSum

Sums = dict[tuple[str, Statistic], Sum]
KindT = TypeVar("KindT", Extent, ChannelExtent, Counts, WeightedSum)


@dataclass(frozen=True)
class Observations:
    """Statistics by tensor name.

    All are of finite values only; `nonfinite` tells how many elements were left out. That is, a second moment leaves
    out the row of a NaN or infinite element, and in operator sets below 9 all leave out its sample. Where a tensor had
    no value in any sample, ranges are (nan, nan), means are NaN and histograms empty. A name or a statistic that was
    not asked for raises KeyError.

    Attributes:
        samples: Number of samples.
        shapes: Shape of each tensor in the first sample.
        sums: What was summed up, by tensor and statistic; there is a `Range` of every tensor.
    """

    samples: int
    shapes: Mapping[str, tuple[int, ...]]
    sums: Mapping[tuple[str, Statistic], Sum]

    def shape(self, tensor: str) -> tuple[int, ...]:
        """Return the shape in the first sample."""
        if tensor not in self.shapes:
            raise KeyError(f"tensor '{tensor}' was not observed")
        return self.shapes[tensor]

    def range(self, tensor: str) -> tuple[float, float]:
        """Return the smallest and the largest value."""
        extent = self._sum(tensor, Range(), Extent)
        return (extent.low, extent.high) if extent.low <= extent.high else (float("nan"), float("nan"))

    def elements(self, tensor: str) -> int:
        """Return the number of elements in all samples."""
        return self._sum(tensor, Range(), Extent).elements

    def nonfinite(self, tensor: str) -> int:
        """Return how many elements in all samples were NaN or infinite, and therefore left out."""
        return self._sum(tensor, Range(), Extent).nonfinite

    def histogram(self, tensor: str) -> tuple[np.ndarray, np.ndarray]:
        """Return counts [bins] and the edges [bins + 1] of the bins, both float64; a bin holds its lower edge."""
        counts = self._sum(tensor, self._asked(tensor, Histogram), Counts)
        return counts.counts.copy(), counts.edges()

    def mean(self, tensor: str, axis: int | None = None) -> np.ndarray:
        """Return the mean per channel, float64 [channels].

        Args:
            tensor: Its name.
            axis: The axis that was asked for; needed only where there are several.
        """
        request = self._asked(tensor, ChannelMean) if axis is None else ChannelMean(axis)
        return self._sum(tensor, request, WeightedSum).mean()

    def channel_range(self, tensor: str, axis: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the smallest and the largest value of each channel, float64 [channels] each; NaN where there is none.

        Args:
            tensor: Its name.
            axis: The axis that was asked for.
        """
        extent = self._sum(tensor, ChannelRange(axis), ChannelExtent)
        none = extent.low > extent.high
        return np.where(none, np.nan, extent.low), np.where(none, np.nan, extent.high)

    def second_moment(self, tensor: str) -> np.ndarray:
        """Return X^T X / n over the last axis, float64 [K, K]."""
        return self._sum(tensor, SecondMoment(), WeightedSum).mean()

    def merge(self, other: Observations) -> Observations:
        """Return what observing the samples of both, these first, would have given.

        Raises:
            ValueError: They do not hold the same statistics of the same tensors.
        """
        if self.sums.keys() != other.sums.keys():
            tensor, statistic = next(iter(self.sums.keys() ^ other.sums.keys()))
            raise ValueError(f"only one of the observations has {statistic} of tensor '{tensor}'")
        merged = {key: _merge(item, other.sums[key]) for key, item in self.sums.items()}
        return Observations(self.samples + other.samples, {**other.shapes, **self.shapes}, merged)

    def _sum(self, tensor: str, statistic: Statistic, kind: type[KindT]) -> KindT:
        found = self.sums.get((tensor, statistic))
        if not isinstance(found, kind):
            raise KeyError(f"{statistic} of tensor '{tensor}' was not observed")
        return found

    def _asked(self, tensor: str, kind: type[Statistic]) -> Statistic:
        """The one request of a kind for a tensor."""
        found = [statistic for name, statistic in self.sums if name == tensor and isinstance(statistic, kind)]
        if len(found) != 1:
            what = "not observed" if not found else f"observed in several forms: {found}"
            raise KeyError(f"{kind.__name__} of tensor '{tensor}' was {what}")
        return found[0]


def _merge(left: Sum, right: Sum) -> Sum:
    if isinstance(left, Extent) and isinstance(right, Extent):
        return left.merge(right)
    if isinstance(left, ChannelExtent) and isinstance(right, ChannelExtent):
        return left.merge(right)
    if isinstance(left, Counts) and isinstance(right, Counts):
        return left.merge(right)
    if isinstance(left, WeightedSum) and isinstance(right, WeightedSum):
        return left.merge(right)
    raise TypeError(f"{type(left).__name__} and {type(right).__name__} do not add up")
