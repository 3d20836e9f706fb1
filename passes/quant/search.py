"""Finding the plan that is fastest among those that hold the limit, by measurement."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from graphopt.evaluate import Drop
from graphopt.filesize import Scale
from graphopt.model import Model
from graphopt.passes.quant.attribution import attribute
from graphopt.passes.quant.balance import Balance
from graphopt.passes.quant.errors import OutputError
from graphopt.passes.quant.forms import Plan
from graphopt.passes.quant.plan import Candidate, Workshop
from graphopt.passes.quant.switchboard import Rounding, Switchboard
from graphopt.runtime.profile import NodeTime
from graphopt.runtime.timing import Ratio

_WORTH = 0.1  # of the weights' bytes saved is worth an int8 model that is about as fast
_EQUAL = 0.03  # latencies closer than this are equal, and the smaller or more exact candidate wins
_AIM = 0.9  # of the limit is aimed at when nodes are left float
_MEASURED = 48  # runs that tell where the error comes from, about
_TRIES = 5  # plans with nodes left float whose loss is measured
_EASED = 1.6  # times the error that held the limit may hold it as well; so much more is tried
_COVERED = 0.9  # of the error of tensors is looked at for better ranges
_HEAVY = 0.1  # of the error caused by weights is worth fitting them
_RANGES = 6  # tensors that other ranges are tried for


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


@dataclass(frozen=True)
class Search:
    """The measurements that a search rests on.

    Attributes:
        workshop: Makes the models.
        float_model: What latency is compared with.
        measure_drop: Loss of a model against the original.
        measure_latency: Time of the second model over that of the first.
        measure_nodes: Time of each node of a model; None where the target is not this machine.
        error: Error at the outputs on the samples that a candidate does worst on; None without samples.
        limit: Largest loss allowed.
        asked_for: Whether the user chose the form, so that it only must not be slower beyond doubt.
    """

    workshop: Workshop
    float_model: Model
    measure_drop: Callable[[Model], Drop | None]
    measure_latency: Callable[[Model, Model], Ratio | None]
    measure_nodes: Callable[[Model], list[NodeTime]] | None
    error: Callable[[Model], OutputError | None]
    limit: float
    asked_for: bool = False
    _scale: Scale = field(default_factory=lambda: Scale(None), repr=False)

    def best(self, plans: Sequence[Plan]) -> tuple[Judged | None, list[Judged]]:
        """Return the best candidate that pays and holds the limit, and all candidates as far as they were measured.

        Plans are tried from the fastest to the slowest, as long as one may be clearly faster than the best so far,
        which may have become slower, or clearly smaller and as fast: nodes may have been left float to hold the limit.
        """
        judged: list[Judged] = []
        best: Judged | None = None
        for item in sorted(map(self._timed, plans), key=lambda item: item.speed):
            if item.candidate.changed and self.pays(item) and (best is None or _promises(item, best)):
                item = self._held(item, thin=best is None or item.speed < best.speed - _EQUAL)
                if self._holds(item.drop) and item.candidate.changed and self.pays(item) and _better(item, best):
                    best = item
            judged.append(item)
        return best, judged

    def pays(self, item: Judged) -> bool:
        """Whether a candidate is worth what it loses: no larger or slower than the float model, and clearly better."""
        if self.asked_for:
            return item.latency is None or not item.latency.slower
        if self.grows(item):
            return False
        if item.latency is None:
            return True
        smaller = item.candidate.model.weight_bytes <= (1 - _WORTH) * self.float_model.weight_bytes
        return item.latency.median <= 1.0 and (smaller or item.latency.high < 1.0)

    def grows(self, item: Judged) -> bool:
        """Whether the file would be larger: of a small model scales, zero points and conversions outweigh the rest."""
        return not self.asked_for and self.nbytes(item.candidate.model) > self.nbytes(self.float_model)

    def nbytes(self, model: Model) -> int:
        """Return the size of a model's file."""
        return self._scale.weigh(model).nbytes

    def _timed(self, plan: Plan) -> Judged:
        """Make a plan, without the nodes that integers slow down by more than their bytes are worth."""
        item = self._made(plan)
        if self.measure_nodes is None or not item.candidate.changed or self.asked_for:
            return item
        slim = self._balance(item.candidate, {}).best(0.0)
        gone = frozenset(item.candidate.plan.nodes) - frozenset(slim.nodes)
        if not gone:
            return item
        other = self._made(slim, dict.fromkeys(gone))
        return other if other.candidate.changed and other.speed < item.speed - _EQUAL else item

    def _made(self, plan: Plan, left: dict[int, float | None] | None = None) -> Judged:
        candidate = self.workshop.make(plan)
        latency = self.measure_latency(self.float_model, candidate.model) if candidate.changed else None
        return Judged(candidate, None, latency, left or {})

    def _holds(self, drop: Drop | None) -> bool:
        return drop is None or drop.within(self.limit)

    def _held(self, item: Judged, *, thin: bool) -> Judged:
        """Measure the loss; where it is too large and `thin`, choose ranges again, then leave nodes float."""
        drop = self.measure_drop(item.candidate.model)
        failed = Judged(item.candidate, drop, item.latency, item.left)
        if self._holds(drop) or not thin:
            return failed
        error = self.error(item.candidate.model)
        if error is None:
            return failed
        plan = item.candidate.plan
        with self.workshop.switchboard(plan, error) as board:
            harms = attribute(board.roundings, board.error, _MEASURED)
            if self._refined(plan, board, harms):
                candidate = self.workshop.make(plan)
                failed = Judged(candidate, self.measure_drop(candidate.model), item.latency, item.left)
                if self._holds(failed.drop):
                    return failed
        return self._thinned(failed, harms)

    def _refined(self, plan: Plan, board: Switchboard, harms: dict[Rounding, float]) -> bool:
        """Fit weights and choose ranges again, each where it can help; whether anything changed."""
        weights = {item.position: harm for item, harm in harms.items() if not item.tensor and not item.at_run_time}
        heavy = sum(weights.values()) >= _HEAVY * sum(harms.values())
        fitted = heavy and self.workshop.fit_weights({position for position, harm in weights.items() if harm > 0})
        return self._choose_ranges(plan, board, harms) or fitted

    def _choose_ranges(self, plan: Plan, board: Switchboard, harms: dict[Rounding, float]) -> bool:
        """Try other ranges for the tensors that harm most; whether any is better.

        The harms are brought up to date.
        """
        worst = sorted((item for item in harms if item.tensor), key=lambda item: -harms[item])
        remaining, found = sum(harms[item] for item in worst), False
        least = (1 - _COVERED) * remaining
        for rounding in worst[:_RANGES]:
            if remaining <= least:
                break
            remaining -= harms[rounding]
            found |= self._choose_range(plan, board, harms, rounding)
        return found

    def _choose_range(self, plan: Plan, board: Switchboard, harms: dict[Rounding, float], rounding: Rounding) -> bool:
        before = board.parameters[rounding]
        tried = {before: board.error([rounding])}
        methods = self.workshop.ranges_of(plan, rounding.tensor)
        for parameters in methods.values():
            if parameters not in tried:
                board.parameters[rounding] = parameters
                tried[parameters] = board.error([rounding])
        best = min(tried, key=lambda parameters: tried[parameters])
        board.parameters[rounding] = best
        harms[rounding] = tried[best]
        if best == before:
            return False
        self.workshop.choose_range(
            rounding.tensor, next(name for name, parameters in methods.items() if parameters == best)
        )
        return True

    def _thinned(self, failed: Judged, harms: dict[Rounding, float]) -> Judged:
        """Leave the nodes float that the error comes from, as few as it takes.

        The loss is taken to be proportional to the error of the roundings that are on; each measured loss corrects the
        proportion.
        """
        balance = self._balance(failed.candidate, harms)
        whole = sum(harms.values())
        held: Judged | None = None
        allowed, known_bad = whole, whole
        last = failed
        for _ in range(_TRIES):
            if held is None:
                assert last.drop is not None
                allowed = min(allowed * _AIM * self.limit / max(_loss(last.drop), 1e-12), 0.9 * allowed)
            else:
                allowed = min(allowed * _EASED, (allowed + known_bad) / 2)
            plan = balance.within(allowed)
            if held is not None and plan == held.candidate.plan:
                break
            last = self._without(failed, plan, harms)
            if not last.candidate.changed:
                break
            if self._holds(last.drop):
                held = last
            else:
                known_bad = allowed
                if held is not None:
                    break
        if held is None:
            return failed
        latency = self.measure_latency(self.float_model, held.candidate.model)
        return Judged(held.candidate, held.drop, latency, held.left)

    def _without(self, failed: Judged, plan: Plan, harms: dict[Rounding, float]) -> Judged:
        candidate = self.workshop.make(plan)
        whole = sum(harms.values())
        gone = frozenset(failed.candidate.plan.nodes) - frozenset(candidate.plan.nodes)
        shares = {position: self.workshop.harm_of(position, harms) / max(whole, 1e-300) for position in gone}
        drop = self.measure_drop(candidate.model) if candidate.changed else None
        return Judged(candidate, drop, None, {**failed.left, **shares})

    def _balance(self, candidate: Candidate, harms: dict[Rounding, float]) -> Balance:
        """Return the terms of the choice; without times, nodes count by their bytes only."""
        times: tuple[list[NodeTime], list[NodeTime]] = ([], [])
        if self.measure_nodes is not None:
            times = self.measure_nodes(self.workshop.model), self.measure_nodes(candidate.model)
        return self.workshop.balance(candidate.plan, times, harms)


def _loss(drop: Drop) -> float:
    return drop.value if drop.established is None else drop.established


def _promises(item: Judged, best: Judged) -> bool:
    """Whether a candidate is clearly faster than the best, or as fast and clearly smaller."""
    smaller = item.candidate.model.weight_bytes <= (1 - _WORTH) * best.candidate.model.weight_bytes
    return item.speed < best.speed - _EQUAL or (smaller and item.speed <= best.speed + _EQUAL)


def _better(item: Judged, other: Judged | None) -> bool:
    """Whether the item is faster, or as fast and smaller or more exact."""
    if other is None:
        return True
    if abs(item.speed - other.speed) > _EQUAL or item.drop is None or other.drop is None:
        return item.speed < other.speed
    size, known = item.candidate.model.weight_bytes, other.candidate.model.weight_bytes
    if abs(size - known) > _WORTH * known:
        return size < known
    return item.drop.value < other.drop.value
