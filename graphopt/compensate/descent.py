"""Coordinate descent on the rounded weights: never worse than its start."""

from __future__ import annotations

import numpy as np

from graphopt.compensate.grid import Grid


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
    for _ in range(sweeps):
        moved = False
        for column in np.flatnonzero(np.diag(moment) > 0):
            curvature = moment[column, column]
            wanted = grid.project(result[:, column] - gradient[:, column] / curvature, int(column))
            step = wanted - result[:, column]
            better = step * (2 * gradient[:, column] + step * curvature) < 0
            if not better.any():
                continue
            moved = True
            rows = np.flatnonzero(better)
            result[rows, column] = wanted[rows]
            gradient[rows] += np.outer(step[rows], moment[column])
        if not moved:
            break
    return result
