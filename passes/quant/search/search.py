"""Finding the plan that is fastest among those that hold the limit, by measurement."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from graphopt.passes.quant.search.candidates import EQUAL, Judged, Lineup, better, promises
from graphopt.passes.quant.search.errors import OutputError, attribute
from graphopt.passes.quant.search.judging import Judge
from graphopt.passes.quant.search.plans import Plan
from graphopt.passes.quant.search.refine import choose_ranges, fit_weights
from graphopt.passes.quant.search.thinning import thinned
from graphopt.passes.quant.search.workshop import Workshop

_MEASURED = 48  # runs that tell where the error comes from, about
_FAR = 3.0  # times the limit: a loss that is likely to be more is not measured; counts of few samples jump


@dataclass(frozen=True)
class Search:
    """A search among plans.

    Attributes:
        judge: Makes and measures them.
    """

    judge: Judge

    @property
    def _workshop(self) -> Workshop:
        return self.judge.workshop

    def best(self, plans: Sequence[Plan]) -> tuple[Judged | None, list[Judged]]:
        """Return the best candidate that pays and holds the limit, and all candidates as far as they were measured.

        Plans are tried from the fastest to the slowest, equals as they come, as long as one may be clearly faster than
        the best so far, which may have become slower, or clearly smaller and as fast: nodes may have been left float to
        hold the limit.
        """
        judge, judged = self.judge, list[Judged]()
        best: Judged | None = None
        lineup = Lineup(self._distinct(plans), self._least_time, lambda plan: judge.slimmed(judge.made(plan)))
        while (item := lineup.after(best)) is not None:
            if item.candidate.changed and judge.pays(item) and (best is None or promises(item, best)):
                item = self._held(item, thin=best is None or item.speed < best.speed_of_all - EQUAL)
                if judge.holds(item.drop) and item.candidate.changed and judge.pays(item) and better(item, best):
                    best = item
            judged.append(item)
        return self._tidied(best), judged

    def _tidied(self, best: Judged | None) -> Judged | None:
        """Take back nodes beside which ONNX Runtime itself leaves conversions inside integers, if that is as fast."""
        if best is None or not best.candidate.beside:
            return best
        item, refused = best, dict(best.candidate.unfused)
        while item.candidate.beside:
            refused |= item.candidate.beside
            item = self.judge.made(item.candidate.plan.without(item.candidate.beside), best.left)
        drop = self.judge.measure_drop(item.candidate.model)
        if not item.candidate.changed or not self.judge.holds(drop) or item.speed > best.speed + EQUAL:
            return best
        return replace(item, candidate=replace(item.candidate, unfused=refused), drop=drop, whole=best.whole)

    def _least_time(self, plan: Plan) -> float:
        """Return the part of the float model's time that is sure to stay: of nodes that only other plans take."""
        if self.judge.measure_nodes is None:
            return 0.0
        workshop = self._workshop
        able = {unit.position for unit in workshop.units} | {site.position for site in workshop.sites}
        return workshop.share(able - set(plan.nodes), self.judge.measure_nodes(workshop.model))

    def _distinct(self, plans: Sequence[Plan]) -> list[Plan]:
        """Return the plans without those that can be told from an earlier one by nothing that counts.

        Those have the same nodes in integers, and the nodes that take another form need so little time in float that
        the difference, at most about half of it, is none. A weight that others read too may be stored once or twice.
        """
        if self.judge.measure_nodes is None:
            return list(plans)
        times, kept = self.judge.measure_nodes(self._workshop.model), list(plans[:1])
        tied = self._workshop.tied()
        for plan in plans[1:]:
            changes = [plan.otherwise(other) for other in kept if other.nodes == plan.nodes]
            if all(not tied.isdisjoint(some) or self._workshop.share(some, times) > 2 * EQUAL for some in changes):
                kept.append(plan)
        return kept

    def _held(self, item: Judged, *, thin: bool) -> Judged:
        """Measure the loss; where it is too large and `thin`, lower it, at last by leaving nodes float.

        What takes less time is tried first: smoothing, fitting weights, choosing ranges again.
        """
        failed = replace(item, drop=self.judge.measure_drop(item.candidate.model))
        if self.judge.holds(failed.drop) or not thin:
            return failed
        plan = item.candidate.plan
        error = self.judge.error(item.candidate.model)
        if error is None:
            return failed
        share = failed.loss / max(error(item.candidate.model), 1e-12)
        self._workshop.smooth(plan.nodes)
        if len(self._workshop.smoothings) > item.candidate.smoothings:  # for another plan, perhaps
            failed = self._again(failed, error, share)
            if self.judge.holds(failed.drop):
                return failed
        if fit_weights(self._workshop, plan, error):
            failed = self._again(failed, error, share)
            if self.judge.holds(failed.drop):
                return failed
        with self._workshop.switchboard(plan, error) as board:
            harms = attribute(board.roundings, board.error, _MEASURED)
            if choose_ranges(self._workshop, plan, board, harms):
                failed = self._again(failed, error, share)
                if self.judge.holds(failed.drop):
                    return failed
        return thinned(self.judge, failed, harms)

    def _again(self, failed: Judged, error: OutputError, share: float) -> Judged:
        """Make a plan again, with other weights and ranges, and measure its loss if it may hold the limit now.

        Its time is another only where tensors were smoothed, which takes nodes.

        Args:
            failed: The plan as it was.
            error: On the samples that it did worst on.
            share: Loss over that error.
        """
        candidate = self._workshop.make(failed.candidate.plan)
        if share * error(candidate.model) > _FAR * self.judge.limit:
            return replace(failed, candidate=candidate)
        latency = failed.latency
        if candidate.smoothings > failed.candidate.smoothings:
            latency = self.judge.measure_latency(self.judge.float_model, candidate.model)
        return replace(failed, candidate=candidate, drop=self.judge.measure_drop(candidate.model), latency=latency)
