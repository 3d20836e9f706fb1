"""Candidates with what was measured, and which of two is better."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from graphopt.evaluate import Drop
from graphopt.passes.quant.candidate import Candidate
from graphopt.runtime.timing import Ratio

WORTH = 0.1  # of the weights' bytes saved is worth an int8 model that is about as fast
EQUAL = 0.03  # latencies closer than this are equal, and the smaller or more exact candidate wins


@dataclass(frozen=True)
class Judged:
    """A candidate with what was measured.

    Attributes:
        candidate: The candidate.
        drop: Loss against the original; None where there is nothing to judge on, or where nobody needed to know.
        latency: Time over that of the float model; None where the target is not this machine.
        left: By position of each node that was left float, why: its share of the error of the largest plan, a fraction,
            or None where it was for speed.
    """

    candidate: Candidate
    drop: Drop | None
    latency: Ratio | None
    left: dict[int, float | None] = field(default_factory=dict)

    @property
    def speed(self) -> float:
        """Time over that of the float model; 1 where it cannot be measured."""
        return self.latency.median if self.latency is not None else 1.0

    @property
    def loss(self) -> float:
        """The loss that may be held against it, a fraction; 0 where none was measured."""
        if self.drop is None:
            return 0.0
        return self.drop.value if self.drop.established is None else self.drop.established


def promises(item: Judged, best: Judged) -> bool:
    """Whether a candidate is clearly faster than the best, or as fast and clearly smaller."""
    smaller = item.candidate.model.weight_bytes <= (1 - WORTH) * best.candidate.model.weight_bytes
    return item.speed < best.speed - EQUAL or (smaller and item.speed <= best.speed + EQUAL)


def better(item: Judged, other: Judged | None) -> bool:
    """Whether the item is faster, or as fast and smaller or more exact."""
    if other is None:
        return True
    if abs(item.speed - other.speed) > EQUAL or item.drop is None or other.drop is None:
        return item.speed < other.speed
    size, known = item.candidate.model.weight_bytes, other.candidate.model.weight_bytes
    if abs(size - known) > WORTH * known:
        return size < known
    return item.drop.value < other.drop.value


def fastest_first(items: Iterable[Judged]) -> Iterator[Judged]:
    """Yield candidates from the fastest to the slowest; those that are as fast in the order that they have."""
    waiting = list(items)
    while waiting:
        fast = min(item.speed for item in waiting) + EQUAL
        yield waiting.pop(next(index for index, item in enumerate(waiting) if item.speed <= fast))
