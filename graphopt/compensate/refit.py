"""Least squares for what is stored beside the codes: scales and levels."""

from __future__ import annotations

import numpy as np

_EVIDENCE = 2**12  # weights a level that levels are fitted to; more change the last digits
_RIDGE = 1e-6  # of a row's largest energy; keeps the equations of blocks that depend on each other solvable


def refit_scales(weight: np.ndarray, unscaled: np.ndarray, moment: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """Return the scale of each row that minimizes its output error, [..., rows, 1].

    Args:
        weight: What to approximate, [..., rows, inputs].
        unscaled: Chosen levels, [..., rows, inputs]: the approximation divided by its scale.
        moment: Second moment of the inputs, [..., inputs, inputs]; all is computed in its type.
        scale: Present scales, [..., rows, 1]; kept for rows whose levels give no output.
    """
    unscaled, weight = np.asarray(unscaled, moment.dtype), np.asarray(weight, moment.dtype)
    projected = unscaled @ moment
    energy = np.einsum("...rk,...rk->...r", projected, unscaled)
    match = np.einsum("...rk,...rk->...r", projected, weight)
    usable = (energy > 0) & (match > 0)
    fitted = scale[..., 0].astype(np.float64)
    np.divide(match, energy, out=fitted, where=usable)
    return np.asarray(fitted[..., None])


def refit_block_scales(
    weight: np.ndarray, unscaled: np.ndarray, moment: np.ndarray, scale: np.ndarray, block: int
) -> np.ndarray:
    """Return the scales of each row's blocks that minimize its output error together, [..., rows, blocks].

    Solves for each row the normal equations of ``|(w - sum_b s_b u_b) H^(1/2)|^2``, ``u_b`` being the levels of block
    b with zeros elsewhere. A row whose solution is not positive, or no better, keeps its scales.

    Args:
        weight: What to approximate, [..., rows, inputs].
        unscaled: Chosen levels, [..., rows, inputs].
        moment: Second moment of the inputs, [..., inputs, inputs]; sums are in its type.
        scale: Present scales, [..., rows, blocks].
        block: Inputs per block.
    """
    kind, blocks = moment.dtype, scale.shape[-1]
    unscaled, weight = np.asarray(unscaled, kind), np.asarray(weight, kind)
    starts = np.arange(blocks) * block
    normal = np.empty((*scale.shape, blocks))
    right = np.empty(scale.shape)
    for index, start in enumerate(starts):
        part = slice(start, start + block)
        projected = unscaled[..., part] @ moment[..., part, :]
        right[..., index] = np.einsum("...rk,...rk->...r", projected, weight)
        normal[..., index, :] = np.add.reduceat(projected * unscaled, starts, axis=-1)
    diagonal = np.einsum("...bb->...b", normal)
    unused = diagonal <= 0
    right = np.where(unused, scale, right)  # with a one on the diagonal they keep their scale
    diagonal += np.where(unused, 1.0, _RIDGE * diagonal.max(axis=-1, keepdims=True))  # a view into `normal`
    fitted = np.linalg.solve(normal, right[..., None])[..., 0]
    gain = _quadratic(normal, right, scale) - _quadratic(normal, right, fitted)
    usable = (fitted > 0).all(axis=-1) & (gain > 0)
    return np.where(usable[..., None], fitted, scale)


def _quadratic(normal: np.ndarray, right: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """Return the error of each row up to what does not depend on the scales, [..., rows]."""
    return np.asarray(np.einsum("...b,...bc,...c->...", scale, normal, scale) - 2 * (scale * right).sum(axis=-1))


def refit_levels(
    weight: np.ndarray, codes: np.ndarray, scale: np.ndarray, moment: np.ndarray, levels: np.ndarray
) -> np.ndarray:
    """Return the shared levels that minimize the output error of all rows together, ascending, [count].

    Solves the normal equations of ``sum_r |(w_r - s_r levels[codes_r]) H^(1/2)|^2`` in the levels. Of a large weight,
    evenly spaced rows are taken: there are few unknowns.

    Args:
        weight: What to approximate, [..., rows, inputs].
        codes: Level of each weight, [..., rows, inputs].
        scale: Scales, broadcastable to [..., rows, inputs].
        moment: Second moment of the inputs, [..., inputs, inputs]; all is computed in its type.
        levels: Present levels, [count]; unused ones keep their value.
    """
    count, inputs = len(levels), codes.shape[-1]
    step = max(1, codes.size // (_EVIDENCE * count))
    scale = np.broadcast_to(scale, (*codes.shape[:-1], 1))
    weight, codes, scale = (part[..., ::step, :] for part in (weight, codes, scale))
    groups, rows = int(np.prod(codes.shape[:-2])), codes.shape[-2]
    codes, weight = codes.reshape(groups, rows, inputs), np.asarray(weight, moment.dtype).reshape(groups, rows, inputs)
    scale, moment = scale.astype(moment.dtype).reshape(groups, rows, 1), moment.reshape(groups, inputs, inputs)
    normal, right = np.zeros((count, count)), np.zeros(count)
    for level in range(count):
        projected = ((codes == level) * scale) @ moment
        right[level] = np.vdot(projected, weight)
        normal[level] = np.bincount(codes.ravel(), (projected * scale).ravel(), count)
    used = np.diag(normal) > 0
    fitted = np.array(levels, np.float64)
    if used.any():
        fitted[used] = np.linalg.lstsq(normal[np.ix_(used, used)], right[used], rcond=None)[0]
    return np.sort(fitted)
