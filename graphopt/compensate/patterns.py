"""Where zeros may stand in a matrix [rows, inputs], as rules from scores to masks.

A score says what is lost with a weight; the smallest go. A pattern looks at a span of neighbouring inputs at a time, so
that column-wise solvers can choose the mask of the next span when they get there.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Protocol

import numpy as np


class Pattern(Protocol):
    """What solvers need to know about a pattern."""

    @property
    def span(self) -> int:
        """Inputs whose mask is chosen together; the last span of a matrix may be shorter."""
        ...

    def keep(self, scores: np.ndarray, ratio: float) -> np.ndarray:
        """Return which weights stay, bool [..., rows, inputs].

        Args:
            scores: What is lost with each weight, [..., rows, inputs]; of one span or of whole matrices.
            ratio: Fraction that goes, in [0, 1]; a pattern with a fixed fraction ignores it.
        """
        ...


@dataclass(frozen=True)
class Unstructured:
    """Zeros anywhere: the ``floor(ratio * size)`` smallest of all scores, the first ones among equals."""

    span: ClassVar[int] = 128

    def keep(self, scores: np.ndarray, ratio: float) -> np.ndarray:
        """Return which weights stay; see `Pattern`."""
        return ~_smallest(scores.ravel(), fraction(ratio, scores.size)).reshape(scores.shape)


@dataclass(frozen=True)
class NofM:
    """At most `keeps` weights other than zero among `among` neighbouring inputs (Mishra et al., arXiv:2104.08378).

    Attributes:
        keeps: Weights that stay.
        among: Neighbouring inputs, counted from the first; their number must divide the inputs.
    """

    keeps: int
    among: int

    @property
    def span(self) -> int:
        """One group of inputs."""
        return self.among

    @property
    def ratio(self) -> float:
        """Fraction that goes."""
        return 1 - self.keeps / self.among

    def keep(self, scores: np.ndarray, ratio: float = 0.0) -> np.ndarray:
        """Return which weights stay, the last ones among equals; see `Pattern`."""
        grouped = scores.reshape(*scores.shape[:-1], -1, self.among)
        ranks = np.argsort(np.argsort(grouped, axis=-1, kind="stable"), axis=-1, kind="stable")
        return np.asarray((ranks >= self.among - self.keeps).reshape(scores.shape))


@dataclass(frozen=True)
class Blocks:
    """Zeros in whole blocks: those of the smallest sum of scores.

    Attributes:
        height: Rows of a block; must divide the rows.
        width: Inputs of a block; must divide the inputs.
    """

    height: int
    width: int

    @property
    def span(self) -> int:
        """One column of blocks after another, about as many as of single weights."""
        return self.width * max(1, Unstructured.span // self.width)

    def keep(self, scores: np.ndarray, ratio: float) -> np.ndarray:
        """Return which weights stay; see `Pattern`."""
        sums = self.split(scores).sum(axis=(-3, -1))
        goes = _smallest(sums.ravel(), fraction(ratio, sums.size)).reshape(sums.shape)
        return np.asarray(~np.repeat(np.repeat(goes, self.height, axis=-2), self.width, axis=-1))

    def split(self, matrix: np.ndarray) -> np.ndarray:
        """Return a matrix [..., rows, inputs] as [..., rows of blocks, height, columns of blocks, width]."""
        *lead, rows, inputs = matrix.shape
        return matrix.reshape(*lead, rows // self.height, self.height, inputs // self.width, self.width)


def fraction(ratio: float, size: int) -> int:
    """Return ``floor(ratio * size)`` with the ratio at its decimal value: 0.29 of 100 is 29."""
    return int(np.floor(round(ratio * size, 6)))


def _smallest(scores: np.ndarray, count: int) -> np.ndarray:
    """Return the mask of the smallest scores, the first ones among equals, bool in flat order."""
    if count == 0:
        return np.zeros(scores.size, bool)
    last = np.partition(scores, count - 1)[count - 1]
    mask = np.asarray(scores < last)
    mask[np.flatnonzero(scores == last)[: count - np.count_nonzero(mask)]] = True
    return mask
