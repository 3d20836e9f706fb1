"""Candidates: models made after plans, with what was measured of them, and which of two is better."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from graphopt.evaluate import Drop
from graphopt.model import Model
from graphopt.passes.quant.accounting.accounting import Audit
from graphopt.passes.quant.nodes.placement import Placement
from graphopt.passes.quant.search.plans import Plan
from graphopt.runtime.timing import Ratio

WORTH = 0.1  # of the weights' bytes saved is worth an int8 model that is about as fast
EQUAL = 0.03  # latencies closer than this are equal, and the smaller or more exact candidate wins


@dataclass(frozen=True)
class Candidate:
    """A model made after a plan.

    Attributes:
        plan: The plan, less what did not fuse.
        model: The model.
        changed: Nodes that run in integers.
        audit: What the runtime made of it.
        smoothings: How many tensors had been smoothed when it was made.
        unfused: Positions of the units that were taken back because they did not fuse, with the rule that failed.
        beside: Positions of units next to a conversion that ONNX Runtime itself has put inside integers, see `Audit`.
    """

    plan: Plan
    model: Model
    changed: int
    audit: Audit
    smoothings: int = 0
    unfused: Mapping[int, str] = field(default_factory=dict)
    beside: Mapping[int, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Written:
    """A model made after a plan, before anybody looked at it.

    Attributes:
        model: The model.
        placement: What runs in integers with fixed ranges.
        changed: Nodes that run in integers.
    """

    model: Model
    placement: Placement
    changed: int


@dataclass(frozen=True)
class Judged:
    """A candidate with what was measured.

    Attributes:
        candidate: The candidate.
        drop: Loss against the original; None where there is nothing to judge on, or where nobody needed to know.
        latency: Time over that of the float model; None where the target is not this machine.
        left: By position of each node that was left float, why: its share of the error of the largest plan, a fraction,
            or None where it was for speed.
        whole: Time before nodes were left float to hold the limit, over that of the float model; None if none were.
    """

    candidate: Candidate
    drop: Drop | None
    latency: Ratio | None
    left: dict[int, float | None] = field(default_factory=dict)
    whole: float | None = None

    @property
    def speed(self) -> float:
        """Time over that of the float model; 1 where it cannot be measured."""
        return self.latency.median if self.latency is not None else 1.0

    @property
    def speed_of_all(self) -> float:
        """Time with all of its plan in integers, over that of the float model."""
        return self.speed if self.whole is None else self.whole

    @property
    def loss(self) -> float:
        """The loss that may be held against it, a fraction; 0 where none was measured."""
        return 0.0 if self.drop is None else self.drop.against


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


class Lineup:
    """Plans that wait to be judged, the fastest first; those that are as fast in the order that they have.

    A plan is made and timed only once it may be the fastest, going by the time that its nodes cannot save.

    Args:
        plans: What waits.
        least: Time that a plan takes at least, over that of the float model.
        timed: Makes a plan and times it.
    """

    def __init__(self, plans: Iterable[Plan], least: Callable[[Plan], float], timed: Callable[[Plan], Judged]) -> None:
        self._waiting: list[tuple[float, Plan | Judged]] = [(least(plan), plan) for plan in plans]
        self._timed = timed

    def after(self, best: Judged | None) -> Judged | None:
        """Return the next candidate, None if none can be better than the best so far."""
        while self._waiting:
            fast = min(speed for speed, _ in self._waiting) + EQUAL
            if best is not None and fast > best.speed + 2 * EQUAL:
                return None
            index = next(index for index, (speed, _) in enumerate(self._waiting) if speed <= fast)
            item = self._waiting[index][1]
            if isinstance(item, Judged):
                del self._waiting[index]
                return item
            made = self._timed(item)
            self._waiting[index] = made.speed, made
        return None
