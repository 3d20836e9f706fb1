"""The way of a model through structured pruning."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from graphopt.base import PassReport, Skip
from graphopt.context import Context
from graphopt.gradients.tuning import tune
from graphopt.ir.clean import clean
from graphopt.model import Model
from graphopt.passes.prune.channels.branches import end_branches, fill_means
from graphopt.passes.prune.channels.plan import Plan, make_plan
from graphopt.passes.prune.channels.reconstruction import reconstruct
from graphopt.passes.prune.channels.removal import remove_classes, rows_left
from graphopt.passes.prune.channels.rotation import turn
from graphopt.passes.prune.variety import Varied
from graphopt.shapes import infer_shapes

if TYPE_CHECKING:
    from graphopt.passes.prune.prune import Prune

_TUNE = "prune/tune"
_MOST = 0.7  # largest ratio that ratio=auto tries
_HALVINGS = 4  # how finely it looks for the best


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
    return _in_rounds(plan, model, options.ratio, context, options)


def _in_rounds(plan: Plan, model: Model, ratio: float, context: Context, options: Prune) -> PassReport:
    """Remove a ratio in place, no more than half of the cost before what is left has been fitted and ranked afresh.

    Source: Molchanov et al., "Pruning Convolutional Neural Networks for Resource Efficient Inference",
    arXiv:1611.06440, which alternates removal and repair.
    """
    rounds = max(1, math.ceil(math.log2(1 / (1 - ratio)) - 1e-9))
    later = replace(options, layers="+".join(f"{name}=0" for name in options.stated_layers))  # they have had theirs
    left, reports = 1.0, []
    for index in range(rounds):
        wanted = (1 - ratio) ** ((index + 1) / rounds)
        if index:
            clean(model.graph)
            infer_shapes(model)
            plan = make_plan(model, context, later)
        if index and wanted >= left:
            continue
        reports.append(carry_out(plan, model, 1 - wanted / left, context, options))
        left *= reports[-1].metrics[f"{options.of}_left"]
    last = reports[-1]
    totals = {"channels": sum(report.metrics["channels"] for report in reports), f"{options.of}_left": left}
    return replace(last, changed=sum(report.changed for report in reports), metrics={**last.metrics, **totals})


def carry_out(plan: Plan, model: Model, ratio: float, context: Context, options: Prune) -> PassReport:
    """Remove a ratio in place.

    Args:
        plan: Of this model, or of one that it is a copy of.
        model: What is pruned.
        ratio: Fraction of the plan's costs that goes.
        context: Its samples are those that what stays is fitted to.
        options: `of` and `reconstruct` count.
    """
    plan = plan.of(model)
    gone = plan.gone(ratio)
    pruned = {index for index, group in enumerate(plan.found.groups) if gone[group.classes].any()}
    turn(model, plan.found, {index: matrix for index, matrix in plan.turns.items() if index in pruned})
    original = model.copy()
    rows = rows_left(plan.found.uses, gone)
    full = float(plan.costs.total(np.ones(len(plan.curves))))
    left = np.array([1 - gone[group.classes].mean() for group in plan.found.groups])
    metrics = {"channels": float(np.count_nonzero(gone)), f"{options.of}_left": float(plan.costs.total(left)) / full}
    ended = end_branches(model, plan.found.uses, gone, rows)
    cut = gone.copy()
    for group in plan.found.groups:
        cut[group.classes] &= not gone[group.classes].all()  # what ends as a whole is not cut; it leads to nothing now
    changed = remove_classes(model, plan.found, cut) + len(ended)
    infer_shapes(model)
    skips = (*plan.found.skips, *plan.unknown)
    if context.samples is not None:
        fill_means(ended, original, rows, context.samples)
    if changed and options.reconstruct and context.samples is not None:
        refit = reconstruct(original, model, rows, context.samples, context.progress)
        tuned, reason = tune(original, model, Varied(context.samples, shares=1), context.progress, context.rng(_TUNE))
        skips = (*skips, *refit.skips, *([Skip("model", f"not tuned: {reason}")] if reason else []))
        metrics |= {"fitted": refit.fitted, "tuned": tuned}
    return PassReport(changed, skips, metrics)


def _as_far_as_allowed(model: Model, plan: Plan, context: Context, options: Prune) -> PassReport:
    """Remove as much as its part of the limit on the loss allows, found by bisection over finished models."""
    best: tuple[Model, PassReport] | None = None
    low, high = 0.0, _MOST
    for _ in range(_HALVINGS):
        ratio = (low + high) / 2
        candidate = model.copy()
        report = carry_out(plan, candidate, ratio, context, options)
        clean(candidate.graph)
        drop = context.evaluator.drop(candidate)
        if drop is not None and drop.within(options.budget * context.max_drop):
            low, best = ratio, (candidate, report)
        else:
            high = ratio
    if best is None:
        return PassReport(
            0, (*plan.found.skips, Skip("model", "no ratio that was tried keeps the loss within its limit"))
        )
    model.graph = best[0].graph
    return best[1]
