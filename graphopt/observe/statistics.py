"""What can be asked about a tensor."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Range:
    """Smallest and largest value over all samples, exact."""


@dataclass(frozen=True)
class Histogram:
    """How often which values occur.

    Of a tensor with 16,384 elements or more, only evenly spaced ones are looked at, 5,461 or more in every sample.
    They are weighted, so that counts add up to the number of elements.

    Attributes:
        bins: Largest number of bins, an even number. Bins are a power of two wide and start at a multiple of their
            width, so that histograms of different samples add up without error; at least half of them are in use.
    """

    bins: int = 2048

    def __post_init__(self) -> None:
        if self.bins < 2 or self.bins % 2:
            raise ValueError(f"bins must be an even number of 2 or more, not {self.bins}")


@dataclass(frozen=True)
class ChannelMean:
    """Mean of each channel, every element of every sample counting the same.

    Attributes:
        axis: Axis of the channels; negative ones count from the end.
    """

    axis: int = 1


@dataclass(frozen=True)
class ChannelRange:
    """Smallest and largest value of each channel over all samples, exact.

    Attributes:
        axis: Axis of the channels; negative ones count from the end.
    """

    axis: int = 1


@dataclass(frozen=True)
class SecondMoment:
    """X^T X / n, where the rows of X [n, K] are the vectors along the last axis, in all samples."""


Statistic = Range | Histogram | ChannelMean | ChannelRange | SecondMoment
