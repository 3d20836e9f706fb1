"""Least squares for what is stored beside the codes: scales and levels."""

from __future__ import annotations

import numpy as np


def refit_scales(weight: np.ndarray, unscaled: np.ndarray, moment: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """Return the scale of each row that minimizes its output error, [rows, 1].

    Args:
        weight: What to approximate, [rows, inputs].
        unscaled: Chosen levels, [rows, inputs]: the approximation divided by its scale.
        moment: Second moment of the inputs, [inputs, inputs].
        scale: Present scales, [rows, 1]; kept for rows whose levels give no output.
    """
    projected = unscaled @ moment
    energy = np.einsum("rk,rk->r", projected, unscaled)
    match = np.einsum("rk,rk->r", projected, np.asarray(weight, np.float64))
    usable = (energy > 0) & (match > 0)
    fitted = scale[:, 0].astype(np.float64)
    np.divide(match, energy, out=fitted, where=usable)
    return np.asarray(fitted[:, None])


def refit_levels(
    weight: np.ndarray, codes: np.ndarray, scale: np.ndarray, moment: np.ndarray, levels: np.ndarray
) -> np.ndarray:
    """Return the shared levels that minimize the output error of all rows together, ascending, [count].

    Solves the normal equations of ``sum_r |(w_r - s_r levels[codes_r]) H^(1/2)|^2`` in the levels.

    Args:
        weight: What to approximate, [rows, inputs].
        codes: Level of each weight, [rows, inputs].
        scale: Scales, broadcastable to [rows, inputs].
        moment: Second moment of the inputs, [inputs, inputs].
        levels: Present levels, [count]; unused ones keep their value.
    """
    count = len(levels)
    chosen = [(codes == level) * np.broadcast_to(scale, codes.shape) for level in range(count)]
    normal, right = np.zeros((count, count)), np.zeros(count)
    for a in range(count):
        projected = chosen[a] @ moment
        right[a] = np.vdot(projected, weight)
        for b in range(a, count):
            normal[a, b] = normal[b, a] = np.vdot(projected, chosen[b])
    used = np.diag(normal) > 0
    fitted = np.array(levels, np.float64)
    if used.any():
        fitted[used] = np.linalg.lstsq(normal[np.ix_(used, used)], right[used], rcond=None)[0]
    return np.sort(fitted)
