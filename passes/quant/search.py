"""Finding the plan that is fastest among those that hold the limit, by measurement."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from graphopt.evaluate import Drop
from graphopt.model import Model
from graphopt.passes.quant.attribution import most_harmful
from graphopt.passes.quant.plan import Candidate, Plan, Workshop
from graphopt.runtime.timing import Ratio

_WORTH = 0.1  # of the weights' bytes saved is worth an int8 model that is about as fast
_EQUAL = 0.03  # latencies closer than this are equal, and the more exact candidate wins
_MARGIN = 0.9  # of the limit is aimed at when nodes are left float
_HOPELESS = 25  # times the limit: then the form does not suit the model, and some layers more or less do not help
_PART = 8  # of the nodes left float, one such part may be too many
_FIRST = 8  # nodes left float before the loss is measured again in any case; twice as many each time after that


@dataclass(frozen=True)
class Judged:
    """A candidate with what was measured.

    Attributes:
        candidate: The candidate.
        drop: Loss against the original; None where there is nothing to judge on, or where nobody needed to know.
        latency: Time over that of the float model; None where the target is not this machine.
        left: Positions of the nodes that were left float to hold the limit, the most harmful first.
    """

    candidate: Candidate
    drop: Drop | None
    latency: Ratio | None
    left: tuple[int, ...] = ()

    @property
    def speed(self) -> float:
        """Time over that of the float model; 1 where it cannot be measured."""
        return self.latency.median if self.latency is not None else 1.0


@dataclass(frozen=True)
class Search:
    """The measurements that a search rests on.

    Attributes:
        workshop: Makes the models.
        float_model: What latency is compared with.
        measure_drop: Loss of a model against the original.
        measure_latency: Time of the second model over that of the first.
        error: Error of a model at its outputs, for finding out where a loss comes from; None without samples.
        limit: Largest loss allowed.
        asked_for: Whether the user chose the form, so that it only must not be slower beyond doubt.
    """

    workshop: Workshop
    float_model: Model
    measure_drop: Callable[[Model], Drop | None]
    measure_latency: Callable[[Model, Model], Ratio | None]
    error: Callable[[Model], float] | None
    limit: float
    asked_for: bool = False

    def best(self, plans: Sequence[Plan]) -> tuple[Judged | None, list[Judged]]:
        """Return the best candidate that pays and holds the limit, and all candidates as far as they were measured.

        Plans are tried from the fastest to the slowest, until one is clearly slower than the best so far.
        """
        judged: list[Judged] = []
        best: Judged | None = None
        for item in sorted(map(self._timed, plans), key=lambda item: item.speed):
            if item.candidate.changed and self.pays(item) and (best is None or item.speed <= best.speed + _EQUAL):
                item = self._held(item)
                if self._holds(item.drop) and item.candidate.changed and self.pays(item) and _better(item, best):
                    best = item
            judged.append(item)
        return best, judged

    def pays(self, item: Judged) -> bool:
        """Whether a candidate is worth what it loses: no slower than the float model, and clearly faster or smaller."""
        if item.latency is None:
            return True
        if self.asked_for:
            return not item.latency.slower
        smaller = item.candidate.model.weight_bytes <= (1 - _WORTH) * self.float_model.weight_bytes
        return item.latency.median <= 1.0 and (smaller or item.latency.high < 1.0)

    def _timed(self, plan: Plan) -> Judged:
        candidate = self.workshop.make(plan)
        latency = self.measure_latency(self.float_model, candidate.model) if candidate.changed else None
        return Judged(candidate, None, latency)

    def _holds(self, drop: Drop | None) -> bool:
        return drop is None or drop.within(self.limit)

    def _held(self, item: Judged) -> Judged:
        """Measure the loss; where it is too large, correct what can be corrected, then leave nodes float."""
        drop = self.measure_drop(item.candidate.model)
        if self._holds(drop):
            return Judged(item.candidate, drop, item.latency)
        if self.workshop.correct_means(item.candidate.plan):
            corrected = self.workshop.make(item.candidate.plan)
            better = self.measure_drop(corrected.model)
            if self._holds(better):
                return Judged(corrected, better, item.latency)
            if drop is None or (better is not None and better.value < drop.value):
                item, drop = Judged(corrected, None, item.latency), better
        return self._thinned(item, drop)

    def _thinned(self, item: Judged, drop: Drop | None) -> Judged:
        """Leave the nodes float that the error comes from, as few as it takes."""
        assert drop is not None
        failed = Judged(item.candidate, drop, item.latency)
        if self.error is None:
            return failed
        plan, left, tried = item.candidate.plan, list[int](), 0
        remaining = self.error(item.candidate.model)
        wanted = remaining * self._share(drop)
        if wanted * _HOPELESS < remaining:
            return failed
        for part, harm in most_harmful(plan.nodes, lambda nodes: self._error_of(plan, nodes)):
            left += part
            remaining -= harm
            if remaining > wanted and len(left) < 2 * tried + _FIRST:
                continue
            found = self._without(plan, left)
            if found.candidate.changed == 0:
                break
            if self._holds(found.drop):
                found = self._fewest(plan, left, tried, found)
                return replace(found, latency=self.measure_latency(self.float_model, found.candidate.model))
            assert found.drop is not None
            remaining, tried = self.error(found.candidate.model), len(left)
            wanted = remaining * self._share(found.drop)
        return failed

    def _without(self, plan: Plan, left: Sequence[int]) -> Judged:
        candidate = self.workshop.make(plan.without(left))
        return Judged(candidate, self.measure_drop(candidate.model) if candidate.changed else None, None, tuple(left))

    def _fewest(self, plan: Plan, left: Sequence[int], low: int, found: Judged) -> Judged:
        """Halve the step from the first `low` nodes, which were too few, to all of them, as long as it is large."""
        high = len(left)
        while high - low > max(1, high // _PART):
            middle = (low + high) // 2
            here = self._without(plan, left[:middle])
            if self._holds(here.drop):
                found, high = here, middle
            else:
                low = middle
        return found

    def _share(self, drop: Drop) -> float:
        """Part of the error that may stay, if the loss is proportional to it."""
        loss = drop.value if drop.established is None else drop.established
        return _MARGIN * self.limit / loss

    def _error_of(self, plan: Plan, nodes: frozenset[int]) -> float:
        assert self.error is not None
        return self.error(self.workshop.write(plan.only(nodes)).model)


def _better(item: Judged, other: Judged | None) -> bool:
    """Whether the item is faster, or as fast and more exact."""
    if other is None:
        return True
    if abs(item.speed - other.speed) > _EQUAL or item.drop is None or other.drop is None:
        return item.speed < other.speed
    return item.drop.value < other.drop.value
