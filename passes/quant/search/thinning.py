"""Leaving nodes float until the limit holds."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from graphopt.passes.quant.search.candidates import WORTH, Judged, better
from graphopt.passes.quant.search.judging import Judge
from graphopt.passes.quant.search.plans import FALLBACKS, Plan
from graphopt.passes.quant.search.switchboard import Rounding

_AIM = 0.9  # of the limit is aimed at when nodes are left float
_TRIES = 5  # plans with nodes left float whose loss is measured
_ROOT = 0.5  # least power of the error that a loss is taken to grow with
_EASED = 1.6  # times the error that held the limit may hold it as well; so much more is tried
_NEAR = 1.1  # times that error is not worth another trial


def thinned(judge: Judge, failed: Judged, harms: dict[Rounding, float]) -> Judged:
    """Leave the nodes float that the error comes from, as few as it takes; return the plan as it was if none holds.

    The loss is taken to grow with a power of the error of the roundings that are on, at first in proportion; what
    was measured corrects it. Losses that are counted grow more slowly, with its root.

    Args:
        judge: Measures.
        failed: The plan, which loses too much.
        harms: Error of each of its roundings.
    """
    balance = replace(judge.balance(failed.candidate, harms), wanted=True)
    whole = sum(harms.values())
    held: Judged | None = None
    allowed, good, known_bad, power = whole, 0.0, whole, 1.0
    last = failed
    for _ in range(_TRIES):
        if held is None:
            before, loss = allowed, max(last.loss, 1e-12)
            allowed *= min((_AIM * judge.limit / loss) ** (1 / power), 0.9)
        else:
            allowed = min(good * _EASED, (good + known_bad) / 2)
        plan = balance.within(allowed)
        if held is not None and (plan == held.candidate.plan or allowed < good * _NEAR):
            break
        last = _without(judge, failed, plan, harms)
        if not last.candidate.changed:
            break
        if judge.holds(last.drop):
            held, good = last, allowed
            continue
        known_bad = allowed
        if held is None:
            power = float(np.clip(np.log(max(last.loss, 1e-12) / loss) / np.log(allowed / before), _ROOT, 1.0))
    if held is None:
        return failed
    held = replace(held, latency=judge.measure_latency(judge.float_model, held.candidate.model))
    slim = judge.slimmed(held)
    if slim is not held:
        drop = judge.measure_drop(slim.candidate.model)
        held = replace(slim, drop=drop) if judge.holds(drop) else held
    held = replace(held, whole=failed.speed)
    return held if judge.asked_for else _filled(judge, held, failed.candidate.plan)


def _filled(judge: Judge, held: Judged, tried: Plan) -> Judged:
    """Give what was left float a form that rounds less, ranges found at run time or blocks, where that is better.

    That goes for all of it at once: what hurts under fixed ranges mostly has values far out in a few rows, which
    these forms round apart from the others.
    """
    best = held
    for form in FALLBACKS:
        plan = judge.workshop.refilled(best.candidate.plan, frozenset(best.left) - tried.of(form), form)
        saved = judge.workshop.saved_bytes(frozenset(plan.nodes) - frozenset(best.candidate.plan.nodes))
        if saved < WORTH * best.candidate.model.weight_bytes:  # it could not be better by what `better` asks for
            continue
        candidate = judge.workshop.make(plan)
        drop = judge.measure_drop(candidate.model)
        if not judge.holds(drop):
            continue
        latency = judge.measure_latency(judge.float_model, candidate.model)
        left = {position: share for position, share in best.left.items() if position not in candidate.plan.nodes}
        item = replace(best, candidate=candidate, drop=drop, latency=latency, left=left)
        best = item if judge.pays(item) and better(item, best) else best
    return best


def _without(judge: Judge, failed: Judged, plan: Plan, harms: dict[Rounding, float]) -> Judged:
    candidate = judge.workshop.make(plan)
    whole = sum(harms.values())
    gone = frozenset(failed.candidate.plan.nodes) - frozenset(candidate.plan.nodes)
    shares = {position: judge.workshop.harm_of(position, harms) / max(whole, 1e-300) for position in gone}
    drop = judge.measure_drop(candidate.model) if candidate.changed else None
    return Judged(candidate, drop, None, {**failed.left, **shares})
