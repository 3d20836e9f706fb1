"""Put a weight on a trellis and a scale a row, so that what it computes changes least."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence

import numpy as np

from graphopt.compensate import damped, gptq, refit_scales
from graphopt.compensate.magnitude import magnitude
from graphopt.compensate.trellis import Trellis, TrellisGrid, fit_trellis, lanes
from graphopt.passes.pack.coded import Chained, ChainedWhole, stored_scale
from graphopt.passes.pack.shrink import FULL
from graphopt.passes.pack.units import Unit

_LEAST_ROWS = 48  # the first few of a chain have no choice of window
_LEAST_SIZE = 2**13  # elements; of fewer, the nodes of the decoder would weigh more than what is gained
_MOST_SIZE = 2**23  # elements; every array above 32 MiB is taken from the system anew, and a decoder has several
_LONGEST = 2**12  # rows of a chain, which are chosen one after the other; that of a prime number of rows has all
_KURTOSES = 2.6, 3.8, 6.0  # between kinds of distributions; 3 is that of normal ones
_DRAWN = 2**18  # weights that the levels of a trellis are fitted to, about


def can_chain(unit: Unit) -> bool:
    """Whether a weight can be put on a trellis, gains by it, and would not take too long to choose or to open."""
    suits = unit.rows >= _LEAST_ROWS and _LEAST_SIZE <= unit.size < _MOST_SIZE
    short = unit.rows // lanes(unit.rows) <= _LONGEST
    return suits and short and unit.groups == 1 and not unit.is_sparse


def tails(unit: Unit) -> int:
    """Return which of few kinds the distribution of a weight is of, by its kurtosis: the higher, the heavier tails."""
    return bisect_left(_KURTOSES, float(np.mean(_normed(unit, 1) ** 4)))


def fit_levels(units: Sequence[Unit], bits: int, rng: np.random.Generator) -> Trellis:
    """Return the trellis that suits all these weights, each over the size of its row.

    Args:
        units: At least one.
        bits: Of a code.
        rng: Draws weights.
    """
    step = max(1, sum(unit.size for unit in units) // _DRAWN)
    return fit_trellis(np.concatenate([_normed(unit, step) for unit in units]), bits, rng)


def _normed(unit: Unit, step: int) -> np.ndarray:
    """Return every so many-th row of a weight over its size, float64 and flat."""
    rows = unit.matrix()[0, ::step].astype(np.float64)
    size = _sizes(rows)[:, None]
    return np.asarray((rows / np.where(size > 0, size, 1)).ravel())


def chain(matrix: np.ndarray, moment: np.ndarray | None, trellis: Trellis) -> Chained:
    """Return the codes that GPTQ chooses, all rows of an input together, with the scales that suit them best.

    The largest weight of a row is within reach of the levels: a single weight that is cut off may change an output
    that squared errors do not notice. All of that is done in units in which no square overflows. Coordinate descent
    behind it would gain 1 % of the error.

    Args:
        matrix: Finite weights, [1, rows, inputs].
        moment: Second moment of the inputs, [1, inputs, inputs]; None where nothing is known about them.
        trellis: Levels for weights of size 1.
    """
    unit = magnitude(matrix)
    weights = matrix[0].astype(np.float64) / unit
    inputs = weights.shape[1]
    start = np.maximum(_sizes(weights), np.abs(weights).max(axis=1) / np.abs(trellis.levels).max())
    grid = TrellisGrid(start, trellis, inputs)
    if moment is None or inputs > FULL:
        grid.project_all(weights)
        energy = np.ones(inputs) if moment is None else np.einsum("kk->k", moment[0])
        scale = _fitted(weights, trellis.decoded(grid.codes), energy, start)
    else:
        known = damped(moment)
        known /= magnitude(known)
        gptq(weights, known[0], grid)
        scale = refit_scales(weights, trellis.decoded(grid.codes), known[0].astype(np.float32), start[:, None])
    return Chained(grid.codes[None], trellis.levels, stored_scale(scale[None] * unit), trellis)


def chain_whole(matrix: np.ndarray, moment: np.ndarray | None, trellis: Trellis, factor: np.ndarray) -> ChainedWhole:
    """Return what `chain` does, rounded to whole numbers times a factor a row, which adds little to the error.

    Args:
        matrix: Finite weights, [1, rows, inputs].
        moment: Second moment of the inputs, [1, inputs, inputs]; None where nothing is known about them.
        trellis: Levels for weights of size 1.
        factor: Positive, [1, rows, 1].
    """
    found = chain(matrix, moment, trellis)
    scale = stored_scale(found.scale.astype(np.float64) / factor)
    return ChainedWhole(found.codes, found.levels, scale, trellis, factor.astype(np.float32))


def _fitted(weights: np.ndarray, levels: np.ndarray, energy: np.ndarray, start: np.ndarray) -> np.ndarray:
    """Return the scale of each row that minimizes the error weighted by the energy of the inputs, [rows, 1]."""
    total, match = levels**2 @ energy, levels * weights @ energy
    return np.asarray(np.divide(match, total, out=start.copy(), where=(total > 0) & (match > 0)))[:, None]


def _sizes(weights: np.ndarray) -> np.ndarray:
    """Return the root of the mean square of each row, [rows]."""
    return np.asarray(np.sqrt(np.mean(np.square(weights), axis=1)))
