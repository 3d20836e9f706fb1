"""Put a weight on a palette of 2**bits levels and a scale a row, so that what it computes changes least."""

from __future__ import annotations

import numpy as np

from graphopt.compensate import PaletteGrid, coordinate_descent, damped, gptq, refit_levels, refit_scales
from graphopt.compensate.grid import nearest
from graphopt.compensate.magnitude import magnitude
from graphopt.compensate.palette import masked
from graphopt.passes.pack.coded import LARGEST_SCALE, Coded, stored_scale

_ROUNDS = 2  # of refitting levels and scales; more change the last digits
_SHRINKS = np.linspace(0.4, 1.0, 13)  # of the largest magnitude, tried as scale
FULL = 4096  # inputs; wider layers would need minutes for their inverse, and are rounded with the diagonal alone
_PART = 2**20  # weights that are rounded at a time, and that a palette is fitted to where inputs are unknown
_LLOYD_ROUNDS = 8  # more change the last digits


def shrink(matrix: np.ndarray, moment: np.ndarray | None, bits: int, *, sparse: bool = False) -> Coded:
    """Return the best codes that alternating minimization finds.

    Start from a uniform grid whose scale minimizes the error weighted by the diagonal of the moment; round with GPTQ;
    then refit levels and scales by least squares and improve the codes by coordinate descent, in turn. The last codes
    are chosen for the scales as they are stored. All of that is done in units in which no square overflows.

    Args:
        matrix: Finite weights, [groups, rows, inputs].
        moment: Second moment of the inputs, [groups, inputs, inputs]; None where nothing is known about them.
        bits: Bits of a code, 1 to 8; 2 to 8 of sparse weights.
        sparse: Whether zeros stay zero; one of the levels is zero then.
    """
    unit = magnitude(matrix)
    known = None if moment is None else damped(moment)
    return _shrunk(matrix / unit, known if known is None else known / magnitude(known), bits, sparse=sparse).times(unit)


def _shrunk(matrix: np.ndarray, moment: np.ndarray | None, bits: int, *, sparse: bool) -> Coded:
    """Return the codes of weights of magnitude 1 at most, as `shrink` does; the moment is a damped one."""
    groups, _, inputs = matrix.shape
    keep = matrix != 0 if sparse else None
    levels = np.linspace(-1, 1, 2**bits - sparse) if bits < 8 else np.arange(-128, 128) / 127
    if moment is None or inputs > FULL:
        diagonal = np.ones((groups, inputs)) if moment is None else _diagonal(moment)
        return _rounded(matrix, diagonal, levels, sparse=sparse)
    scale = start_scale(matrix, _diagonal(moment), levels)
    quick = moment.astype(np.float32)
    grid = masked(PaletteGrid(scale, levels, inputs), keep)
    if groups == 1:
        first = masked(PaletteGrid(scale[0], levels, inputs), None if keep is None else keep[0])
        values = gptq(matrix[0], moment[0], first)[None]
    else:
        values = levels[nearest(levels, matrix / scale)] * scale
    values = coordinate_descent(matrix, values, quick, grid, sweeps=1)
    for _ in range(_ROUNDS):
        codes = nearest(levels, values / scale)
        if bits < 8:
            levels = _with_zero(refit_levels(matrix, codes, scale, quick, levels), sparse=sparse)
        scale = refit_scales(matrix, levels[codes], quick, scale)
        levels, scale, stored = _as_stored(levels, scale)
        grid = masked(PaletteGrid(scale, levels, inputs), keep)
        values = coordinate_descent(matrix, levels[codes] * scale, quick, grid, sweeps=1)
    return Coded(nearest(levels, values / scale).astype(np.uint8), levels, stored)


