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
    minimum. So each step lowers the loss of each row or leaves the row alone.

    Args:
        weight: What to approximate, [rows, inputs].
        start: A point on the grid, [rows, inputs].
        moment: Second moment of the inputs, [inputs, inputs]; columns with a zero diagonal are left alone.
        grid: Grid of the result.
        sweeps: Largest number of passes over the columns; ends early when nothing moves.
    """
    moment = np.asarray(moment, np.float64)
    result = np.array(start, np.float64)
    gradient = (result - weight) @ moment
    live = np.diag(moment) > 0
    for _ in range(sweeps):
        before = result.copy()
        for first in range(0, result.shape[1], _BLOCK):
            columns = slice(first, min(first + _BLOCK, result.shape[1]))
            step = _sweep(
                result[:, columns], gradient[:, columns], moment[columns, columns], live[columns], grid, first
            )
            if step.any():
                result[:, columns] += step
                gradient += step @ moment[columns]
        if np.array_equal(result, before):
            break
    return result


def _sweep(
    result: np.ndarray, gradient: np.ndarray, moment: np.ndarray, live: np.ndarray, grid: Grid, first: int
) -> np.ndarray:
    """Return the steps of one block of columns, [rows, block]; only the block's own gradient is kept up on the way."""
    steps = np.zeros_like(result)
    gradient = gradient.copy()
    for column in np.flatnonzero(live):
        curvature = moment[column, column]
        wanted = grid.project(result[:, column] - gradient[:, column] / curvature, first + int(column))
        step = wanted - result[:, column]
        step[step * (2 * gradient[:, column] + step * curvature) >= 0] = 0
        if step.any():
            steps[:, column] = step
            gradient += np.outer(step, moment[column])
    return steps
