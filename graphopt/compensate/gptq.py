"""GPTQ: round column by column and let the columns still to come make up for the error."""

from __future__ import annotations

import numpy as np

from graphopt.compensate.grid import Grid

_BLOCK = 64  # columns between updates of the rest; bounds the cost of small updates, changes nothing else


def damped(moment: np.ndarray, damping: float = 0.01) -> np.ndarray:
    """Return second moments with their mean diagonal, times `damping`, added, so that they can be inverted.

    Inputs that were zero on every sample count as the mean of the others: their weights may become anything, and those
    of the others must not notice. Of inputs that vary little beside their mean, rounding may leave a moment that no
    inputs have: its eigenvalues are raised to what was to be added.

    Args:
        moment: Second moments, [..., inputs, inputs].
        damping: Fraction of the mean diagonal.
    """
    moment = np.array(moment, np.float64)
    diagonal = np.einsum("...kk->...k", moment)
    alive = np.count_nonzero(diagonal, axis=-1, keepdims=True)
    mean = np.where(alive, diagonal.sum(axis=-1, keepdims=True) / np.maximum(alive, 1), 1.0)
    diagonal += np.where(diagonal == 0, mean, 0.0) + damping * mean
    try:
        np.linalg.cholesky(moment)
    except np.linalg.LinAlgError:
        values, vectors = np.linalg.eigh(moment)
        moment = (vectors * np.maximum(values, damping * mean)[..., None, :]) @ np.swapaxes(vectors, -1, -2)
    return moment


def gptq(weight: np.ndarray, moment: np.ndarray, grid: Grid, *, descending: bool = True) -> np.ndarray:
    """Return weights on the grid (arXiv:2210.17323, algorithm 1).

    Args:
        weight: [rows, inputs].
        moment: Damped second moment of the inputs, [inputs, inputs], positive definite; see `damped`.
        grid: Grid of the result.
        descending: Whether to take the columns by descending diagonal of the moment ("act-order"), which is rarely
            worse and often better.

    Raises:
        numpy.linalg.LinAlgError: The moment is not positive definite.
    """
    order = np.argsort(-np.diag(moment), kind="stable") if descending else np.arange(weight.shape[1])
    rest = np.array(np.asarray(weight, np.float64).T[order], order="C")  # [inputs, rows]: columns are contiguous
    upper = inverse_factor(moment[np.ix_(order, order)])
    result = np.empty_like(rest)
    for start in range(0, len(rest), _BLOCK):
        stop = min(start + _BLOCK, len(rest))
        errors = np.empty((stop - start, rest.shape[1]))
        for column in range(start, stop):
            result[column] = grid.project(rest[column], int(order[column]))
            error = (rest[column] - result[column]) / upper[column, column]
            rest[column + 1 : stop] -= upper[column, column + 1 : stop, None] * error
            errors[column - start] = error
        rest[stop:] -= upper[start:stop, stop:].T @ errors
    back = np.empty_like(result)
    back[order] = result
    return np.ascontiguousarray(back.T)


def inverse_factor(moment: np.ndarray) -> np.ndarray:
    """Return the upper Cholesky factor U of the inverse: inverse = U^T U.

    With the columns in reverse order the moment is L L^T; the factor is the inverse of L, turned back.
    """
    lower = np.linalg.cholesky(moment[::-1, ::-1])
    return np.ascontiguousarray(_inverse_of_lower(lower)[::-1, ::-1])


def _inverse_of_lower(matrix: np.ndarray) -> np.ndarray:
    """Return the inverse of a lower triangular matrix, by halves: a sixth of the work for any matrix."""
    size = len(matrix)
    if size <= _BLOCK:
        return np.asarray(np.linalg.inv(matrix))
    half = size // 2
    result = np.zeros_like(matrix)
    result[:half, :half] = _inverse_of_lower(matrix[:half, :half])
    result[half:, half:] = _inverse_of_lower(matrix[half:, half:])
    result[half:, :half] = -result[half:, half:] @ (matrix[half:, :half] @ result[:half, :half])
    return result
