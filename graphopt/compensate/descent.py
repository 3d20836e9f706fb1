"""Coordinate descent on the rounded weights: never worse than its start."""

from __future__ import annotations

import numpy as np

from graphopt.compensate.grid import Grid

_BLOCK = 64  # columns between updates of the whole gradient; bounds the cost of a step, changes nothing else


def coordinate_descent(
    weight: np.ndarray, start: np.ndarray, moment: np.ndarray, grid: Grid, *, sweeps: int = 3
) -> np.ndarray:
    """Improve weights on a grid, one column at a time (the quadratic form of AdaRound, arXiv:2004.10568, without
    gradients; QuantEase, arXiv:2309.01885).

    With all other columns fixed the loss is a parabola in the column, whose best grid value is the one nearest to its
    minimum. So each step lowers the loss of each row or leaves the row alone. Several groups, each with its own moment,
    go through it at once.

    Args:
        weight: What to approximate, [..., rows, inputs].
        start: A point on the grid, [..., rows, inputs].
        moment: Second moment of the inputs, [..., inputs, inputs]; columns with a zero diagonal are left alone. All is
            computed in its type: float32 is quick, and errs by what is below the worth of a step.
        grid: Grid of the result.
        sweeps: Largest number of passes over the columns; ends early when nothing moves.

    Returns:
        Weights on the grid in the type of the moment, [..., rows, inputs].
    """
    kind = moment.dtype if moment.dtype.kind == "f" else np.dtype(np.float64)
    result = np.array(start, kind)
    gradient = (result - np.asarray(weight, kind)) @ moment
    for _ in range(sweeps):
        moved = False
        for first in range(0, result.shape[-1], _BLOCK):
            block = slice(first, first + _BLOCK)
            step = _sweep(result[..., block], gradient[..., block], moment[..., block, block], grid, first)
            if step.any():
                moved = True
                result[..., block] += step
                gradient += step @ moment[..., block, :]
        if not moved:
            break
    return result


def _sweep(result: np.ndarray, gradient: np.ndarray, moment: np.ndarray, grid: Grid, first: int) -> np.ndarray:
    """Return the steps of one block of columns, [..., rows, block]; a step changes the gradient of later columns only.

    Columns are kept as contiguous rows, which is several times as quick.
    """
    result = np.ascontiguousarray(np.swapaxes(result, -1, -2))
    gradient = np.array(np.swapaxes(gradient, -1, -2), order="C")
    steps = np.zeros_like(result)
    for column in range(result.shape[-2]):
        curvature = moment[..., column, column, None]
        if not curvature.any():
            continue
        present, slope = result[..., column, :], gradient[..., column, :]
        wanted = grid.project(present - slope / np.where(curvature > 0, curvature, 1), first + column)
        step = (wanted - present).astype(result.dtype)
        step *= step * (2 * slope + step * curvature) < 0
        if step.any():
            steps[..., column, :] = step
            gradient[..., column + 1 :, :] += moment[..., column, column + 1 :, None] * step[..., None, :]
    return np.swapaxes(steps, -1, -2)
