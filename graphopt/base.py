"""What a pass is, and what it hands back."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from graphopt.context import Context
    from graphopt.model import Model


@dataclass(frozen=True)
class Skip:
    """A place that a pass looked at and left alone.

    Attributes:
        where: Name of the node or tensor, or "model".
        reason: Why, in words that tell the user what would change it.
    """

    where: str
    reason: str


@dataclass(frozen=True)
class Fate:
    """What the runtime made of a place that a pass wrote.

    Attributes:
        where: Name of the node as it was written.
        what: What it is in the graph that really runs, in words.
    """

    where: str
    what: str


@dataclass(frozen=True)
class PassReport:
    """What a pass did.

    Attributes:
        changed: Number of rewrites; 0 promises that the graph is untouched.
        skipped: Places left alone, in graph order.
        metrics: Figures of the pass's own, by name; fractions in [0, 1), counts, bytes.
        notes: Lines for the user that belong to no single place.
        fates: What the runtime made of what the pass wrote, in graph order; empty where nobody looked.
    """

    changed: int
    skipped: tuple[Skip, ...] = ()
    metrics: Mapping[str, float] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    fates: tuple[Fate, ...] = ()


@dataclass(frozen=True)
class Pass(ABC):
    """A transformation of a model; its dataclass fields are its options.

    A subclass is a frozen dataclass whose fields are `bool`, `int`, `float`, `str`, `Literal` or `X | None` and all
    have defaults. It checks them in `__post_init__` and raises ValueError with a message that states what is allowed.
    The first line of its docstring is what `graphopt passes` prints; the `Attributes:` section documents the options.

    The pipeline hands `run` a private copy of the model, and afterwards cleans up, checks the contract below, and
    rolls the pass back if it was broken. So a pass may leave dead nodes behind, in any order, and need not copy.

    Attributes:
        name: What the user types after `-p`.
        requires: Names of passes that must have run before; the pipeline inserts missing ones.
        may_grow: Whether the file may become larger.
        accepted_unjudged: Whether a lossy pass counts as good where neither samples nor a metric can judge it; only for
            passes whose loss is small by their nature.
    """

    name: ClassVar[str]
    requires: ClassVar[tuple[str, ...]] = ()
    may_grow: ClassVar[bool] = False
    accepted_unjudged: ClassVar[bool] = False

    @property
    @abstractmethod
    def lossless(self) -> bool:
        """Whether the outputs must stay equal up to float reassociation; a lossy pass is bound by `--max-drop`.

        A class attribute, ``lossless: ClassVar[bool] = True``, or a property where options decide.
        """

    @property
    def promises_speed(self) -> bool:
        """Whether the pass is rolled back when the result is measurably slower on the target.

        No by default; a class attribute, ``promises_speed: ClassVar[bool] = True``, or a property as for `lossless`.
        """
        return False

    @abstractmethod
    def run(self, model: Model, context: Context) -> PassReport:
        """Edit the model in place and report.

        Weights are shared with other models: replace a constant's values, never write into them. Randomness comes only
        from `context.rng`.
        """
