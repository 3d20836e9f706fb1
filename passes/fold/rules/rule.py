"""What a rewrite rule is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

import onnx_graphsurgeon as gs

from graphopt.passes.fold.workbench import Workbench

Outcome = bool | str


class Rule(ABC):
    """A rewrite that starts at one node; its docstring gives the formula and the conditions.

    Attributes:
        name: What the user types to switch it off, and what the report counts.
        ops: Operators of the ONNX standard that it starts at.
        late: Whether it waits until no other rule fits: it takes apart what others start from.
    """

    name: ClassVar[str]
    ops: ClassVar[frozenset[str]]
    late: ClassVar[bool] = False

    @abstractmethod
    def apply(self, node: gs.Node, bench: Workbench) -> Outcome:
        """Rewrite the place if the rule fits.

        Returns:
            True if it did; False if the rule has nothing to say here; else why a place that looks right is left alone.
        """


def done(reason: str) -> Outcome:
    """Return the outcome of an edit that gives a reason where it failed."""
    return reason or True


def broadcasts_into(constant: tuple[int, ...], shape: tuple[int | str | None, ...] | None) -> bool:
    """Return whether an elementwise operation with a constant of this shape keeps the other operand's shape.

    Args:
        constant: Shape of the constant.
        shape: Shape of the other operand, as far as it is known.
    """
    if shape is None:
        return constant == ()
    if len(constant) > len(shape):
        return False
    aligned = shape[len(shape) - len(constant) :]
    return all(size in (1, other) for size, other in zip(constant, aligned, strict=True))
