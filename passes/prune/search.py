"""How far pruning may go: the largest ratio that holds a limit, by few measurements."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

import onnx_graphsurgeon as gs

from graphopt.context import Context
from graphopt.ir.graph import Payload, payload
from graphopt.model import Model

_GRID = (0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)  # ratios that are tried


@dataclass(frozen=True, eq=False)
class Snapshot:
    """Weights of a model at one moment.

    Attributes:
        held: Each constant with what it held.
    """

    held: tuple[tuple[gs.Constant, Payload], ...]

    @classmethod
    def of(cls, constants: Iterable[gs.Constant]) -> Snapshot:
        """Return the present weights; they are not copied, as nobody writes into them."""
        return cls(tuple((constant, payload(constant)) for constant in constants))

    def replaced(self) -> int:
        """Return how many constants hold something else by now."""
        return sum(1 for constant, held in self.held if payload(constant) is not held)

    def restore(self) -> None:
        """Give every constant its weights back."""
        for constant, held in self.held:
            if payload(constant) is not held:
                constant.values = held


class Attempt(Protocol):
    """Prunes a model in place by a ratio."""

    def __call__(self, ratio: float, *, final: bool) -> None:
        """Prune; roughly while searching, as well as can be if final."""
        ...


def furthest(
    attempt: Attempt, model: Model, snapshot: Snapshot, start: float, context: Context, budget: float
) -> tuple[str, ...]:
    """Prune by the largest ratio whose loss stays within part of the limit; return what the user should know.

    Halves the ratios above the present sparsity with rough attempts, then prunes well by what was found, and by less
    while the loss is too large.

    Args:
        attempt: Prunes.
        model: What it prunes, in place.
        snapshot: Its weights.
        start: Sparsity that is there already.
        context: Evaluator and limit.
        budget: Fraction of the limit that may be used.
    """
    limit = budget * context.max_drop
    ratios = [ratio for ratio in _GRID if ratio > start]

    def holds(ratio: float, *, final: bool) -> bool:
        attempt(ratio, final=final)
        drop = context.evaluator.drop(model)
        return drop is not None and drop.within(limit)

    low, high = 0, len(ratios)  # the first `low` hold the limit, those from `high` on do not
    while low < high:
        middle = (low + high) // 2
        held = holds(ratios[middle], final=False)
        snapshot.restore()
        low, high = (middle + 1, high) if held else (low, middle)
    while low > 0 and not holds(ratios[low - 1], final=True):
        snapshot.restore()
        low -= 1
    found = f"ratio {ratios[low - 1]:.2f}" if low else "no ratio from 0.05 on"
    return (f"{found} loses at most {limit:.2%}, which is {budget:.0%} of the limit",)
