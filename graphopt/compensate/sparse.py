"""Sparse weights that keep a layer's outputs: second-order masks, and the best values for what stays.

With ``H = X^T X / n`` the loss of replacing ``W`` by ``Q`` is ``tr((W - Q) H (W - Q)^T)``; see the package. All takes
matrices [rows, inputs] and damped moments [inputs, inputs]; what works row by row also takes leading axes.
"""

from __future__ import annotations

import numpy as np

from graphopt.compensate.grid import Grid
from graphopt.compensate.patterns import Pattern

_BLOCK = 64  # columns between updates of the rest
_SETTLED = 1e-4  # of the first residual: conjugate gradients end there


def saliency(weight: np.ndarray, inverse_diagonal: np.ndarray) -> np.ndarray:
    """Score weights by ``w^2 / [H^-1]_jj``: what is lost by zeroing each alone when all others make up for it.

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
    would lose; each column is masked and put on the grid, and the columns still to come make up for the error. How much
    of each span goes is what the saliencies of all weights say, where the paper takes the same part of each.

    Args:
        weight: [rows, inputs].
        factor: `inverse_factor` of the damped moment, [inputs, inputs].
        pattern: Where zeros may stand.
        ratio: Fraction that goes.
        grid: Grid of the weights that stay; None for any value.
    """
    rest = np.array(np.asarray(weight, np.float64).T, order="C")  # [inputs, rows]: columns are contiguous
    diagonal = np.diag(factor)
    first_look = pattern.keep(saliency(weight, np.square(factor).sum(axis=0)), ratio)
    result = np.empty_like(rest)
    for start in range(0, len(rest), pattern.span):
        stop = min(start + pattern.span, len(rest))
        scores = np.square(rest[start:stop] / diagonal[start:stop, None])
        part = 1 - float(first_look[:, start:stop].mean())
        keep = np.ascontiguousarray(pattern.keep(scores.T, part).T)
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


def obs_losses(weight: np.ndarray, inverse: np.ndarray, among: int = 0, most: int = 0) -> np.ndarray:
    """Remove the weights of each row one by one, each time the one that loses least, and tell what each lost.

    Exact Optimal Brain Surgeon for every row on its own (Frantar and Alistarh, "Optimal Brain Compression",
    arXiv:2208.11580, algorithm 1): after each removal the other weights of the row take their best values. The time is
    that of ``rows * inputs^3`` and the memory that of ``rows * inputs^2``, so this is for small layers.

    A removal counts as at least what the row's removals before it lost, so that the smallest of all rows' losses are
    always the first removals of each.

    Args:
        weight: [rows, inputs].
        inverse: Inverse of each row's damped moment, [rows, inputs, inputs].
        among: Size of the groups of neighbouring inputs that a pattern looks at; 0 if it has none.
        most: How many of each group may go.

    Returns:
        Loss by the removal of each weight, [rows, inputs]; infinite for those that a pattern keeps.
    """
    rest, inverse = np.array(weight, np.float64), np.array(inverse, np.float64)
    losses, gone = np.full(rest.shape, np.inf), np.zeros(rest.shape, bool)
    every, worst = np.arange(len(rest)), np.zeros(len(rest))
    for _ in range(rest.shape[1] // among * most if among else rest.shape[1]):
        diagonal = np.where(gone, 1.0, np.einsum("rkk->rk", inverse))
        barred = gone | _is_full(gone, among, most) if among else gone
        scores = np.where(barred, np.inf, np.square(rest) / diagonal)
        chosen = scores.argmin(axis=1)
        worst = np.maximum(worst, scores[every, chosen])
        losses[every, chosen] = worst
        column = inverse[every, chosen]
        pivot = column[every, chosen][:, None]
        rest -= column * (rest[every, chosen][:, None] / pivot)
        inverse -= column[:, :, None] * (column / pivot)[:, None, :]
        gone[every, chosen] = True
        rest[gone] = 0.0
    return losses


def _is_full(gone: np.ndarray, among: int, most: int) -> np.ndarray:
    """Return which weights are in a group that has given all it may, [rows, inputs]."""
    counts = gone.reshape(len(gone), -1, among).sum(axis=2)
    return np.repeat(counts >= most, among, axis=1)


def refit_support(
    target: np.ndarray,
    start: np.ndarray,
    keep: np.ndarray,
    moment: np.ndarray,
    *,
    lack: np.ndarray | float = 0.0,
    steps: int = 24,
) -> np.ndarray:
    """Return the weights on a support that come closest to the target's outputs: least squares for every row.

    Solves ``(H_SS) q_S = (H t + l)_S`` for all rows at once by conjugate gradients with the diagonal as preconditioner;
    each step lowers the loss.

    Args:
        target: What to approximate, [..., rows, inputs].
        start: First guess, [..., rows, inputs]; only its values on the support count.
        keep: The support, bool [..., rows, inputs].
        moment: Damped second moment of the inputs, [..., inputs, inputs]; all is computed in its type.
        lack: Cross moment of what the target's outputs lack with the inputs, [..., rows, inputs].
        steps: Most steps.
    """
    kind = moment.dtype
    found = np.where(keep, start, 0).astype(kind)
    scale = keep / np.einsum("...kk->...k", moment)[..., None, :].astype(kind)
    residual = np.where(keep, (target.astype(kind) - found) @ moment + np.asarray(lack, kind), 0)
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
