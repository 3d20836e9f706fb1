"""The equalize pass."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from graphopt.base import Pass, PassReport
from graphopt.context import Context
from graphopt.model import Model
from graphopt.passes.equalize.extents import extents
from graphopt.passes.equalize.scales import exponents
from graphopt.passes.equalize.spaces import Space, find_spaces

_ROUNDS = 20  # most; a weight between two spaces lets them depend on each other


@dataclass(frozen=True)
class Equalize(Pass):
    """Brings the channels of a tensor to like ranges, by powers of two that weights before and behind it take up.

    ``y = B f(A x)`` becomes ``(B S) f(S^-1 A x)`` with a diagonal S of powers of two, wherever f commutes with it: ReLU
    and its like, pooling, sums (of a residual stream: all that add to it and all that read it are scaled together),
    products with something else, attention's weighted means. A is a convolution, a matrix, or the scale and bias of a
    normalization; B is a convolution or matrix. No operator comes or goes, and outputs stay the same to the last bit;
    but int8 with one scale a tensor then has the same number of steps for every channel.

    A Clip from zero on (ReLU6) commutes for channels that never reach its upper end, before and after: those of which
    intervals of what they are computed from prove it, whatever the inputs of the model are.

    Left alone are tensors that are outputs, that other operators read (a GELU is not the same at another scale), and
    those whose weights something else uses too.

    Sources: Nagel et al., arXiv:1906.04721, section 4.1 (cle); Xiao et al., arXiv:2211.10438 (smooth).

    Attributes:
        method: cle: as far as the weights before and behind say. smooth: as far as the activations on samples and the
            weights behind say; meant for normalizations, as rows of weights before may get very unequal. auto: smooth
            for channels that the scale of a normalization makes, where there are samples; cle for all others.
        share: Part of an activation's range that goes to the weights behind it, in smooth; SmoothQuant's alpha.
    """

    name: ClassVar[str] = "equalize"
    lossless: ClassVar[bool] = True
    requires: ClassVar[tuple[str, ...]] = ("fold",)

    method: Literal["auto", "cle", "smooth"] = "auto"
    share: float = 0.5

    def __post_init__(self) -> None:
        """Check the options."""
        if not 0 < self.share < 1:
            raise ValueError(f"share must be between 0 and 1, not {self.share}")

    def run(self, model: Model, context: Context) -> PassReport:
        """Scale what can be scaled."""
        spaces, skipped = find_spaces(model)
        if self.method == "smooth" and context.samples is None:
            return PassReport(0, tuple(skipped), notes=("method=smooth needs samples (--data); left as it was",))
        smooth = [space for space in spaces if self.method == "smooth" or (self.method == "auto" and space.is_scaled)]
        looked_at = {tensor.name: (tensor, axes) for space in smooth for tensor, axes in space.read.values()}
        seen: dict[str, np.ndarray] = {}
        if looked_at and context.samples is not None:
            seen = extents(model, list(looked_at.values()), context.samples, context.progress)
        total = self._settle(spaces, seen)
        changed = sum(bool(exponent.any()) for exponent in total)
        scaled = sum(int(np.count_nonzero(exponent)) for exponent in total)
        return PassReport(changed, tuple(skipped), {"channels scaled": float(scaled)} if scaled else {})

    def _settle(self, spaces: Sequence[Space], seen: dict[str, np.ndarray]) -> list[np.ndarray]:
        """Scale all spaces in turn until nothing moves; return the exponents of each, [channels]."""
        total = [np.zeros(space.channels, np.int64) for space in spaces]
        for _ in range(_ROUNDS):
            moved = False
            for index, space in enumerate(spaces):
                is_seen = all(tensor.name in seen for tensor, _ in space.read.values())
                if is_seen:
                    before = [np.ldexp(seen[tensor.name], -total[index]) for tensor, _ in space.read.values()]
                else:
                    before = [end.extent() for end in space.makers if not end.is_bias]
                step = exponents(before, [end.extent() for end in space.readers], self.share if is_seen else 0.5)
                step = _safe(space, _below_ceiling(step, space.room, total[index]))
                if step.any():
                    _apply(space, step)
                    total[index] += step
                    moved = True
            if not moved:
                break
        return total


def _below_ceiling(step: np.ndarray, room: np.ndarray, total: np.ndarray) -> np.ndarray:
    """Return the exponents, raised so that no channel reaches the ceiling, and 0 where it may do so as it is."""
    least = np.ceil(np.log2(np.where((room > 0) & (room <= 1), room, 1.0))).astype(np.int64) - total
    step = np.where((room > 0) & (room <= 1), np.maximum(step, least), step)
    return np.where(room > 1, 0, step)


def _safe(space: Space, step: np.ndarray) -> np.ndarray:
    """Return the exponents, 0 where a constant would lose bits."""
    for sign, ends in ((-1, space.makers), (1, space.readers)):
        for end in ends:
            step = np.where(end.survives(sign * step), step, 0)
    return step


def _apply(space: Space, step: np.ndarray) -> None:
    """Divide what makes the channels by 2 to the power of the steps, and multiply what reads them."""
    for sign, ends in ((-1, space.makers), (1, space.readers)):
        for end in ends:
            end.constant.values = end.scaled(sign * step)
