"""The way of a model through structured pruning."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from graphopt.base import PassReport, Skip
from graphopt.context import Context
from graphopt.ir.clean import clean
from graphopt.model import Model
from graphopt.passes.prune.channels.allocation import Curve, allocate, curve, uniform
from graphopt.passes.prune.channels.branches import end_branches, fill_means
from graphopt.passes.prune.channels.costs import Costs, mac_costs, weight_costs
from graphopt.passes.prune.channels.dependencies import Dependencies, Group, find_dependencies
from graphopt.passes.prune.channels.ranking import Ranking, rank_by_reader, rank_by_weight
from graphopt.passes.prune.channels.reconstruction import reconstruct
from graphopt.passes.prune.channels.removal import remove_classes, rows_left
from graphopt.passes.prune.channels.rotation import turn, turnings
from graphopt.passes.prune.channels.sensitivity import Meter
from graphopt.shapes import infer_shapes, shapes_for

if TYPE_CHECKING:
    from graphopt.passes.prune.prune import Prune

_BY_READER = frozenset({"obs", "wanda", "fluctuation"})
_MOST = 0.7  # largest ratio that ratio=auto tries
_HALVINGS = 4  # how finely it looks for the best
_FEW = 16  # samples that coordinates are chosen by: of few channels, at many positions
_LANES = 8  # floats that kernels take at once; a convolution with a rest pays for a whole block


@dataclass(frozen=True, eq=False)
class Plan:
    """What can be removed from a model, and in which order.

    Attributes:
        model: The model; stays as it is.
        found: Its dependencies.
        turns: Coordinates of groups in which the rankings are, by the number of the group; see `rotation`.
        rankings: One a group.
        curves: Likewise.
        costs: What the ratio is a fraction of.
        even: Whether all groups give up the same fraction, as plain filter pruning does.
    """

    model: Model
    found: Dependencies
    turns: Mapping[int, np.ndarray]
    rankings: tuple[Ranking, ...]
    curves: tuple[Curve, ...]
    costs: Costs
    even: bool

    def gone(self, ratio: float) -> np.ndarray:
        """Return which classes go so that the cost falls by a ratio, bool [classes]."""
        share = uniform if self.even else allocate
        gone = np.zeros(self.found.size, bool)
        for ranking, count in zip(self.rankings, share(self.curves, self.costs, ratio), strict=True):
            gone[ranking.order[:count]] = True
        return gone


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
    return _prune(model, plan, options.ratio, context, options)


def make_plan(model: Model, context: Context, options: Prune) -> Plan:
    """Find, rank and weigh what can be removed."""
    shapes = shapes_for(model, next(iter(context.samples)) if context.samples is not None else None)
    found = find_dependencies(model, shapes)
    criterion = "obs" if options.criterion == "auto" else options.criterion
    by_reader = criterion in _BY_READER
    even = not by_reader and options.scope == "layer"
    turns: Mapping[int, np.ndarray] = {}
    turned, groups = model, found
    if criterion == "obs" and context.samples is not None:
        turns = turnings(model, found, context.samples.take(_FEW), context.progress)
        turned = model.copy()
        groups = find_dependencies(turned, shapes)
        turn(turned, groups, turns)
    if by_reader:
        measured = list(_measured(turned, groups, criterion, context))
    else:
        measured = [(item, item.losses) for item in rank_by_weight(found, criterion, context.rng("prune/channels"))]
    place = {id(group): index for index, group in enumerate(groups.groups)}
    measured.sort(key=lambda item: place[id(item[0].group)])
    multiples = [1 if even else _multiple(group) for group in found.groups]
    curves = tuple(
        curve(len(item.group.classes), multiple, losses)
        for (item, losses), multiple in zip(measured, multiples, strict=True)
    )
    rankings = tuple(replace(item, trials=()) for item, _ in measured)
    return Plan(model, found, turns, rankings, curves, _costs(model, found, shapes, options.of), even)


def _measured(
    model: Model, found: Dependencies, criterion: str, context: Context
) -> Iterator[tuple[Ranking, np.ndarray]]:
    """Yield each ranking with its losses; where there are samples, half of them rank and the others measure."""
    if context.samples is None:
        yield from ((item, item.losses) for item in rank_by_reader(model, found, None, criterion, context.progress))
        return
    fitted, unseen = context.samples.halves()
    meter = Meter(model, unseen)
    for item in rank_by_reader(model, found, fitted, criterion, context.progress):
        yield item, meter.losses(item)


def _prune(model: Model, plan: Plan, ratio: float, context: Context, options: Prune) -> PassReport:
    """Remove a ratio in place; the plan must be of this model."""
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
    skips = plan.found.skips
    if context.samples is not None:
        fill_means(ended, original, rows, context.samples)
    if changed and options.reconstruct and context.samples is not None:
        refit = reconstruct(original, model, rows, context.samples, context.progress)
        skips = (*skips, *refit.skips)
        metrics["fitted"] = refit.fitted
    return PassReport(changed, skips, metrics)


def _as_far_as_allowed(model: Model, plan: Plan, context: Context, options: Prune) -> PassReport:
    """Remove as much as the limit on the loss allows, found by bisection over finished models."""
    best: tuple[Model, PassReport] | None = None
    low, high = 0.0, _MOST
    for _ in range(_HALVINGS):
        ratio = (low + high) / 2
        candidate = model.copy()
        shapes = shapes_for(candidate, next(iter(context.samples)) if context.samples is not None else None)
        there = replace(plan, model=candidate, found=find_dependencies(candidate, shapes))
        report = _prune(candidate, there, ratio, context, options)
        clean(candidate.graph)
        drop = context.evaluator.drop(candidate)
        if drop is not None and drop.within(context.max_drop):
            low, best = ratio, (candidate, report)
        else:
            high = ratio
    if best is None:
        return PassReport(
            0, (*plan.found.skips, Skip("model", "no ratio that was tried keeps the loss within its limit"))
        )
    model.graph = best[0].graph
    return best[1]


def _costs(model: Model, found: Dependencies, shapes: dict[str, tuple[int, ...]], unit: str) -> Costs:
    if unit in ("weights", "bytes"):
        return weight_costs(model, found, in_bytes=unit == "bytes")
    return mac_costs(model, found, shapes)


def _multiple(group: Group) -> int:
    """Return of how many classes of a group a multiple stays: heads are whole blocks already."""
    return _LANES if group.width == 1 else 1
