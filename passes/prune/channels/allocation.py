"""How many channels each group gives up, so that a cost falls to a target and the loss is least."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from graphopt.passes.prune.channels.costs import Costs

_FREE = 1e-10  # loss, relative to the variance of outputs: rounding
_SPARE = 0.005  # of the cost; this much more than was asked for may go for the sake of whole multiples


@dataclass(frozen=True, eq=False)
class Curve:
    """What a group loses by how many of its classes go.

    Attributes:
        size: Classes of the group.
        options: Numbers of classes that may go, ascending from 0.
        losses: Loss at each, in a unit that all curves share.
        between: Loss once 0, 1, 2, ... of them have gone, for the last step, which may stop between two options.
    """

    size: int
    options: np.ndarray
    losses: np.ndarray
    between: np.ndarray


def curve(size: int, multiple: int, losses: np.ndarray) -> Curve:
    """Return the curve of a group, what stays being whole multiples of channels that kernels take at once.

    Args:
        size: Classes of the group.
        multiple: Of how many classes a multiple stays.
        losses: Loss once 1, 2, ... of them have gone.
    """
    kept = np.arange(0, size, multiple)[::-1]
    kept = kept[size - kept <= len(losses)]
    options = np.concatenate([[0], size - kept])
    between = np.concatenate([[0.0], np.maximum.accumulate(losses)])
    return Curve(size, options, between[options], between)


def pinned(item: Curve, ratio: float) -> Curve:
    """Return a curve of which only the point nearest to a fraction of the classes is left."""
    at = int(np.argmin(np.abs(item.options - ratio * item.size)))
    return Curve(item.size, item.options[at : at + 1], item.losses[at : at + 1], item.between)


def allocate(curves: Sequence[Curve], costs: Costs, ratio: float) -> list[int]:
    """Return how many classes of each group go, so that the cost falls by a ratio.

    Greedy: the next step is the one that loses least for what it saves, steps being those to any later point of a
    curve, so that what is dear to begin and cheap to finish, as a whole branch is, has its chance. What has then gone
    too much is given back where that gains most. What loses nothing, as dead channels do, goes whatever the ratio.

    Options leave what kernels take at once. Where a model has few groups that makes more go than was asked for; one
    group then gives back single classes, down to the ratio.

    Args:
        curves: One a group.
        costs: What the groups cost together.
        ratio: Fraction of the cost that is to go, in [0, 1); less goes if there is not enough.
    """
    place = np.array([np.count_nonzero(item.losses <= max(_FREE, item.losses[0])) - 1 for item in curves])
    target = (1 - ratio) * float(costs.total(np.ones(len(curves))))
    while float(costs.total(_left(curves, place))) > target * (1 + 1e-9):
        steps = [
            (index, later) for index, item in enumerate(curves) for later in range(place[index] + 1, len(item.options))
        ]
        if not steps:
            break
        place = _best(curves, costs, place, steps, target)
    while (less := _given_back(curves, costs, place, target)) is not None:
        place = less
    return _to_the_class(curves, costs, place, target)


def uniform(curves: Sequence[Curve], costs: Costs, ratio: float) -> list[int]:
    """Return how many classes of each group go if all give up the same fraction, as near as options allow."""
    target = (1 - ratio) * float(costs.total(np.ones(len(curves))))
    for fraction in np.linspace(0, 1, 401):
        place = np.array([int(np.argmin(np.abs(item.options - fraction * item.size))) for item in curves])
        if float(costs.total(_left(curves, place))) <= target * (1 + 1e-9):
            break
    return [int(item.options[at]) for item, at in zip(curves, place, strict=True)]


def _left(curves: Sequence[Curve], place: np.ndarray) -> np.ndarray:
    """Return the fraction of each group that is left, [groups]."""
    gone = np.array([item.options[at] / item.size for item, at in zip(curves, place, strict=True)])
    return 1.0 - gone


def _best(
    curves: Sequence[Curve], costs: Costs, place: np.ndarray, steps: Sequence[tuple[int, int]], target: float
) -> np.ndarray:
    """Return the places after the step that loses least for what it saves, of which no more counts than is needed."""
    now = float(costs.total(_left(curves, place)))
    saved = np.minimum(now - costs.total(_after(curves, place, steps)), now - target)
    lost = np.array([curves[index].losses[later] - curves[index].losses[place[index]] for index, later in steps])
    price = np.where(saved > 0, (lost + 1e-12) / np.maximum(saved, 1e-300), np.inf)
    index, later = steps[int(np.argmin(price))]
    moved = place.copy()
    moved[index] = later
    return moved


def _given_back(curves: Sequence[Curve], costs: Costs, place: np.ndarray, target: float) -> np.ndarray | None:
    """Return the places after the step back that gains most among those that the target allows, or None."""
    steps = [(index, earlier) for index, at in enumerate(place) for earlier in range(at)]
    if not steps:
        return None
    allowed = costs.total(_after(curves, place, steps)) <= target * (1 + 1e-9)
    gained = np.array([curves[index].losses[place[index]] - curves[index].losses[earlier] for index, earlier in steps])
    gained[~allowed] = -1.0
    best = int(np.argmax(gained))
    if gained[best] <= 0:
        return None  # what is lost by nobody goes, wanted or not
    moved = place.copy()
    moved[steps[best][0]] = steps[best][1]
    return moved


def _to_the_class(curves: Sequence[Curve], costs: Costs, place: np.ndarray, target: float) -> list[int]:
    """Return how many classes of each group go once one group has given back what goes too much, class by class."""
    counts = [int(item.options[at]) for item, at in zip(curves, place, strict=True)]
    left, full = _left(curves, place), float(costs.total(np.ones(len(curves))))
    best, gain = counts, 0.0
    if target - float(costs.total(left)) <= _SPARE * full:
        return counts
    for index, (item, at) in enumerate(zip(curves, place, strict=True)):
        fewer = np.arange(item.options[at - 1] + 1, counts[index]) if at else np.arange(0)
        after = np.repeat(left[None], len(fewer), axis=0)
        after[:, index] = 1.0 - fewer / item.size
        fewer = fewer[costs.total(after) <= target * (1 + 1e-9)]
        if len(fewer) and item.losses[at] - item.between[fewer[0]] > gain:
            gain = float(item.losses[at] - item.between[fewer[0]])
            best = [*counts[:index], int(fewer[0]), *counts[index + 1 :]]
    return best


def _after(curves: Sequence[Curve], place: np.ndarray, steps: Sequence[tuple[int, int]]) -> np.ndarray:
    """Return the fraction of each group that is left after each step, [steps, groups]."""
    after = np.repeat(_left(curves, place)[None], len(steps), axis=0)
    for row, (index, to) in enumerate(steps):
        after[row, index] = 1.0 - curves[index].options[to] / curves[index].size
    return after
