"""Finding the plan that is fastest among those that hold the limit, by measurement."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from graphopt.evaluate import Drop
from graphopt.filesize import Scale
from graphopt.model import Model
from graphopt.passes.quant.balance import Balance
from graphopt.passes.quant.candidates import EQUAL, WORTH, Candidate, Judged, Lineup, better, promises
from graphopt.passes.quant.errors import OutputError, attribute
from graphopt.passes.quant.plan import Workshop
from graphopt.passes.quant.plans import FALLBACKS, Plan
from graphopt.passes.quant.refine import choose_ranges, fit_weights
from graphopt.passes.quant.switchboard import Rounding
from graphopt.runtime.profile import NodeTime
from graphopt.runtime.timing import Ratio

_AIM = 0.9  # of the limit is aimed at when nodes are left float
_MEASURED = 48  # runs that tell where the error comes from, about
_TRIES = 5  # plans with nodes left float whose loss is measured
_ROOT = 0.5  # least power of the error that a loss is taken to grow with
_FAR = 3.0  # times the limit: a loss that is likely to be more is not measured; counts of few samples jump
_FELT = EQUAL / 2  # of the float model's time; a plan that should gain less than that is not tried
_EASED = 1.6  # times the error that held the limit may hold it as well; so much more is tried
_NEAR = 1.1  # times that error is not worth another trial


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

        Plans are tried from the fastest to the slowest, equals as they come, as long as one may be clearly faster than
        the best so far, which may have become slower, or clearly smaller and as fast: nodes may have been left float to
        hold the limit.
        """
        judged: list[Judged] = []
        best: Judged | None = None
        lineup = Lineup(self._distinct(plans), self._least_time, self._timed)
        while (item := lineup.after(best)) is not None:
            if item.candidate.changed and self.pays(item) and (best is None or promises(item, best)):
                item = self._held(item, thin=best is None or item.speed < best.speed_of_all - EQUAL)
                if self._holds(item.drop) and item.candidate.changed and self.pays(item) and better(item, best):
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
        smaller = item.candidate.model.weight_bytes <= (1 - WORTH) * self.float_model.weight_bytes
        return item.latency.median <= 1.0 and (smaller or item.latency.high < 1.0)

    def grows(self, item: Judged) -> bool:
        """Whether the file would be larger: of a small model scales, zero points and conversions outweigh the rest."""
        return not self.asked_for and self.nbytes(item.candidate.model) > self.nbytes(self.float_model)

    def nbytes(self, model: Model) -> int:
        """Return the size of a model's file."""
        return self._scale.weigh(model).nbytes

    def _least_time(self, plan: Plan) -> float:
        """Return the part of the float model's time that is sure to stay: of nodes that only other plans take."""
        if self.measure_nodes is None:
            return 0.0
        able = {unit.position for unit in self.workshop.units} | {site.position for site in self.workshop.sites}
        return self.workshop.share(able - set(plan.nodes), self.measure_nodes(self.workshop.model))

    def _distinct(self, plans: Sequence[Plan]) -> list[Plan]:
        """Return the plans without those that can be told from an earlier one by nothing that counts.

        Those have the same nodes in integers, and the nodes that take another form need so little time in float that
        the difference, at most about half of it, is none. A weight that others read too may be stored once or twice.
        """
        if self.measure_nodes is None:
            return list(plans)
        times, kept = self.measure_nodes(self.workshop.model), list(plans[:1])
        tied = self.workshop.tied()
        for plan in plans[1:]:
            changes = [plan.otherwise(other) for other in kept if other.nodes == plan.nodes]
            if all(not tied.isdisjoint(some) or self.workshop.share(some, times) > 2 * EQUAL for some in changes):
                kept.append(plan)
        return kept

    def _timed(self, plan: Plan) -> Judged:
        return self._slimmed(self._made(plan))

    def _slimmed(self, item: Judged) -> Judged:
        """Leave the nodes float that integers slow down by more than their bytes are worth, if that is as fast.

        What an integer node takes depends on its neighbours: a MaxPool is quick among convolutions in integers, and
        slower than in float by far between float ones. So this is asked again when others have become float.
        """
        if self.measure_nodes is None or not item.candidate.changed or self.asked_for:
            return item
        slim, gain = self._balance(item.candidate, {}).quickest()
        gone = self.workshop.placed(item.candidate.plan) - frozenset(slim.nodes)
        if not gone or gain < _FELT:
            return item
        other = self._made(slim, {**item.left, **dict.fromkeys(gone)})
        return other if other.candidate.changed and other.speed <= item.speed else item

    def _made(self, plan: Plan, left: dict[int, float | None] | None = None) -> Judged:
        candidate = self.workshop.make(plan)
        latency = self.measure_latency(self.float_model, candidate.model) if candidate.changed else None
        return Judged(candidate, None, latency, left or {})

    def _holds(self, drop: Drop | None) -> bool:
        return drop is None or drop.within(self.limit)

    def _held(self, item: Judged, *, thin: bool) -> Judged:
        """Measure the loss; where it is too large and `thin`, lower it, at last by leaving nodes float.

        What takes less time is tried first: smoothing, fitting weights, choosing ranges again.
        """
        failed = replace(item, drop=self.measure_drop(item.candidate.model))
        if self._holds(failed.drop) or not thin:
            return failed
        plan = item.candidate.plan
        error = self.error(item.candidate.model)
        if error is None:
            return failed
        share = failed.loss / max(error(item.candidate.model), 1e-12)
        self.workshop.smooth(plan.nodes)
        if len(self.workshop.smoothings) > item.candidate.smoothings:  # for another plan, perhaps
            failed = self._again(failed, error, share)
            if self._holds(failed.drop):
                return failed
        if fit_weights(self.workshop, plan, error):
            failed = self._again(failed, error, share)
            if self._holds(failed.drop):
                return failed
        with self.workshop.switchboard(plan, error) as board:
            harms = attribute(board.roundings, board.error, _MEASURED)
            if choose_ranges(self.workshop, plan, board, harms):
                failed = self._again(failed, error, share)
                if self._holds(failed.drop):
                    return failed
        return self._thinned(failed, harms)

    def _again(self, failed: Judged, error: OutputError, share: float) -> Judged:
        """Make a plan again, with other weights and ranges, and measure its loss if it may hold the limit now.

        Its time is another only where tensors were smoothed, which takes nodes.

        Args:
            failed: The plan as it was.
            error: On the samples that it did worst on.
            share: Loss over that error.
        """
        candidate = self.workshop.make(failed.candidate.plan)
        if share * error(candidate.model) > _FAR * self.limit:
            return replace(failed, candidate=candidate)
        latency = failed.latency
        if candidate.smoothings > failed.candidate.smoothings:
            latency = self.measure_latency(self.float_model, candidate.model)
        return replace(failed, candidate=candidate, drop=self.measure_drop(candidate.model), latency=latency)

    def _thinned(self, failed: Judged, harms: dict[Rounding, float]) -> Judged:
        """Leave the nodes float that the error comes from, as few as it takes.

        The loss is taken to grow with a power of the error of the roundings that are on, at first in proportion; what
        was measured corrects it. Losses that are counted grow more slowly, with its root.
        """
        balance = replace(self._balance(failed.candidate, harms), wanted=True)
        whole = sum(harms.values())
        held: Judged | None = None
        allowed, good, known_bad, power = whole, 0.0, whole, 1.0
        last = failed
        for _ in range(_TRIES):
            if held is None:
                before, loss = allowed, max(last.loss, 1e-12)
                allowed *= min((_AIM * self.limit / loss) ** (1 / power), 0.9)
            else:
                allowed = min(good * _EASED, (good + known_bad) / 2)
            plan = balance.within(allowed)
            if held is not None and (plan == held.candidate.plan or allowed < good * _NEAR):
                break
            last = self._without(failed, plan, harms)
            if not last.candidate.changed:
                break
            if self._holds(last.drop):
                held, good = last, allowed
                continue
            known_bad = allowed
            if held is None:
                power = float(np.clip(np.log(max(last.loss, 1e-12) / loss) / np.log(allowed / before), _ROOT, 1.0))
        if held is None:
            return failed
        held = replace(held, latency=self.measure_latency(self.float_model, held.candidate.model))
        slim = self._slimmed(held)
        if slim is not held:
            drop = self.measure_drop(slim.candidate.model)
            held = replace(slim, drop=drop) if self._holds(drop) else held
        held = replace(held, whole=failed.speed)
        return held if self.asked_for else self._filled(held, failed.candidate.plan)

    def _filled(self, held: Judged, tried: Plan) -> Judged:
        """Give what was left float a form that rounds less, ranges found at run time or blocks, where that is better.

        That goes for all of it at once: what hurts under fixed ranges mostly has values far out in a few rows, which
        these forms round apart from the others.
        """
        best = held
        for form in FALLBACKS:
            plan = self.workshop.refilled(best.candidate.plan, frozenset(best.left) - tried.of(form), form)
            saved = self.workshop.saved_bytes(frozenset(plan.nodes) - frozenset(best.candidate.plan.nodes))
            if saved < WORTH * best.candidate.model.weight_bytes:  # it could not be better by what `better` asks for
                continue
            candidate = self.workshop.make(plan)
            drop = self.measure_drop(candidate.model)
            if not self._holds(drop):
                continue
            latency = self.measure_latency(self.float_model, candidate.model)
            left = {position: share for position, share in best.left.items() if position not in candidate.plan.nodes}
            item = replace(best, candidate=candidate, drop=drop, latency=latency, left=left)
            best = item if self.pays(item) and better(item, best) else best
        return best

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
