"""How many channels each group gives up, so that a cost falls to a target and the loss is least."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from graphopt.passes.prune.channels.costs import Costs


@dataclass(frozen=True, eq=False)
class Curve:
    """What a group loses by how many of its classes go.

    Attributes:
        size: Classes of the group.
        options: Numbers of classes that may go, ascending from 0.
        losses: Loss at each, in a unit that all curves share.
    """

    size: int
    options: np.ndarray
    losses: np.ndarray


def curve(size: int, multiple: int, losses: np.ndarray) -> Curve:
    """Return the curve of a group, what stays being whole multiples of channels that kernels take at once.

    Args:
        size: Classes of the group.
        multiple: Of how many classes a multiple stays.
        losses: Loss once 1, 2, ... of them have gone.
    """
    kept = np.arange(multiple, size, multiple)[::-1]
    kept = kept[size - kept <= len(losses)]
    options = np.concatenate([[0], size - kept])
    return Curve(size, options, np.concatenate([[0.0], np.maximum.accumulate(losses[options[1:] - 1])]))


def allocate(curves: Sequence[Curve], costs: Costs, ratio: float) -> list[int]:
    """Return how many classes of each group go, so that the cost falls by a ratio.

    Greedy: the next step is the one that loses least for what it saves, steps being those to any later point of a
    curve, so that a dear step before cheap ones is no wall. Afterwards steps that turn out not to be needed are taken
    back, the dearest first.

    Args:
        curves: One a group.
        costs: What the groups cost together.
        ratio: Fraction of the cost that is to go, in [0, 1); less goes if there is not enough.
    """
    place = np.zeros(len(curves), int)
    target = (1 - ratio) * float(costs.total(np.ones(len(curves))))
    while float(costs.total(_left(curves, place))) > target * (1 + 1e-9):
        steps = [
            (index, later) for index, item in enumerate(curves) for later in range(place[index] + 1, len(item.options))
        ]
        if not steps:
            break
        place[:] = _best(curves, costs, place, steps)
    for index in sorted(range(len(curves)), key=lambda i: -float(curves[i].losses[place[i]])):
        place = _given_back(curves, costs, place, index, target)
    return [int(item.options[at]) for item, at in zip(curves, place, strict=True)]


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


def _best(curves: Sequence[Curve], costs: Costs, place: np.ndarray, steps: Sequence[tuple[int, int]]) -> np.ndarray:
    """Return the places after the step that loses least for what it saves; of a long step, its first part only."""
    now = _left(curves, place)
    after = np.repeat(now[None], len(steps), axis=0)
    for row, (index, later) in enumerate(steps):
        after[row, index] = 1.0 - curves[index].options[later] / curves[index].size
    saved = float(costs.total(now)) - costs.total(after)
    lost = np.array([curves[index].losses[later] - curves[index].losses[place[index]] for index, later in steps])
    price = np.where(saved > 0, (lost + 1e-12) / np.maximum(saved, 1e-300), np.inf)
    index, _ = steps[int(np.argmin(price))]
    moved = place.copy()
    moved[index] += 1
    return moved


def _given_back(curves: Sequence[Curve], costs: Costs, place: np.ndarray, index: int, target: float) -> np.ndarray:
    """Return the places with as much of one group given back as the target allows."""
    while place[index] > 0:
        less = place.copy()
        less[index] -= 1
        if float(costs.total(_left(curves, less))) > target * (1 + 1e-9):
            break
        place = less
    return place
