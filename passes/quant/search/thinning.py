"""Leaving nodes float until the limit holds."""

from __future__ import annotations

from dataclasses import replace

from graphopt.passes.quant.search.balance import Balance
from graphopt.passes.quant.search.candidates import WORTH, Judged, better
from graphopt.passes.quant.search.judging import Judge
from graphopt.passes.quant.search.plans import FALLBACKS, Plan
from graphopt.passes.quant.search.switchboard import Rounding

_TRIES = 8  # times that less error is allowed; plans that are equal are made and measured once
_FIRST = 0.85  # of the error is the most that is allowed
_LUCK = 1.4  # times the share that should hold the limit may hold it: losses that are counted jump
_STEPS = (0.5, 0.8)  # least and largest part of the error that is allowed next, where the last was too much
_APART = 1.6  # times the error that holds the limit is known to be too much: what lies between is tried


def thinned(judge: Judge, failed: Judged, harms: dict[Rounding, float]) -> Judged:
    """Leave the nodes float that the error comes from, as few as it takes; return the plan as it was if none holds.

    Less and less error is allowed, in small steps, until the loss is within the limit. It is not trusted to follow the
    error: two plans of the same error change the best class of other samples, so that steps as long as one loss asks
    for leave most of the network float where the next plan would have held.

    Args:
        judge: Measures.
        failed: The plan, which loses too much.
        harms: Error of each of its roundings.
    """
    balance = replace(judge.balance(failed.candidate, harms), wanted=True)
    held = _descend(judge, failed, balance)
    if held is None:
        return failed
    held = replace(held, latency=judge.measure_latency(judge.float_model, held.candidate.model))
    slim = judge.slimmed(held)
    if slim is not held:
        drop = judge.measure_drop(slim.candidate.model)
        held = replace(slim, drop=drop) if judge.holds(drop) else held
    held = replace(held, whole=failed.speed)
    return held if judge.asked_for else _filled(judge, held, failed.candidate.plan)


def _descend(judge: Judge, failed: Judged, balance: Balance) -> Judged | None:
    """Return the plan that allows most error of those that were found to hold the limit."""
    harms, held, trial = dict(balance.harms), None, failed
    whole, good, bad = sum(harms.values()), 0.0, 1.0
    share = min(_FIRST, _LUCK * judge.limit / max(failed.loss, 1e-12))
    for _ in range(_TRIES):
        plan = balance.within(share * whole)
        if plan.nodes != trial.candidate.plan.nodes:
            trial = _without(judge, failed, plan, harms)
        if not trial.candidate.changed:
            break
        if judge.holds(trial.drop):
            held, good = trial, share
        else:
            bad = share
        if bad < _APART * good:
            break
        step = min(max(judge.limit / max(trial.loss, 1e-12), _STEPS[0]), _STEPS[1])
        share = share * step if held is None else (good * bad) ** 0.5
    return held


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
