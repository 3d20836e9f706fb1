"""Put a layer's weights on a palette of 2**bits levels and a scale a row, so that its outputs change least."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from graphopt.compensate import PaletteGrid, coordinate_descent, damped, gptq, refit_levels, refit_scales
from graphopt.compensate.grid import nearest

_ROUNDS = 2  # of refitting levels and scales; more change the last digits
_SHRINKS = np.linspace(0.4, 1.0, 13)  # of the largest magnitude, tried as scale
_FULL = 4096  # inputs; wider layers would need minutes for their inverse, and are rounded with the diagonal alone


@dataclass(frozen=True)
class Coded:
    """Weights as codes.

    Attributes:
        codes: Index of the level of each weight, uint8 [groups, rows, inputs].
        levels: Values, ascending, float32 [2**bits]; of 8 bits the whole numbers from -128 on.
        scale: Factor of each row, float16 (float32 of 8 bits) [groups, rows, 1].
    """

    codes: np.ndarray
    levels: np.ndarray
    scale: np.ndarray

    def decoded(self) -> np.ndarray:
        """Return the weights as a decoder computes them, float32 [groups, rows, inputs]."""
        values: np.ndarray = self.levels[self.codes] * self.scale.astype(np.float32)
        return values


def shrink(matrix: np.ndarray, moment: np.ndarray | None, bits: int) -> Coded:
    """Return the best codes that alternating minimization finds.

    Start from a uniform grid whose scale minimizes the error weighted by the diagonal of the moment; round with GPTQ;
    then refit levels and scales by least squares and improve the codes by coordinate descent, in turn.

    Args:
        matrix: Weights, [groups, rows, inputs].
        moment: Second moment of the inputs, [groups, inputs, inputs]; None where nothing is known about them.
        bits: Bits of a code, 1 to 8.
    """
    groups, _, inputs = matrix.shape
    levels = np.linspace(-1, 1, 2**bits) if bits < 8 else np.arange(-128, 128) / 127
    if moment is None or inputs > _FULL:
        diagonal = np.ones((groups, inputs)) if moment is None else np.einsum("gkk->gk", damped(moment))
        scale = start_scale(matrix, diagonal, levels)
        return _coded(nearest(levels, matrix / scale), levels, scale)
    moment = damped(moment)
    scale = start_scale(matrix, np.einsum("gkk->gk", moment), levels)
    if groups == 1:
        values = gptq(matrix[0], moment[0], PaletteGrid(scale[0], levels, inputs))[None]
    else:
        values = levels[nearest(levels, matrix / scale)] * scale
    quick = moment.astype(np.float32)
    values = coordinate_descent(matrix, values, quick, PaletteGrid(scale, levels, inputs), sweeps=1)
    for _ in range(_ROUNDS):
        codes = nearest(levels, values / scale)
        levels = refit_levels(matrix, codes, scale, quick, levels) if bits < 8 else levels
        scale = refit_scales(matrix, levels[codes], quick, scale)
        grid = PaletteGrid(scale, levels, inputs)
        values = coordinate_descent(matrix, levels[codes] * scale, quick, grid, sweeps=1)
    return _coded(nearest(levels, values / scale), levels, scale)


def start_scale(matrix: np.ndarray, diagonal: np.ndarray, levels: np.ndarray) -> np.ndarray:
    """Return for each row the scale whose rounding to nearest errs least, [groups, rows, 1].

    Args:
        matrix: Weights, [groups, rows, inputs].
        diagonal: Weight of each input's error, [groups, inputs].
        levels: Ascending, [count].
    """
    matrix = matrix.astype(np.float32)
    largest: np.ndarray = np.abs(matrix).max(axis=-1, keepdims=True)
    largest[largest == 0] = 1.0
    best, least = largest.copy(), np.full(largest.shape, np.inf)
    for part in _SHRINKS.astype(np.float32):
        scale = largest * part
        errors = (levels[nearest(levels, matrix / scale)] * scale - matrix) ** 2 @ diagonal[..., None]
        best = np.where(errors < least, scale, best)
        least = np.minimum(errors, least)
    return best.astype(np.float64)


def _coded(codes: np.ndarray, levels: np.ndarray, scale: np.ndarray) -> Coded:
    """Return codes with the largest scale moved into the levels: half precision holds the rest well enough.

    Of 8 bits it is the other way round: whole numbers need no levels in the file.
    """
    if len(levels) == 256:
        whole = np.arange(-128, 128, dtype=np.float32)
        return Coded(codes.astype(np.uint8), whole, (scale / 127).astype(np.float32))
    top = float(scale.max())
    return Coded(codes.astype(np.uint8), (levels * top).astype(np.float32), (scale / top).astype(np.float16))
