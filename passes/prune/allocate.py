"""One ratio for the whole model, shared out over its weights by what each loses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from graphopt.passes.prune.criteria import magnitude
from graphopt.passes.prune.weights import Weight

_KNOWN = 2**18  # elements of a large weight that its curve rests on
RATIOS = (0.0, 0.25, 0.5, 0.7, 0.85, 0.95)


@dataclass(frozen=True)
class Curve:
    """What a weight loses by how much of it goes.

    Attributes:
        ratios: Fractions that go, ascending from 0.
        losses: Loss at each, in a unit that all curves share.
        cost: What the whole weight costs, in any unit that all curves share.
        whole: Whether only the listed ratios are possible.
    """

    ratios: tuple[float, ...]
    losses: tuple[float, ...]
    cost: float
    whole: bool = False


def energy_curve(
    weight: Weight, cost: float, ratios: Sequence[float] = RATIOS, *, relative: bool = True, whole: bool = False
) -> Curve:
    """Return the curve of a weight whose inputs are unknown: the share of its energy that goes with the smallest.

    This is what its outputs lose if all inputs are alike and independent.

    Args:
        weight: Its values; of many, evenly spaced ones are looked at.
        cost: See `Curve`.
        ratios: See `Curve`.
        relative: Whether the loss is a share of the energy, or the energy itself.
        whole: See `Curve`.
    """
    values = weight.constant.values.reshape(-1)
    step = max(1, values.size // _KNOWN)
    finite = np.nan_to_num(magnitude(values[::step]).astype(np.float64), nan=0.0, posinf=0.0)
    lost = np.concatenate([[0.0], np.cumsum(np.sort(np.square(finite)))]) * step
    scale = lost[-1] if relative and lost[-1] > 0 else 1.0
    at = [int(ratio * (len(lost) - 1)) for ratio in ratios]
    return Curve(tuple(ratios), tuple(float(lost[index] / scale) for index in at), cost, whole)


def share_out(curves: Sequence[Curve], ratio: float) -> list[float]:
    """Return the ratio of each weight, so that the costs that go are `ratio` of all and the loss is least.

    Takes the steps of the curves' lower convex hulls in order of loss per cost; the last one in part, where the
    weight's pattern allows that. With curves that are exact and convex this is optimal.
    """
    wanted = ratio * sum(curve.cost for curve in curves)
    steps = sorted(step for index, curve in enumerate(curves) for step in _steps(index, curve))
    found = [0.0] * len(curves)
    for _, index, first, last in steps:
        if wanted <= 1e-9 * max(curves[index].cost, 1.0):
            break
        saved = (last - first) * curves[index].cost
        part = 1.0 if curves[index].whole else min(1.0, wanted / saved)
        found[index] = first + part * (last - first)
        wanted -= part * saved
    return found


def _steps(index: int, curve: Curve) -> list[tuple[float, int, float, float]]:
    """Return the edges of a curve's lower hull as (loss per cost, index, from ratio, to ratio)."""
    hull = [0]
    for point in range(1, len(curve.ratios)):
        while len(hull) > 1 and _slope(curve, hull[-2], hull[-1]) >= _slope(curve, hull[-1], point):
            hull.pop()
        hull.append(point)
    cost = max(curve.cost, 1e-300)
    return [(max(0.0, _slope(curve, a, b)) / cost, index, curve.ratios[a], curve.ratios[b]) for a, b in pairwise(hull)]


def _slope(curve: Curve, first: int, last: int) -> float:
    return (curve.losses[last] - curve.losses[first]) / (curve.ratios[last] - curve.ratios[first])
