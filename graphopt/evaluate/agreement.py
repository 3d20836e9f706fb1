"""How far a model agrees with the original, added up sample by sample."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from graphopt.evaluate.classes import Scores, same_top
from graphopt.evaluate.statistics import ratio, ratio_interval, share_interval
from graphopt.runtime.compare import is_float, leaves, sums

_UNDEFINED = "NaN and infinities"


@dataclass(frozen=True)
class Loss:
    """One way in which one output lost agreement.

    Attributes:
        name: Name of the output, and of what was looked at unless it is the values.
        value: Fraction in [0, 1]; 0 is full agreement.
        low: Lower end of its 95 % interval over other samples of the same kind.
        high: Upper end.
        counted: Whether it is a share of things counted (best classes, integers) rather than of signal energy.
    """

    name: str
    value: float
    low: float
    high: float
    counted: bool

    @property
    def established(self) -> float:
        """The loss that may be held against the model: of counts, no more than they prove."""
        return self.low if self.counted else self.value


@dataclass
class _Tally:
    """Sums of one output: per sample [energy, error], and per kind of count and sample [differing, all]."""

    energies: list[tuple[float, float]] = field(default_factory=list)
    counts: dict[str, list[tuple[int, int]]] = field(default_factory=dict)
    lost: bool = False
    finite: bool = False

    def count(self, kind: str, differing: int, total: int) -> None:
        if total:
            self.counts.setdefault(kind, []).append((differing, total))


class Agreement:
    """Compares outputs of two models, keeping nothing but sums.

    Float outputs: relative squared error, sum |y - y'|^2 / sum |y|^2 over all samples; 1 at most, and 1 if anything
    becomes NaN or infinite that was not. Class scores: the share of positions whose best class changed, as well. All
    other outputs (and the NaN and infinities of the original): the share of elements that changed. A part of an output
    that has another shape than before, or is missing, counts as lost in full.

    Args:
        scores: Which outputs are class scores.
        seed: Of the bootstrap.
    """

    def __init__(self, scores: Mapping[str, Scores], seed: int = 0) -> None:
        self._scores = scores
        self._seed = seed
        self._tallies: dict[str, _Tally] = {}

    def add(self, expected: Mapping[str, Any], actual: Mapping[str, Any]) -> None:
        """Compare the outputs of one sample."""
        for name, value in expected.items():
            tally = self._tallies.setdefault(name, _Tally())
            ours, theirs = dict(leaves({name: value})), dict(leaves({name: actual.get(name)}))
            energy = error = 0.0
            for key in {**ours, **theirs}:
                gained = self._part(name, tally, ours.get(key), theirs.get(key))
                energy, error = energy + gained[0], error + gained[1]
            tally.energies.append((energy, error))

    @property
    def compared(self) -> bool:
        """Whether anything was there to compare: a number, or another value that is not NaN or infinite."""
        tallies = self._tallies.values()
        return any(tally.lost or tally.finite or any(kind != _UNDEFINED for kind in tally.counts) for tally in tallies)

    def losses(self) -> tuple[Loss, ...]:
        """Return the losses so far, the largest first."""
        found: list[Loss] = []
        for name, tally in self._tallies.items():
            if any(energy or error for energy, error in tally.energies) or tally.lost or not tally.counts:
                found.append(self._energy_loss(name, tally))
            found.extend(_count_loss(f"{name} {kind}".strip(), pairs) for kind, pairs in tally.counts.items())
        return tuple(sorted(found, key=lambda loss: -loss.value))

    def _part(
        self, name: str, tally: _Tally, ours: np.ndarray | None, theirs: np.ndarray | None
    ) -> tuple[float, float]:
        """Count one part of an output; return its energy and error."""
        if ours is None or theirs is None or ours.shape != theirs.shape or ours.dtype != theirs.dtype:
            return _mismatched(tally, ours, theirs)
        if not is_float(ours.dtype):
            tally.count("", int(np.count_nonzero(ours != theirs)), ours.size)
            return 0.0, 0.0
        total = sums(ours, theirs)
        tally.lost = tally.lost or total.lost > 0
        tally.finite = tally.finite or ours.size > total.undefined
        tally.count(_UNDEFINED, total.undefined - total.undefined_same, total.undefined)
        if name in self._scores:
            rows, others = self._scores[name].rows(ours), self._scores[name].rows(theirs)
            if rows is not None and others is not None:
                ranked = ~np.isnan(rows).any(axis=1)  # among NaN nothing is best
                same = same_top(rows[ranked], others[ranked])
                tally.count("top-1", int(np.count_nonzero(~same)), len(same))
        return total.energy, total.error

    def _energy_loss(self, name: str, tally: _Tally) -> Loss:
        if tally.lost:
            return Loss(name, 1.0, 1.0, 1.0, counted=False)
        energies, errors = np.array(tally.energies).T
        value = ratio(float(errors.sum()), float(energies.sum()))
        return Loss(name, value, *ratio_interval(errors, energies, self._seed), counted=False)


def _mismatched(tally: _Tally, ours: np.ndarray | None, theirs: np.ndarray | None) -> tuple[float, float]:
    """Count a part that cannot be compared: all of it is lost."""
    held = theirs if ours is None else ours
    if held is None:
        return 0.0, 0.0
    if not is_float(held.dtype):
        tally.count("", max(held.size, 1), max(held.size, 1))
        return 0.0, 0.0
    energy = max(sums(held, held).energy, np.finfo(np.float64).tiny)
    return (0.0 if ours is None else energy), energy


def _count_loss(name: str, pairs: list[tuple[int, int]]) -> Loss:
    differing, totals = np.array(pairs).T
    value = float(differing.sum() / totals.sum())
    return Loss(name, value, *share_interval(differing, totals), counted=True)
