"""Size mode with as few bits as the limit on the loss allows."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import onnx_graphsurgeon as gs

from graphopt.context import Context
from graphopt.evaluate import Drop
from graphopt.ir.graph import constants, payload
from graphopt.model import Model
from graphopt.passes.pack.allocate import allocate, fewest_bits, predicted_bits
from graphopt.passes.pack.floats import Floats, Rounded
from graphopt.passes.pack.sensitivity import OutputLoss
from graphopt.passes.pack.sizemode import SizeMode
from graphopt.passes.pack.tuning import Tuning

_MARGIN = 0.95  # of the limit is used: the packed model is judged again, and integer kernels may round the other way
_WORTHWHILE = 0.97  # of the error may be left by tuning; if it is more, further trials do without


def round_within_limit(
    model: Model, candidates: Sequence[gs.Constant], mode: SizeMode, context: Context, losses: Sequence[float]
) -> tuple[dict[int, Rounded], str]:
    """Round weights, in place, to the fewest bits that keep the limit; leave them alone if there are none.

    Args:
        model: Whole models are made of copies of it and judged.
        candidates: Weights to round where they can be.
        mode: How they are rounded.
        context: Judges the trials.
        losses: What each unit of `Floats` loses at 4 bits.

    Returns:
        What became of each weight, by its id, and what was found, in words.
    """
    assert context.samples is not None
    limit, own = _MARGIN * context.max_drop, constants(model.graph)
    steps = OutputLoss(model, context.samples)
    place = {id(constant): index for index, constant in enumerate(own)}
    sizes = [unit.coded for unit in Floats(model, candidates).units]
    best: tuple[list[gs.Constant], dict[int, Rounded], Tuning] | None = None
    untuned = Tuning(1.0, "its states make single steps tell too little") if steps.states else None

    def judged(trial: Model) -> float:
        over = _excess(context.evaluator.drop(trial), limit)
        return max(over, steps.worst(trial) / limit) if steps.states and limit > 0 else over

    def excess(mean: float) -> float:
        nonlocal best, untuned
        trial = model.copy()
        twins = constants(trial.graph)
        floats = Floats(trial, [twins[place[id(constant)]] for constant in candidates])
        original = floats.model.copy()
        roundings = mode.round(floats.model, floats.units, allocate(losses, sizes, mean))
        found = floats.write_back(roundings)
        over = judged(trial)
        tuning = untuned or mode.tune(original, floats.model, roundings)
        if tuning.left < 1:
            found = floats.write_back(roundings)
            over = max(over * tuning.left, judged(trial))
        if tuning.left > _WORTHWHILE:
            untuned = Tuning(1.0, tuning.reason or f"it left {tuning.left:.0%} of an earlier trial's error")
        if over <= 1:
            best = twins, found, tuning
        return over

    mean = fewest_bits(excess, predicted_bits(losses, sizes, limit))
    if mean is None or best is None:
        return {}, f"rounding does not hold the limit of {context.max_drop:.2%}, less a twentieth, not even to 8 bits"
    twins, found, tuned = best
    handed = ", ".join(f"{output} handed on as {name}" for name, output in steps.states.items())
    note = f"{mean:g} bits a weight on average hold the limit of {context.max_drop:.2%}"
    note += f", with {handed} over several steps" if handed else ""
    return _taken_over(own, twins, found), f"{note}; {tuned.describe()}"


def _excess(drop: Drop | None, limit: float) -> float:
    """Return a loss over its limit, at most 1 where it is within."""
    if drop is None:
        return math.inf
    if drop.within(limit):
        return min(1.0, max(drop.value, 0.0) / limit) if limit > 0 else 1.0
    return (drop.value if drop.established is None else drop.established) / limit if limit > 0 else math.inf


def _taken_over(own: list[gs.Constant], twins: list[gs.Constant], found: Mapping[int, Rounded]) -> dict[int, Rounded]:
    """Give a model the weights of its rounded copy, whose constants come in the same order; return their fate by id."""
    back = {id(twin): constant for constant, twin in zip(own, twins, strict=True)}
    for constant, twin in zip(own, twins, strict=True):
        if payload(twin) is not payload(constant):
            constant.values = payload(twin)
    return {
        id(back[twin]): Rounded(rounded.form, None if rounded.bias is None else back[id(rounded.bias)])
        for twin, rounded in found.items()
    }
