"""Weight sharing: the few levels on which weights of given scales lose least (Deep Compression, arXiv:1510.00149)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from graphopt.compensate.descent import coordinate_descent
from graphopt.compensate.gptq import damped, gptq
from graphopt.compensate.grid import Grid, PaletteGrid, nearest
from graphopt.compensate.magnitude import magnitude
from graphopt.compensate.refit import refit_levels

_BINS = 512  # distinct values that levels are chosen among exactly; more are put into bins of equal width first
_ROUNDS = 2  # of refitting levels and codes in turn; more change the last digits
_FULL = 4096  # inputs; wider layers would need minutes for their inverse, and are rounded with the diagonal alone


@dataclass(frozen=True)
class Palette:
    """Weights as codes of shared levels.

    Attributes:
        codes: Index of the level of each weight, uint8 [groups, rows, inputs].
        levels: Ascending, float64 [at most 2**bits].
    """

    codes: np.ndarray
    levels: np.ndarray


@dataclass(frozen=True)
class _Masked:
    """A grid on which some weights can only be zero.

    Attributes:
        grid: Grid of the others.
        keep: Which weights may be something else, [..., rows, inputs].
    """

    grid: Grid
    keep: np.ndarray

    def project(self, values: np.ndarray, column: int) -> np.ndarray:
        """Return the nearest allowed values, [..., rows]."""
        return np.where(self.keep[..., column], self.grid.project(values, column), 0.0)


def masked(grid: Grid, keep: np.ndarray | None) -> Grid:
    """Return a grid on which the weights that are not kept are zero; None keeps all."""
    return grid if keep is None else _Masked(grid, keep)


def fit_palette(
    matrix: np.ndarray, moment: np.ndarray | None, bits: int, scale: np.ndarray, *, whole: bool = False
) -> Palette:
    """Return the best codes and levels that alternating minimization finds; the scales are given.

    Start from the levels that err least under the diagonal of the moment, which in one dimension are found exactly;
    round with GPTQ; then refit the levels by least squares and improve the codes by coordinate descent, in turn.

    Args:
        matrix: Weights, [groups, rows, inputs].
        moment: Second moment of the inputs, [groups, inputs, inputs]; None where nothing is known about them.
        bits: Bits of a code, 1 to 8.
        scale: Positive factors of the levels, [groups, rows, 1].
        whole: Whether levels must be whole numbers, as those of integer weights are.
    """
    groups, _, inputs = matrix.shape
    unit = magnitude(matrix)  # in which no square overflows
    matrix, scale = matrix / unit, scale / unit
    if moment is not None:
        moment = damped(moment)
        moment /= magnitude(moment)
    diagonal = np.ones((groups, inputs)) if moment is None else np.einsum("gkk->gk", moment)
    unscaled = matrix / scale
    bounds = float(unscaled.min()), float(unscaled.max())
    levels = _allowed(best_levels(unscaled, diagonal[:, None, :] * scale**2, 2**bits), bounds, whole=whole)
    if moment is None or inputs > _FULL:
        return Palette(nearest(levels, unscaled).astype(np.uint8), levels)
    if groups == 1:
        values = gptq(matrix[0], moment[0], PaletteGrid(scale[0], levels, inputs))[None]
    else:
        values = levels[nearest(levels, unscaled)] * scale
    quick = moment.astype(np.float32)
    for _ in range(_ROUNDS):
        values = coordinate_descent(matrix, values, quick, PaletteGrid(scale, levels, inputs), sweeps=1)
        codes = nearest(levels, values / scale)
        levels = _allowed(refit_levels(matrix, codes, scale, quick, levels), bounds, whole=whole)
        values = levels[nearest(levels, values / scale)] * scale
    values = coordinate_descent(matrix, values, quick, PaletteGrid(scale, levels, inputs), sweeps=1)
    return Palette(nearest(levels, values / scale).astype(np.uint8), levels)


def best_levels(values: np.ndarray, weights: np.ndarray, count: int) -> np.ndarray:
    """Return the levels that minimize the weighted squared error of rounding to them, ascending, [at most count].

    In one dimension the values of a level are neighbours, so that dynamic programming over where each level ends finds
    the minimum (Wang and Song, "Ckmeans.1d.dp", The R Journal 3/2, 2011). It is exact for up to 512 distinct values,
    and else for the means of 512 bins.

    Args:
        values: Any shape but empty.
        weights: Positive weight of each value's error, broadcastable to the values.
        count: Most levels.
    """
    flat = values.ravel().astype(np.float64)
    points, place = np.unique(flat, return_inverse=True)
    if len(points) > _BINS:
        low, high = points[0], points[-1]
        place = np.minimum(((flat - low) * (_BINS / (high - low))).astype(np.int64), _BINS - 1)
    each = np.broadcast_to(weights, values.shape).ravel()
    size = int(place.max()) + 1
    mass, first, second = (np.bincount(place, each * flat**power, size) for power in range(3))
    filled = mass > 0
    return _segment_means(mass[filled], first[filled], second[filled], count)


def _segment_means(mass: np.ndarray, first: np.ndarray, second: np.ndarray, count: int) -> np.ndarray:
    """Return the means of the best segments of weighted points, given their moments of order 0, 1 and 2, [points]."""
    size = len(mass)
    sums = [np.concatenate([[0.0], np.cumsum(part)]) for part in (mass, first, second)]
    zero, one, two = (part[None, :] - part[:, None] for part in sums)
    with np.errstate(divide="ignore", invalid="ignore"):
        cost = np.where(zero > 0, np.maximum(two - one**2 / zero, 0.0), np.inf)  # of a level from the row to the column
    least = cost[0].copy()
    starts = []
    for _ in range(min(count, size) - 1):
        total = least[:, None] + cost
        starts.append(total.argmin(axis=0))
        least = total[starts[-1], np.arange(size + 1)]
    ends = [size]
    for start in reversed(starts):
        ends.append(int(start[ends[-1]]))
    edges = np.array([0, *ends[::-1]])
    return np.asarray(np.diff(sums[1][edges]) / np.diff(sums[0][edges]))


def _allowed(levels: np.ndarray, bounds: tuple[float, float], *, whole: bool) -> np.ndarray:
    levels = np.clip(levels, *bounds)
    return np.unique(np.rint(levels)) if whole else np.unique(levels)
