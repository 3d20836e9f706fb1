"""Weights as codes: of levels that a tensor shares, or of the windows of a trellis."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Self

import numpy as np

from graphopt.compensate.trellis import Trellis

LEAST_SCALE, LARGEST_SCALE = 2.0**-14, 2.0**15  # stored in half precision, which holds smaller ones badly

WHOLE = -128.0, 127.0  # least and largest value of int8


@dataclass(frozen=True)
class Coded:
    """Weights as codes of shared levels.

    Attributes:
        codes: Index of the level of each weight, uint8 [groups, rows, inputs].
        levels: Values, ascending, float32 [2**bits]; of 8 bits the whole numbers from -128 on.
        scale: Factor of each row, float16 or float32 [groups, rows, 1].
    """

    codes: np.ndarray
    levels: np.ndarray
    scale: np.ndarray

    @property
    def bits(self) -> int:
        """Bits of a code."""
        return (len(self.levels) - 1).bit_length()

    @property
    def own_levels(self) -> bool:
        """Whether the levels are this tensor's alone; of 8 bits they are whole numbers."""
        return self.bits < 8

    def unscaled(self) -> np.ndarray:
        """Return the level of each weight, float32 [groups, rows, inputs]."""
        return np.asarray(self.levels[self.codes])

    def decoded(self) -> np.ndarray:
        """Return the weights as a decoder computes them, float32 [groups, rows, inputs]."""
        values: np.ndarray = self.unscaled() * self.scale.astype(np.float32)
        return values

    def times(self, unit: float) -> Self:
        """Return the weights times a power of two, which the levels take up if they are the tensor's own.

        Else the scales do: half precision stays where it holds the product exactly.
        """
        if self.own_levels:
            return replace(self, levels=(self.levels.astype(np.float64) * unit).astype(np.float32))
        scale = (self.scale.astype(np.float64) * unit).astype(np.float32)
        with np.errstate(over="ignore"):
            narrow = scale.astype(np.float16)
        return replace(self, scale=narrow if np.array_equal(narrow, scale) else scale)


@dataclass(frozen=True)
class Chained(Coded):
    """Weights as codes of a trellis, whose levels are those of its windows and shared by all weights of these bits.

    Attributes:
        trellis: Tells the window of each code.
    """

    trellis: Trellis

    @property
    def bits(self) -> int:
        """Bits of a code."""
        return self.trellis.bits

    @property
    def own_levels(self) -> bool:
        """No: others use them too."""
        return False

    def unscaled(self) -> np.ndarray:
        """Return the level of each weight, float32 [groups, rows, inputs]."""
        return self.trellis.decoded(self.codes)


@dataclass(frozen=True)
class ChainedWhole(Chained):
    """Whole numbers times a given factor a row: what codes of a trellis give, rounded.

    Attributes:
        factor: Of each row, float32 [groups, rows, 1]; `scale` is that of the levels in whole numbers.
    """

    factor: np.ndarray

    def whole(self) -> np.ndarray:
        """Return the whole numbers as a decoder computes them, float32 [groups, rows, inputs]."""
        return np.asarray(np.rint(np.clip(super().decoded(), *WHOLE)))

    def decoded(self) -> np.ndarray:
        """Return the weights, float32 [groups, rows, inputs]."""
        return np.asarray(self.whole() * self.factor)


def stored_scale(scale: np.ndarray) -> np.ndarray:
    """Return scales as a file holds them: float16 where that holds all of them well, else float32.

    Args:
        scale: Zero or positive, any shape.
    """
    used = scale[scale > 0]
    narrow = not used.size or (float(used.min()) >= LEAST_SCALE and float(used.max()) <= LARGEST_SCALE)
    return scale.astype(np.float16 if narrow else np.float32)
