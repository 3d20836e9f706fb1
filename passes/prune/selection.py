"""The smallest scores of a stream, exactly, in constant memory.

Non-negative floats are ordered like their bit patterns, so the cut is found digit by digit: a histogram over the upper
16 bits tells in which bin the cut lies, one over the next 16 bits looks into that bin, and so on (radix selection). Two
readings of the scores do for float32 and four for float64, however many there are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np

_DIGIT = 16  # bits
_BINS = 1 << _DIGIT


@dataclass(frozen=True)
class Cut:
    """Where the smallest scores end.

    Attributes:
        key: Bit pattern of the largest score that belongs to them.
        ties: How many of the scores equal to it belong to them; by convention the first ones.
    """

    key: int
    ties: int


def find_cut(read: Callable[[], Iterable[np.ndarray]], count: int, dtype: type[np.floating] = np.float32) -> Cut:
    """Return the cut below which, with its ties, exactly `count` scores lie.

    Args:
        read: Returns the scores, chunk by chunk; non-negative. NaN is larger than any.
        count: How many to select, at least 1 and at most as many as there are.
        dtype: Type of the scores, float32 or float64.

    Raises:
        ValueError: There are fewer scores.
    """
    bits = np.dtype(dtype).itemsize * 8
    key, below = 0, 0
    for shift in range(bits - _DIGIT, -1, -_DIGIT):
        histogram = np.zeros(_BINS, np.int64)
        for scores in read():
            keys = score_keys(scores)
            if shift < bits - _DIGIT:
                keys = keys[keys >> (shift + _DIGIT) == key]
            histogram += np.bincount((keys >> shift & (_BINS - 1)).astype(np.intp), minlength=_BINS)
        reached = below + np.cumsum(histogram)
        if reached[-1] < count:
            raise ValueError(f"cannot select {count} of {reached[-1]} scores")
        digit = int(np.searchsorted(reached, count))
        below = int(reached[digit - 1]) if digit else below
        key = key << _DIGIT | digit
    return Cut(key, count - below)


def score_keys(scores: np.ndarray) -> np.ndarray:
    """Return unsigned integers, flat, that are ordered as the scores are."""
    flat = np.ascontiguousarray(scores).reshape(-1)
    return flat.view(np.uint64 if flat.dtype.itemsize == 8 else np.uint32)


def first_ties(equal: np.ndarray, ties: int) -> np.ndarray:
    """Return the mask with only its first `ties` marks left, in flat order."""
    marked = np.flatnonzero(equal)[:ties]
    mask = np.zeros(equal.size, bool)
    mask[marked] = True
    return mask
