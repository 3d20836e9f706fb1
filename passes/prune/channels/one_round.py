"""One round of structured pruning: channels go, and what stays is fitted layer by layer."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from graphopt.base import PassReport
from graphopt.context import Context
from graphopt.model import Model
from graphopt.passes.prune.channels.branches import end_branches, fill_means
from graphopt.passes.prune.channels.plan import Plan
from graphopt.passes.prune.channels.reconstruction import reconstruct
from graphopt.passes.prune.channels.removal import remove_classes, rows_left
from graphopt.passes.prune.channels.rotation import turn
from graphopt.shapes import infer_shapes

if TYPE_CHECKING:
    from graphopt.passes.prune.prune import Prune


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
        skips = (*skips, *refit.skips)
        metrics |= {"fitted": refit.fitted}
    return PassReport(changed, skips, metrics)
