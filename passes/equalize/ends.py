"""Ends of channels: constants that make the channels of a tensor or read them, and can take a factor for each."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs


@dataclass(frozen=True, eq=False)
class End:
    """A constant with one slice a channel.

    Attributes:
        constant: The constant.
        shape: Its shape, with an axis split in two where channels lie in groups.
        spread: Shape of the channels' factors beside it: 1 on every axis that counts no channels.
        is_bias: Whether it is added to the channels, and so only has to follow; else it multiplies.
    """

    constant: gs.Constant
    shape: tuple[int, ...]
    spread: tuple[int, ...]
    is_bias: bool = False

    @property
    def channels(self) -> int:
        """How many there are."""
        return int(np.prod(self.spread))

    def extent(self) -> np.ndarray:
        """Return the largest magnitude of each channel's slice, float64 [channels]."""
        others = tuple(axis for axis, size in enumerate(self.spread) if size == 1)
        magnitude = np.abs(self.constant.values.reshape(self.shape).astype(np.float64))
        return np.asarray(magnitude.max(axis=others, initial=0.0)).ravel()

    def scaled(self, exponents: np.ndarray) -> np.ndarray:
        """Return the values times 2 to the power of each channel's exponent, int [channels]."""
        values = self.constant.values
        found = np.ldexp(values.reshape(self.shape), exponents.reshape(self.spread).astype(np.int32))
        return np.ascontiguousarray(found.reshape(values.shape), values.dtype)

    def survives(self, exponents: np.ndarray) -> np.ndarray:
        """Return for which channels no bit is lost to overflow or underflow, bool [channels]."""
        values = self.constant.values
        back = np.ldexp(self.scaled(exponents).reshape(self.shape), -exponents.reshape(self.spread).astype(np.int32))
        equal = back == values.reshape(self.shape)
        others = tuple(axis for axis, size in enumerate(self.spread) if size == 1)
        return np.asarray(equal.all(axis=others)).ravel()


def in_groups(constant: gs.Constant, groups: int) -> End:
    """Return a weight with channels on axis 1, anew for each group of axis 0, as an end.

    Args:
        constant: Weight of a convolution, its groups one after another on axis 0.
        groups: How many there are.
    """
    first, *rest = (int(size) for size in constant.shape)
    shape = (groups, first // groups, *rest)
    spread = tuple(size if place in (0, 2) else 1 for place, size in enumerate(shape))
    return End(constant, shape, spread)


def along(constant: gs.Constant, *axes: int, is_bias: bool = False) -> End:
    """Return a constant with its channels on some axes, which may count from the end."""
    shape = tuple(int(size) for size in constant.shape)
    counted = {axis % len(shape) for axis in axes}
    spread = tuple(size if place in counted else 1 for place, size in enumerate(shape))
    return End(constant, shape, spread, is_bias)


def beside(constant: gs.Constant, shape: tuple[int, ...], axes: tuple[int, ...], *, is_bias: bool) -> End | None:
    """Return a constant that broadcasts to a tensor as an end, or None if it has not one slice a channel.

    Args:
        constant: Constant that is added to the tensor, or multiplied with it.
        shape: Shape of the tensor; only the sizes of `axes` are looked at.
        axes: Axes of the tensor that count channels.
        is_bias: Whether it is added.
    """
    missing = len(shape) - len(constant.shape)
    if missing < 0:
        return None
    full = (1,) * missing + tuple(int(size) for size in constant.shape)
    if any(full[axis] != shape[axis] for axis in axes):
        return None
    spread = tuple(size if place in axes else 1 for place, size in enumerate(full))
    return End(constant, full, spread, is_bias)
