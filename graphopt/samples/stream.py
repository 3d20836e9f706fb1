"""The samples themselves: a stream that can be read again."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import Any, Protocol

from graphopt.samples.fit import Feeds, Fit


class Reader(Protocol):
    """A source of samples that have not been checked."""

    def __len__(self) -> int:
        """Return the number of samples."""
        ...

    def read(self, wanted: Sequence[int] | None) -> Iterator[tuple[str, dict[str, Any]]]:
        """Yield samples, each with what it is called in messages.

        Args:
            wanted: Indices in ascending order; None for all.
        """
        ...


class Samples:
    """Inputs of a model, read lazily and as often as wanted; at most one sample is held.

    Attributes:
        source: Where they come from: a path, ``module:function``, or "random".
        is_random: Whether they are made up, so that figures that rest on them say so.
    """

    def __init__(
        self,
        reader: Reader,
        fit: Fit,
        source: str,
        *,
        is_random: bool = False,
        chosen: Sequence[int] | None = None,
    ) -> None:
        self._reader = reader
        self._fit = fit
        self._chosen = chosen
        self.source = source
        self.is_random = is_random

    def __len__(self) -> int:
        """Return the number of samples; where only the source can tell, it is read once to count."""
        return len(self._reader) if self._chosen is None else len(self._chosen)

    def __iter__(self) -> Iterator[Feeds]:
        """Yield the samples in order.

        Raises:
            SampleError: A sample cannot be read or does not fit the model.
        """
        for where, feeds in self._reader.read(self._chosen):
            yield self._fit.check(feeds, where)

    def take(self, count: int) -> Samples:
        """Return a subset of at most `count` samples, evenly spaced over all of them.

        Raises:
            ValueError: The count is not positive.
        """
        if count < 1:
            raise ValueError(f"at least one sample must be taken, not {count}")
        total = len(self)
        if count >= total:
            return self
        chosen = range(total) if self._chosen is None else self._chosen
        picked = [chosen[index * total // count] for index in range(count)]
        return Samples(self._reader, self._fit, self.source, is_random=self.is_random, chosen=picked)

    def halves(self) -> tuple[Samples, Samples]:
        """Return every other sample, and the rest; a single one is in both."""
        return self.without_every(2)

    def without_every(self, nth: int) -> tuple[Samples, Samples]:
        """Return the samples without every n-th, and these; fewer than n are in both."""
        total = len(self)
        return (self, self) if total < nth else self.parted(range(nth - 1, total, nth))

    def parted(self, places: Collection[int]) -> tuple[Samples, Samples]:
        """Return the samples without those at some places, counted from 0, and these."""
        chosen = range(len(self)) if self._chosen is None else self._chosen
        parts = ([index for place, index in enumerate(chosen) if (place in places) == inside] for inside in (0, 1))
        first, second = (
            Samples(self._reader, self._fit, self.source, is_random=self.is_random, chosen=part) for part in parts
        )
        return first, second

    def fitted(self, fit: Fit) -> Samples:
        """Return the same samples, held against other inputs."""
        return Samples(self._reader, fit, self.source, is_random=self.is_random, chosen=self._chosen)
