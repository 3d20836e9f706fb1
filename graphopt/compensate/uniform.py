"""Put a layer's weights on integers of a few bits with a scale a row or block, so that its outputs change least."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from graphopt.compensate.descent import coordinate_descent
from graphopt.compensate.gptq import damped, gptq
from graphopt.compensate.grid import UniformGrid
from graphopt.compensate.refit import refit_block_scales

_ROUNDS = 3  # of refitting scales and codes in turn; more change the last digits
_SWEEPS = 4
_SHRINKS = np.linspace(0.4, 1.0, 25)  # of the range that holds every weight, tried as range
_FULL = 4096  # inputs; wider layers would need minutes for their inverse, and are rounded with the diagonal alone


@dataclass(frozen=True)
class Integers:
    """Weights as integers of a few bits.

    Attributes:
        codes: [groups, rows, inputs], int16: from -2**(bits - 1), or from 0 where there are zero points.
        scale: Positive, float32 [groups, rows, blocks].
        zero: Codes of zero, int16 [groups, rows, blocks]; None where that is 0 throughout.
        block: Inputs that share a scale; the last block of a row may have fewer.
    """

    codes: np.ndarray
    scale: np.ndarray
    zero: np.ndarray | None
    block: int

    def decoded(self) -> np.ndarray:
        """Return the weights as a runtime computes them, float32 [groups, rows, inputs]."""
        inputs = self.codes.shape[-1]
        whole = self.codes if self.zero is None else self.codes - _spread(self.zero, self.block, inputs)
        return np.asarray(whole * _spread(self.scale, self.block, inputs), np.float32)


def fit_integers(
    matrix: np.ndarray, moment: np.ndarray | None, bits: int, *, block: int = 0, symmetric: bool = True
) -> Integers:
    """Return the best integers that alternating minimization finds.

    Start from the range of each block that errs least under the diagonal of the moment; round with GPTQ
    (arXiv:2210.17323); then improve the codes by coordinate descent and refit the scales by least squares, in turn.
    No step makes the error of a row larger.

    Args:
        matrix: Weights, [groups, rows, inputs].
        moment: Second moment of the inputs, [groups, inputs, inputs]; None where nothing is known about them, which
            rounds each weight to nearest.
        bits: Bits of a code, 2 to 8.
        block: Inputs that share a scale; 0 for all of a row.
        symmetric: Whether zero is the code 0; else each block has a zero point, and codes count from 0.
    """
    groups, _, inputs = matrix.shape
    block = block or inputs
    if moment is None or inputs > _FULL:
        diagonal = np.ones((groups, inputs)) if moment is None else np.einsum("gkk->gk", damped(moment))
        grid = start_grid(matrix, diagonal, bits, block, symmetric=symmetric)
        return _integers(project(grid, matrix), grid)
    moment = damped(moment)
    grid = start_grid(matrix, np.einsum("gkk->gk", moment), bits, block, symmetric=symmetric)
    values = np.stack([gptq(matrix[g], moment[g], _of_group(grid, g)) for g in range(groups)])
    quick = moment.astype(np.float32)
    values = coordinate_descent(matrix, values, quick, grid, sweeps=_SWEEPS)
    for _ in range(_ROUNDS):
        unscaled = values / _spread(grid.scale, block, inputs)
        scale = refit_block_scales(matrix, unscaled, quick, grid.scale, block)
        grid = UniformGrid(scale, grid.low, grid.high, block, grid.zero)
        values = unscaled * _spread(scale, block, inputs)
        values = coordinate_descent(matrix, values, quick, grid, sweeps=_SWEEPS)
    return _integers(values, grid)


def start_grid(matrix: np.ndarray, diagonal: np.ndarray, bits: int, block: int, *, symmetric: bool) -> UniformGrid:
    """Return the grid on which rounding to nearest errs least.

    Args:
        matrix: Weights, [groups, rows, inputs].
        diagonal: Weight of each input's error, [groups, inputs].
        bits: Bits of a code.
        block: Inputs that share a scale.
        symmetric: As for `fit_integers`.
    """
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if symmetric else (0, 2**bits - 1)
    parts, weights = _blocks(matrix.astype(np.float32), block), _blocks(diagonal[:, None, :].astype(np.float32), block)
    least, most = np.minimum(parts.min(-1), 0), np.maximum(parts.max(-1), 0)
    best = np.ones(parts.shape[:-1], np.float32)
    zero = None if symmetric else np.zeros_like(best)
    error = np.full(best.shape, np.inf)
    for shrink in _SHRINKS.astype(np.float32):
        span = np.maximum(-least, most) / high if symmetric else (most - least) / high
        scale = np.where(span > np.finfo(np.float32).tiny, span * shrink, 1)
        offset = None if symmetric else np.clip(np.rint(-least * shrink / scale), low, high)
        shift = 0 if offset is None else offset[..., None]
        codes = np.clip(np.rint(parts / scale[..., None]) + shift, low, high)
        found = (((codes - shift) * scale[..., None] - parts) ** 2 * weights).sum(-1)
        better = found < error
        best, error = np.where(better, scale, best), np.where(better, found, error)
        zero = None if offset is None or zero is None else np.where(better, offset, zero)
    return UniformGrid(best.astype(np.float64), low, high, block, zero)


def project(grid: UniformGrid, matrix: np.ndarray) -> np.ndarray:
    """Return the nearest point of a grid, [groups, rows, inputs]."""
    inputs = matrix.shape[-1]
    scale = _spread(grid.scale, grid.block, inputs)
    offset = 0 if grid.zero is None else _spread(grid.zero, grid.block, inputs)
    return np.asarray((np.clip(np.rint(matrix / scale) + offset, grid.low, grid.high) - offset) * scale)


def _integers(values: np.ndarray, grid: UniformGrid) -> Integers:
    inputs = values.shape[-1]
    scale = np.asarray(grid.scale, np.float32)
    offset = 0 if grid.zero is None else _spread(grid.zero, grid.block, inputs)
    codes = np.clip(np.rint(values / _spread(grid.scale, grid.block, inputs)) + offset, grid.low, grid.high)
    zero = None if grid.zero is None else grid.zero.astype(np.int16)
    return Integers(codes.astype(np.int16), scale, zero, grid.block)


def _of_group(grid: UniformGrid, group: int) -> UniformGrid:
    zero = None if grid.zero is None else grid.zero[group]
    return UniformGrid(grid.scale[group], grid.low, grid.high, grid.block, zero)


def _spread(per_block: np.ndarray, block: int, inputs: int) -> np.ndarray:
    """Return what belongs to blocks for each input, [..., rows, inputs]."""
    if per_block.shape[-1] == 1:
        return per_block
    return np.repeat(per_block, block, axis=-1)[..., :inputs]


def _blocks(values: np.ndarray, block: int) -> np.ndarray:
    """Return [..., inputs] as [..., blocks, block], the last block filled up with zeros."""
    inputs = values.shape[-1]
    count = -(-inputs // block)
    padded = np.zeros((*values.shape[:-1], count * block), values.dtype)
    padded[..., :inputs] = values
    return padded.reshape(*values.shape[:-1], count, block)
