"""What a node does with the channels of tensors, as far as a factor for each channel is concerned."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import onnx_graphsurgeon as gs

from graphopt.passes.equalize.ends import End

Axes = tuple[int, ...]
"""Axes of a tensor that together count its channels, in row-major order."""


@dataclass
class Roles:
    """What a node does with channels; variables that are not mentioned must keep their channels as they are.

    Attributes:
        makes: Output -> its channels' axes and the constants that make them.
        reads: Input -> the axes that are read as channels, and the constant that reads them.
        hands_on: Inputs whose channels the output has, scaled as they are, and the axes they have there.
        ceiling: Value that no channel may reach, scaled or not; infinite for most nodes.
    """

    makes: list[tuple[gs.Tensor, Axes, tuple[End, ...]]] = field(default_factory=list)
    reads: list[tuple[gs.Tensor, Axes, End]] = field(default_factory=list)
    hands_on: list[tuple[gs.Tensor, Axes]] = field(default_factory=list)
    ceiling: float = np.inf


Known = Callable[[gs.Tensor], Axes]
"""Axes of a tensor whose channels some constant makes and nothing keeps from being scaled; else empty."""


def rank_of(tensor: gs.Tensor) -> int | None:
    return None if tensor.shape is None else len(tensor.shape)


def sizes_of(shape: list[int | str | None]) -> tuple[int, ...]:
    return tuple(size if isinstance(size, int) else -1 for size in shape)


def is_static(shape: list[int | str | None], axes: Axes) -> bool:
    return bool(shape) and all(isinstance(shape[axis], int) for axis in axes)


def spans(tensor: gs.Tensor, axes: Axes, shape: list[int | str | None]) -> bool:
    """Whether a tensor has the rank of a shape, and its channels' sizes."""
    mine = tensor.shape
    return mine is not None and len(mine) == len(shape) and all(mine[axis] == shape[axis] for axis in axes)


def counted(tensor: gs.Tensor, axes: Axes) -> Axes:
    """Return those of some axes that have more than one index."""
    return tuple(axis for axis in axes if tensor.shape[axis] != 1)
