"""Finding the plan that is fastest among those that hold the limit, by measurement."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from graphopt.evaluate import Drop
from graphopt.model import Model
from graphopt.passes.quant.plan import Candidate, Plan
from graphopt.runtime.timing import Ratio

_EQUAL = 0.03  # latencies closer than this are equal, and the more exact candidate wins


@dataclass(frozen=True)
class Judged:
    """A candidate with what was measured.

    Attributes:
        candidate: The candidate.
        drop: Loss against the original; None where there is nothing to judge on.
        latency: Time over that of the float model; None where the target is not this machine.
        left: Positions of the nodes that were left float to hold the limit.
    """

    candidate: Candidate
    drop: Drop | None
    latency: Ratio | None
    left: tuple[int, ...] = ()

    @property
    def pays(self) -> bool:
        """Whether it is no slower than the float model, as far as one can tell."""
        return self.latency is None or self.latency.median <= 1.0

    @property
    def speed(self) -> float:
        """Time over that of the float model; 1 where it cannot be measured."""
        return self.latency.median if self.latency is not None else 1.0


@dataclass(frozen=True)
class Search:
    """The measurements that a search rests on.

    Attributes:
        float_model: What latency is compared with.
        make: Makes the model of a plan.
        ranking: Positions of a plan's nodes, the most harmful first.
        measure_drop: Loss of a model against the original.
        measure_latency: Time of the second model over that of the first.
        limit: Largest loss allowed.
    """

    float_model: Model
    make: Callable[[Plan], Candidate]
    ranking: Callable[[Plan], list[int]]
    measure_drop: Callable[[Model], Drop | None]
    measure_latency: Callable[[Model, Model], Ratio | None]
    limit: float

    def best(self, plans: Sequence[Plan]) -> tuple[Judged | None, list[Judged]]:
        """Return the best candidate that pays and holds the limit, and all that were judged, in the order of plans.

        Of plans that do not hold the limit, the most harmful nodes are left float until they do.
        """
        timed = [self._timed(self.make(plan)) for plan in plans]
        judged: list[Judged] = []
        best: Judged | None = None
        for item in sorted(timed, key=lambda item: item.speed):
            if not item.pays or (best is not None and item.speed > best.speed + _EQUAL):
                judged.append(item)
                continue
            found = self._within_limit(item)
            judged.append(found)
            if self._holds(found.drop) and found.pays and (best is None or _better(found, best)):
                best = found
        return best, judged

    def _timed(self, candidate: Candidate) -> Judged:
        latency = self.measure_latency(self.float_model, candidate.model) if candidate.changed else None
        return Judged(candidate, None, latency)

    def _holds(self, drop: Drop | None) -> bool:
        return drop is None or drop.within(self.limit)

    def _within_limit(self, item: Judged) -> Judged:
        """Measure the loss; while it is too large, leave the most harmful nodes float, as few as bisection finds."""
        drop = self.measure_drop(item.candidate.model)
        if self._holds(drop):
            return Judged(item.candidate, drop, item.latency)
        order = self.ranking(item.candidate.plan)
        low, high = 0, len(order)  # leaving `low` is not enough, leaving all always is
        best: Judged | None = None
        while high - low > 1:
            middle = (low + high) // 2
            candidate = self.make(item.candidate.plan.without(order[:middle]))
            drop_here = self.measure_drop(candidate.model)
            if self._holds(drop_here):
                best, high = Judged(candidate, drop_here, None, tuple(order[:middle])), middle
            else:
                low = middle
        if best is None or best.candidate.changed == 0:
            return Judged(item.candidate, drop, item.latency)
        timed = self._timed(best.candidate)
        return Judged(best.candidate, best.drop, timed.latency, best.left)


def _better(item: Judged, other: Judged) -> bool:
    """Whether the item is faster, or as fast and more exact."""
    if abs(item.speed - other.speed) > _EQUAL or item.drop is None or other.drop is None:
        return item.speed < other.speed
    return item.drop.value < other.drop.value
