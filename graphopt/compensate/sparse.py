"""Sparse weights that keep a layer's outputs: second-order masks, and the best values for what stays.

With ``H = X^T X / n`` the loss of replacing ``W`` by ``Q`` is ``tr((W - Q) H (W - Q)^T)``; see the package. All takes
matrices [rows, inputs] and damped moments [inputs, inputs]; what works row by row also takes leading axes.
"""

from __future__ import annotations

import numpy as np

from graphopt.compensate.grid import Grid
from graphopt.compensate.patterns import Pattern, Unstructured

_BLOCK = 64  # columns between updates of the rest
_SETTLED = 1e-4  # of the first residual: conjugate gradients end there


def saliency(weight: np.ndarray, inverse_diagonal: np.ndarray) -> np.ndarray:
    """Return the loss of zeroing each weight alone when all others make up for it, ``w^2 / [H^-1]_jj``.

    Source: Hassibi and Stork, "Second order derivatives for network pruning: Optimal Brain Surgeon", NeurIPS 1992.

    Args:
        weight: [..., rows, inputs].
        inverse_diagonal: Diagonal of the inverse moment, [..., inputs].
    """
    return np.asarray(np.square(weight) / inverse_diagonal[..., None, :])


def sparsegpt(
    weight: np.ndarray,
    factor: np.ndarray,
    pattern: Pattern,
    ratio: float,
    grid: Grid | None = None,
) -> np.ndarray:
    """Return sparse weights (arXiv:2301.00774, algorithm 1), on a grid if one is given.

    Goes through the inputs span by span: the pattern chooses the mask of a span by what its weights, corrected so far,
    would lose; each column is masked and put on the grid, and the columns still to come make up for the error.

    Args:
        weight: [rows, inputs].
        factor: `inverse_factor` of the damped moment, [inputs, inputs].
        pattern: Where zeros may stand.
        ratio: Fraction that goes, in each span.
        grid: Grid of the weights that stay; None for any value.
    """
    rest = np.array(np.asarray(weight, np.float64).T, order="C")  # [inputs, rows]: columns are contiguous
    diagonal = np.diag(factor)
    result = np.empty_like(rest)
    for start in range(0, len(rest), pattern.span):
        stop = min(start + pattern.span, len(rest))
        scores = np.square(rest[start:stop] / diagonal[start:stop, None])
        keep = np.ascontiguousarray(pattern.keep(scores.T, ratio).T)
        for first in range(start, stop, _BLOCK):
            last = min(first + _BLOCK, stop)
            errors = _sweep(rest, result, factor, keep[first - start : last - start], first, grid)
            rest[last:] -= factor[first:last, last:].T @ errors
    return np.ascontiguousarray(result.T)


def _sweep(
    rest: np.ndarray, result: np.ndarray, factor: np.ndarray, keep: np.ndarray, first: int, grid: Grid | None
) -> np.ndarray:
    """Fix some columns of `result`, in place, and return their errors, [columns, rows]."""
    errors = np.empty(keep.shape)
    last = first + len(keep)
    for column in range(first, last):
        kept = keep[column - first]
        values = rest[column] if grid is None else grid.project(rest[column], column)
        result[column] = np.where(kept, values, 0.0)
        error = (rest[column] - result[column]) / factor[column, column]
        rest[column + 1 : last] -= factor[column, column + 1 : last, None] * error
        errors[column - first] = error
    return errors


def obs_order(weight: np.ndarray, inverse: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Remove the weights of each row one by one, each time the one that loses least, and tell order and losses.

    Exact Optimal Brain Surgeon for every row on its own (Frantar and Alistarh, "Optimal Brain Compression",
    arXiv:2208.11580, algorithm 1): after each removal the other weights of the row take their best values. The time is
    that of ``rows * inputs^3`` and the memory that of ``rows * inputs^2``, so this is for small layers.

    Args:
        weight: [rows, inputs].
        inverse: Inverse of the damped moment, [inputs, inputs], or one for each row, [rows, inputs, inputs].

    Returns:
        When each weight goes, 0 first, int [rows, inputs], and what its row loses by that step, [rows, inputs].
    """
    rows, inputs = weight.shape
    rest = np.array(weight, np.float64)
    inverse = np.array(np.broadcast_to(inverse, (rows, inputs, inputs)), np.float64)
    steps = np.empty((rows, inputs), np.intp)
    losses = np.empty((rows, inputs))
    every, gone = np.arange(rows), np.zeros((rows, inputs), bool)
    for step in range(inputs):
        diagonal = np.where(gone, 1.0, np.einsum("rkk->rk", inverse))
        scores = np.where(gone, np.inf, np.square(rest) / diagonal)
        chosen = scores.argmin(axis=1)
        steps[every, chosen], losses[every, chosen] = step, scores[every, chosen]
        column = inverse[every, chosen]
        pivot = column[every, chosen][:, None]
        rest -= column * (rest[every, chosen][:, None] / pivot)
        inverse -= column[:, :, None] * (column / pivot)[:, None, :]
        gone[every, chosen] = True
        rest[gone] = 0.0
    return steps, losses


def obs_keep(weight: np.ndarray, inverse: np.ndarray, ratio: float) -> np.ndarray:
    """Return which weights stay when the rows share a ratio by what each step loses, bool [rows, inputs].

    A row's losses must not fall from step to step for the sum to be least, so each counts as the largest so far.
    """
    steps, losses = obs_order(weight, inverse)
    ordered = np.take_along_axis(losses, np.argsort(steps, axis=1), axis=1)
    rising = np.maximum.accumulate(ordered, axis=1)
    return Unstructured().keep(np.take_along_axis(rising, steps, axis=1), ratio)


def refit_support(
    target: np.ndarray, start: np.ndarray, keep: np.ndarray, moment: np.ndarray, *, steps: int = 24
) -> np.ndarray:
    """Return the weights on a support that come closest to the target's outputs: least squares for every row.

    Solves ``(H_SS) q_S = (H t)_S`` for all rows at once by conjugate gradients with the diagonal as preconditioner;
    each step lowers the loss.

    Args:
        target: What to approximate, [..., rows, inputs].
        start: First guess, [..., rows, inputs]; only its values on the support count.
        keep: The support, bool [..., rows, inputs].
        moment: Damped second moment of the inputs, [..., inputs, inputs]; all is computed in its type.
        steps: Most steps.
    """
    kind = moment.dtype
    found = np.where(keep, start, 0).astype(kind)
    scale = keep / np.einsum("...kk->...k", moment)[..., None, :].astype(kind)
    residual = np.where(keep, (target.astype(kind) - found) @ moment, 0)
    step = residual * scale
    energy = np.sum(residual * step, axis=-1, keepdims=True)
    least = energy * _SETTLED**2
    for _ in range(steps):
        image = np.where(keep, step @ moment, 0)
        curvature = np.sum(step * image, axis=-1, keepdims=True)
        length = np.divide(energy, curvature, out=np.zeros_like(energy), where=curvature > 0)
        found += length * step
        residual -= length * image
        scaled = residual * scale
        fresh = np.sum(residual * scaled, axis=-1, keepdims=True)
        if (fresh <= least).all():
            break
        step = scaled + step * np.divide(fresh, energy, out=np.zeros_like(energy), where=energy > 0)
        energy = fresh
    return found
