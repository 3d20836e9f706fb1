"""The way of a model through structured pruning."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

from graphopt.base import PassReport, Skip
from graphopt.context import Context
from graphopt.gradients.tuning import GENTLE, tune
from graphopt.ir.clean import clean
from graphopt.model import Model
from graphopt.passes.prune.channels.one_round import carry_out
from graphopt.passes.prune.channels.plan import Plan, make_plan
from graphopt.passes.prune.channels.sensitivity import distance
from graphopt.passes.prune.shares import SHARES
from graphopt.passes.prune.variety import Varied
from graphopt.shapes import infer_shapes

if TYPE_CHECKING:
    from graphopt.passes.prune.prune import Prune

_ROUND = 0.2  # of the cost that is left; no more goes before what stays has been fitted and ranked afresh
_AT_ONCE = 0.5  # of the cost; beyond that one round alone is not tried
_JUDGES = 64  # samples that tell which way comes closer
_MOST = 0.7  # largest ratio that ratio=auto tries
_FINEST = 0.05  # of the cost that is left; ratio=auto looks no further


def prune_channels(model: Model, context: Context, options: Prune) -> PassReport:
    """Remove channels in place, and fit what is left to the outputs of before.

    Args:
        model: A model with fused normalizations, if it is to be fast; others work as well.
        context: Its samples give shapes, moments, sensitivities and the targets of the fit; without samples channels
            are ranked by weights alone.
        options: `ratio`, `of`, `criterion`, `scope` and `reconstruct` count.
    """
    plan = make_plan(model, context, options)
    if not plan.found.groups:
        return PassReport(0, (*plan.found.skips, Skip("model", "no channels of it can be removed")))
    if options.ratio == "auto":
        return _as_far_as_allowed(model, plan, context, options)
    return in_rounds(plan, model, options.ratio, context, options)


def in_rounds(plan: Plan, model: Model, ratio: float, context: Context, options: Prune) -> PassReport:
    """Remove a ratio in place, a part at a time; then tune all weights together towards the model of before.

    Losses of single groups add up only while they are small: what a group is worth is found out anew once others have
    gone and the rest has been fitted. But each round is fitted to what the one before has made. So up to half of a cost
    is removed both ways, and the model is kept that comes closer to the one of before.

    Source: Molchanov et al., "Pruning Convolutional Neural Networks for Resource Efficient Inference",
    arXiv:1611.06440, which alternates removal and repair.

    Args:
        plan: Of this model, or of one that it is a copy of.
        model: What is pruned.
        ratio: Fraction of the plan's costs that goes.
        context: Its samples are those that what stays is fitted to.
        options: `of`, `layers` and `reconstruct` count.
    """
    rounds = max(1, math.ceil(math.log(1 - ratio) / math.log(1 - _ROUND) - 1e-9))
    if rounds == 1 or ratio > _AT_ONCE or not options.reconstruct or context.samples is None:
        return _removed(plan, model, ratio, rounds, context, options)
    original, at_once = model.copy(), model.copy()
    reports = [_removed(plan, way, ratio, count, context, options) for way, count in ((at_once, 1), (model, rounds))]
    judges = context.samples.take(_JUDGES)
    if distance(original, at_once, judges) < distance(original, model, judges):
        model.graph = at_once.graph
        return reports[0]
    return reports[1]


def _removed(plan: Plan, model: Model, ratio: float, rounds: int, context: Context, options: Prune) -> PassReport:
    """Remove a ratio in place, in so many rounds, and tune."""
    original = model.copy()
    left, reports = 1.0, []
    for index in range(rounds):
        wanted = (1 - ratio) ** ((index + 1) / rounds)
        if index and wanted >= left:
            continue
        if index:
            plan = make_plan(model, context, _later(options))
        reports.append(carry_out(plan, model, 1 - wanted / left, context, options))
        left *= reports[-1].metrics[f"{options.of}_left"]
        clean(model.graph)
        infer_shapes(model)
    return _tuned(original, model, _together(reports, left, options), context, options)


def _later(options: Prune) -> Prune:
    """Return the options of further rounds: layers that the user names have had theirs."""
    return replace(options, layers="+".join(f"{name}=0" for name in options.stated_layers))


def _together(reports: list[PassReport], left: float, options: Prune) -> PassReport:
    """Return one report of all rounds: of places the last one's, of what has gone the sum."""
    last = reports[-1]
    totals = {"channels": sum(report.metrics["channels"] for report in reports), f"{options.of}_left": left}
    return replace(last, changed=sum(report.changed for report in reports), metrics={**last.metrics, **totals})


def _tuned(original: Model, model: Model, report: PassReport, context: Context, options: Prune) -> PassReport:
    """Tune a pruned model in place by gradients, if it is to be fitted; return the report with that."""
    if not report.changed or not options.reconstruct or context.samples is None:
        return report
    samples = Varied(context.samples)
    rng = context.rng("prune/tune")
    tuned, reason = tune(original, model, samples, context.progress, rng, apart=SHARES, pace=GENTLE)
    skips = (Skip("model", f"not tuned: {reason}"),) if reason else ()
    return replace(report, skipped=(*report.skipped, *skips), metrics={**report.metrics, "tuned": tuned})


def _as_far_as_allowed(model: Model, plan: Plan, context: Context, options: Prune) -> PassReport:
    """Remove part after part, in place, while the loss stays within its part of the limit; then ever smaller parts."""
    original, best, left = model.copy(), model.copy(), 1.0
    reports: list[PassReport] = []
    finished: tuple[Model, PassReport] | None = None
    step = _ROUND
    while step >= _FINEST and left > 1 - _MOST:
        candidate = best.copy()
        report = carry_out(plan, candidate, step, context, options)
        clean(candidate.graph)
        infer_shapes(candidate)
        judged, rest = candidate.copy(), left * report.metrics[f"{options.of}_left"]
        whole = _tuned(original, judged, _together([*reports, report], rest, options), context, options)
        drop = context.evaluator.drop(judged)
        if rest == left or drop is None or not drop.within(options.budget * context.max_drop):
            step /= 2
            continue
        best, left, finished = candidate, rest, (judged, whole)
        reports.append(report)
        plan = make_plan(best, context, _later(options))
    if finished is None:
        why = Skip("model", "no ratio that was tried keeps the loss within its limit")
        return PassReport(0, (*plan.found.skips, why))
    model.graph = finished[0].graph
    return finished[1]
