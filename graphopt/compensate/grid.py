"""Grids: the values that stored weights can have.

A grid has one scale per row and block of inputs, and levels that all share: value = scale * level. Uniform integer
quantization has the integers of a range as its levels, a palette (weight sharing, arXiv:1510.00149 section 3) has any.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np


class Grid(Protocol):
    """What the solvers need to know about a grid."""

    def project(self, values: np.ndarray, column: int) -> np.ndarray:
        """Return the nearest grid value of each row's value, [rows], for one input column."""
        ...


@dataclass(frozen=True)
class UniformGrid:
    """Integers `low` to `high` times a scale, with an optional zero point.

    Attributes:
        scale: Positive, [rows, blocks]; a block is `block` neighbouring inputs (all of them for one block).
        low: Smallest integer.
        high: Largest integer.
        block: Inputs per block.
        zero: Zero points in integers, [rows, blocks]; None for a symmetric grid.
    """

    scale: np.ndarray
    low: int
    high: int
    block: int
    zero: np.ndarray | None = None

    def codes(self, values: np.ndarray, column: int) -> np.ndarray:
        """Return the integers of the nearest grid values, [rows]."""
        part = column // self.block
        offset = 0 if self.zero is None else self.zero[..., part]
        return np.asarray(np.clip(np.rint(values / self.scale[..., part]) + offset, self.low, self.high))

    def project(self, values: np.ndarray, column: int) -> np.ndarray:
        """Return the nearest grid values, [rows]."""
        part = column // self.block
        offset = 0 if self.zero is None else self.zero[..., part]
        return np.asarray((self.codes(values, column) - offset) * self.scale[..., part])


@dataclass(frozen=True)
class PaletteGrid:
    """Shared levels times a scale.

    Attributes:
        scale: Positive, [rows, blocks].
        levels: Ascending, [count].
        block: Inputs per block.
    """

    scale: np.ndarray
    levels: np.ndarray
    block: int

    def codes(self, values: np.ndarray, column: int) -> np.ndarray:
        """Return the index of the nearest level, [rows]."""
        return nearest(self.levels, values / self.scale[..., column // self.block])

    def project(self, values: np.ndarray, column: int) -> np.ndarray:
        """Return the nearest grid values, [rows]."""
        projected: np.ndarray = self.levels[self.codes(values, column)] * self.scale[..., column // self.block]
        return projected


def nearest(levels: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Return the index of the nearest of ascending levels for each value, in the shape of `values`."""
    return np.asarray(np.searchsorted((levels[1:] + levels[:-1]) / 2, values))


def project_all(grid: Grid, weight: np.ndarray) -> np.ndarray:
    """Round to nearest: project every weight by itself, [rows, inputs]."""
    return np.stack([grid.project(weight[:, column], column) for column in range(weight.shape[1])], axis=1)