def start_scale(matrix: np.ndarray, diagonal: np.ndarray, levels: np.ndarray) -> np.ndarray:
    """Return for each row the scale whose rounding to nearest errs least, [groups, rows, 1].

    Args:
        matrix: Weights, [groups, rows, inputs].
        diagonal: Weight of each input's error, [groups, inputs].
        levels: Ascending and evenly spaced, [count].
    """
    matrix, diagonal = matrix.astype(np.float32), diagonal.astype(np.float32)
    low, step, most = np.float32(levels[0]), np.float32(levels[1] - levels[0]), np.float32(len(levels) - 1)
    largest: np.ndarray = np.abs(matrix).max(axis=-1, keepdims=True)
    largest[largest == 0] = 1.0
    unscaled = matrix / largest
    best, least = np.ones_like(largest), np.full(largest.shape, np.inf, np.float32)
    for part in _SHRINKS.astype(np.float32):
        codes = np.clip(np.rint((unscaled / part - low) / step), 0, most)
        errors = ((codes * step + low) * part - unscaled) ** 2 @ diagonal[..., None]
        best = np.where(errors < least, part, best)
        least = np.minimum(errors, least)
    found: np.ndarray = best.astype(np.float64) * largest
    return found


def _with_zero(levels: np.ndarray, *, sparse: bool) -> np.ndarray:
    """Return the levels, of sparse weights with the one that is nearest to zero moved there."""
    if not sparse:
        return levels
    levels = levels.copy()
    levels[np.abs(levels).argmin()] = 0
    return levels


def _rounded(matrix: np.ndarray, diagonal: np.ndarray, levels: np.ndarray, *, sparse: bool) -> Coded:
    """Round each weight by itself, to levels and scales that suit them; rows are taken in parts, to spare memory."""
    rows, count = matrix.shape[1], len(levels)
    step = max(1, _PART // max(matrix[:, :1].size, 1))
    parts = [slice(start, start + step) for start in range(0, rows, step)]
    scale = np.concatenate([start_scale(matrix[:, part], diagonal, levels) for part in parts], axis=1)
    if count < 256:
        spread = slice(None, None, max(1, matrix.size // _PART))
        levels = _with_zero(_lloyd(matrix[:, spread], diagonal, levels, scale[:, spread]), sparse=sparse)
        for part in parts:
            scale[:, part] = _fitted_scale(matrix[:, part], diagonal, levels, scale[:, part])
    levels, scale, stored = _as_stored(levels, scale)
    codes = np.concatenate([nearest(levels, matrix[:, part] / scale[:, part]).astype(np.uint8) for part in parts], 1)
    return Coded(codes, levels, stored)


def _lloyd(matrix: np.ndarray, diagonal: np.ndarray, levels: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """Return levels, improved in turn with codes and scales (Lloyd 1982) under errors weighted by the diagonal."""
    weight = np.broadcast_to(diagonal[:, None, :], matrix.shape)
    for _ in range(_LLOYD_ROUNDS):
        codes = nearest(levels, matrix / scale)
        total = np.bincount(codes.ravel(), (weight * scale**2).ravel(), len(levels))
        moved = np.bincount(codes.ravel(), (weight * scale * matrix).ravel(), len(levels))
        levels = np.sort(np.divide(moved, total, out=np.array(levels), where=total > 0))
        scale = _fitted_scale(matrix, diagonal, levels, scale)
    return levels


def _fitted_scale(matrix: np.ndarray, diagonal: np.ndarray, levels: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """Return the scales that suit the codes best, [groups, rows, 1]; present ones where no code is of use."""
    values = levels[nearest(levels, matrix / scale)]
    energy, match = values**2 @ diagonal[..., None], values * matrix @ diagonal[..., None]
    return np.asarray(np.divide(match, energy, out=scale.copy(), where=(energy > 0) & (match > 0)))


def _diagonal(moment: np.ndarray) -> np.ndarray:
    return np.asarray(np.einsum("gkk->gk", moment))


def _as_stored(levels: np.ndarray, scale: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return levels and scales as a decoder computes them, and the scales as the file holds them.

    The unit of the scales moves into the levels, so that half precision holds all but those of rows that are next to
    nothing beside the largest. Of 8 bits it is the other way round: whole numbers need no levels in the file.

    Returns:
        Levels (float32), scales (float64, the stored ones' values), stored scales (float16 or float32).
    """
    if len(levels) == 256:
        whole, factor = np.arange(-128, 128, dtype=np.float32), scale * levels[-1] / 127
        stored = stored_scale(factor) if factor.max() <= 1 else factor.astype(np.float32)
    else:
        unit = float(scale.max()) / LARGEST_SCALE
        whole, factor = (levels * unit).astype(np.float32), scale / unit
        stored = stored_scale(factor)
    return whole, stored.astype(np.float64), stored
