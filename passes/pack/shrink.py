"""Put a layer's weights on a palette of 2**bits levels and a scale a row, so that its outputs change least."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from graphopt.compensate import (
    PaletteGrid,
    coordinate_descent,
    damped,
    gptq,
    refit_levels,
    refit_scales,
)
from graphopt.compensate.grid import nearest

_ROUNDS = 2  # of refitting levels and scales; more change the last digits
_SHRINKS = np.linspace(0.4, 1.0, 13)  # of the largest magnitude, tried as scale
_FULL = 4096  # inputs; wider layers would need minutes for their inverse, and are rounded with the diagonal alone


@dataclass(frozen=True)
class Coded:
    """Weights as codes.

    Attributes:
        codes: Index of the level of each weight, uint8 [groups, rows, inputs].
        levels: Values, ascending, float32 [2**bits].
        scale: Factor of each row, float16 [groups, rows, 1].
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
    levels = np.linspace(-1, 1, 2**bits) if bits < 8 else np.arange(-127, 129) / 127
    moments = [_moment(moment, group, inputs) for group in range(groups)]
    scale = np.stack([start_scale(matrix[g], np.diag(moments[g]), levels) for g in range(groups)])
    values = np.stack([_rounded(matrix[g], moments[g], PaletteGrid(scale[g], levels, inputs)) for g in range(groups)])
    if moment is not None and inputs <= _FULL and groups == 1:
        for _ in range(_ROUNDS):
            codes = nearest(levels, values[0] / scale[0])
            levels = refit_levels(matrix[0], codes, scale[0], moments[0], levels)
            scale = refit_scales(matrix[0], levels[codes], moments[0], scale[0])[None]
            start = levels[codes] * scale[0]
            grid = PaletteGrid(scale[0], levels, inputs)
            values = coordinate_descent(matrix[0], start, moments[0], grid, sweeps=2)[None]
    codes = np.stack([nearest(levels, values[g] / scale[g]) for g in range(groups)])
    top = float(scale.max())  # half precision keeps 11 bits of a scale that is not tiny against the largest
    return Coded(codes.astype(np.uint8), (levels * top).astype(np.float32), (scale / top).astype(np.float16))


def start_scale(matrix: np.ndarray, diagonal: np.ndarray, levels: np.ndarray) -> np.ndarray:
    """Return for each row the scale whose rounding to nearest errs least, [rows, 1].

    Args:
        matrix: Weights, [rows, inputs].
        diagonal: Weight of each input's error, [inputs].
        levels: Ascending, [count].
    """
    largest: np.ndarray = np.abs(matrix).max(axis=1, keepdims=True)
    largest[largest == 0] = 1.0
    best, least = largest.copy(), np.full(largest.shape, np.inf)
    for part in _SHRINKS:
        scale = largest * part
        errors = (levels[nearest(levels, matrix / scale)] * scale - matrix) ** 2 @ diagonal[:, None]
        best = np.where(errors < least, scale, best)
        least = np.minimum(errors, least)
    return best


def _moment(moment: np.ndarray | None, group: int, inputs: int) -> np.ndarray:
    return np.eye(inputs) if moment is None else damped(moment[group])


def _rounded(matrix: np.ndarray, moment: np.ndarray, grid: PaletteGrid) -> np.ndarray:
    if matrix.shape[1] > _FULL or not np.any(moment - np.diag(np.diag(moment))):
        return np.asarray(grid.levels[nearest(grid.levels, matrix / grid.scale)] * grid.scale)
    return coordinate_descent(matrix, gptq(matrix, moment, grid), moment, grid, sweeps=1)
