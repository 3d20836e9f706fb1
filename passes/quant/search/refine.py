"""Making the roundings of a plan less harmful before any node is left float: other weights, other ranges."""

from __future__ import annotations

from graphopt.passes.quant.search.errors import OutputError
from graphopt.passes.quant.search.plans import Plan
from graphopt.passes.quant.search.switchboard import Rounding, Switchboard
from graphopt.passes.quant.search.workshop import Workshop

_COVERED = 0.9  # of the error of tensors is looked at for better ranges
_HEAVY = 0.1  # of the error caused by weights is worth fitting them
_RANGES = 6  # tensors that other ranges are tried for


def fit_weights(workshop: Workshop, plan: Plan, error: OutputError) -> bool:
    """Fit the weights of a plan where they cause enough of the error at the outputs; whether any changed."""
    with workshop.switchboard(plan, error) as board:
        weights = [item for item in board.roundings if not item.tensor and not item.at_run_time]
        if not weights or board.error(weights) < _HEAVY * board.error(board.roundings):
            return False
    return workshop.fit_weights({item.position for item in weights})


def choose_ranges(workshop: Workshop, plan: Plan, board: Switchboard, harms: dict[Rounding, float]) -> bool:
    """Try other ranges for the tensors that harm most; whether any is better.

    Args:
        workshop: Keeps what was found.
        plan: Whose roundings they are.
        board: Switches of its roundings.
        harms: Error of each rounding; brought up to date for other ranges.
    """
    worst = sorted((item for item in harms if item.tensor), key=lambda item: -harms[item])
    remaining, found = sum(harms[item] for item in worst), False
    least = (1 - _COVERED) * remaining
    for rounding in worst[:_RANGES]:
        if remaining <= least:
            break
        remaining -= harms[rounding]
        found |= _choose_range(workshop, plan, board, harms, rounding)
    return found


def _choose_range(
    workshop: Workshop, plan: Plan, board: Switchboard, harms: dict[Rounding, float], rounding: Rounding
) -> bool:
    before = board.parameters[rounding]
    tried = {before: board.error([rounding])}
    methods = workshop.ranges_of(plan, rounding.tensor)
    for parameters in methods.values():
        if parameters not in tried:
            board.parameters[rounding] = parameters
            tried[parameters] = board.error([rounding])
    best = min(tried, key=lambda parameters: tried[parameters])
    board.parameters[rounding] = best
    harms[rounding] = tried[best]
    if best == before:
        return False
    workshop.choose_range(rounding.tensor, next(name for name, item in methods.items() if item == best))
    return True
