"""Pruning that looks at the weights alone: exact counts, in constant memory for single weights."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from graphopt.compensate import Blocks, NofM, Pattern
from graphopt.passes.prune import criteria
from graphopt.passes.prune.scores import GROUPED
from graphopt.passes.prune.selection import Cut, find_cut, first_ties, score_keys
from graphopt.passes.prune.weights import Weight

_CHUNK = 2**20  # weights scored at a time
_LAST = 2**64 - 1  # above every bit pattern: all ties belong to the cut


@dataclass(frozen=True)
class Scorer:
    """Scores of what goes together, in the order of the weight's units: single weights, or blocks of its matrix.

    Attributes:
        pattern: Where zeros may stand; of NofM units are single weights.
        criterion: l1, l2, max-norm, variance (of blocks), lamp or random.
        rng: Returns the generator for a weight's name.
    """

    pattern: Pattern
    criterion: str
    rng: Callable[[str], np.random.Generator]

    def read(self, weight: Weight) -> Iterator[tuple[int, np.ndarray]]:
        """Yield the scores of a weight, chunk by chunk, each with the unit that it starts at."""
        if isinstance(self.pattern, Blocks):
            yield 0, self._blocks(weight, self.pattern)
        elif self.criterion in ("lamp", "random"):
            yield 0, self.single(weight.constant.values.reshape(-1), weight.name)
        else:
            values = weight.constant.values.reshape(-1)
            for start in range(0, values.size, _CHUNK):
                yield start, criteria.magnitude(values[start : start + _CHUNK])

    def single(self, values: np.ndarray, name: str) -> np.ndarray:
        """Return the scores of single weights, in their shape."""
        if self.criterion == "random":
            return criteria.random(values, self.rng(name))
        scores = criteria.magnitude(values)
        return criteria.lamp(scores) if self.criterion == "lamp" else scores

    def units(self, weight: Weight) -> int:
        """Return how many units a weight has."""
        area = self.pattern.height * self.pattern.width if isinstance(self.pattern, Blocks) else 1
        return weight.size // area

    def without(self, weight: Weight, chosen: np.ndarray) -> np.ndarray:
        """Return the values of a weight with some of its units zero.

        Args:
            weight: Stays as it is.
            chosen: Which units go, bool, flat.
        """
        if not isinstance(self.pattern, Blocks):
            values = np.array(weight.constant.values, order="C")
            values.reshape(-1)[chosen] = 0
            return values
        assert weight.layout is not None
        split = self.pattern.split(np.array(weight.layout.matrix(weight.constant.values)))
        across = split.shape[2]
        rows, columns = np.divmod(np.flatnonzero(chosen), across)
        split[rows, :, columns, :] = 0
        return weight.layout.restored(split, weight.constant.shape)

    def _blocks(self, weight: Weight, blocks: Blocks) -> np.ndarray:
        assert weight.layout is not None
        split = blocks.split(weight.layout.matrix(weight.constant.values))
        groups = np.ascontiguousarray(np.swapaxes(split, -3, -2)).reshape(-1, blocks.height * blocks.width)
        if self.criterion == "random":
            return criteria.random(np.asarray(groups.any(axis=1)), self.rng(weight.name))
        if self.criterion == "lamp":
            return criteria.lamp(criteria.l2(groups))
        return GROUPED[self.criterion](groups)


def zero_smallest(weights: Sequence[Weight], ratio: float, scorer: Scorer) -> None:
    """Zero the units of smallest score of a group, in place.

    Args:
        weights: The group; its scores are compared with each other.
        ratio: Fraction of the group's units that are to be zero, in [0, 1), taken at its decimal value.
        scorer: What scores them.
    """
    count = math.floor(Fraction(str(ratio)) * sum(scorer.units(weight) for weight in weights))
    if count == 0:
        return
    wide = scorer.criterion == "lamp" or any(weight.constant.dtype == np.float64 for weight in weights)
    kind = np.float64 if wide else np.float32
    cut = find_cut(lambda: (part.astype(kind) for weight in weights for _, part in scorer.read(weight)), count, kind)
    if cut.key == 0:
        return  # as many are zero already
    ties = cut.ties
    for weight in weights:
        chosen, used = _below(weight, Cut(cut.key, ties), scorer, kind)
        ties -= used
        if chosen.any():
            _replace(weight, scorer.without(weight, chosen))


def zero_below(weight: Weight, threshold: float, scorer: Scorer) -> None:
    """Zero the units of a weight that score at most the threshold, in place."""
    kind = np.float64 if weight.constant.dtype == np.float64 else np.float32
    key = int(score_keys(np.array([threshold], kind))[0])
    chosen, _ = _below(weight, Cut(key, _LAST), scorer, kind)
    if chosen.any():
        _replace(weight, scorer.without(weight, chosen))


def zero_all_but(weight: Weight, pattern: NofM, scorer: Scorer) -> None:
    """Zero all but the N largest of each M inputs of a weight, in place."""
    assert weight.layout is not None
    matrix = weight.layout.matrix(weight.constant.values)
    keep = pattern.keep(scorer.single(matrix, weight.name))
    if np.any(matrix[~keep] != 0):
        _replace(weight, weight.layout.restored(np.where(keep, matrix, 0), weight.constant.shape))


def count_zeros(weight: Weight) -> int:
    """Return how many elements of a weight are zero."""
    return weight.size - int(np.count_nonzero(weight.constant.values))


def _replace(weight: Weight, values: np.ndarray) -> None:
    weight.constant.values = values.astype(weight.constant.dtype, copy=False)


def _below(weight: Weight, cut: Cut, scorer: Scorer, kind: type[np.floating]) -> tuple[np.ndarray, int]:
    """Return which units of a weight lie below the cut and are not zero yet, and the ties that were used."""
    chosen = np.zeros(scorer.units(weight), bool)
    used = 0
    for start, scores in scorer.read(weight):
        keys = score_keys(scores.astype(kind))
        tied = first_ties(keys == cut.key, cut.ties - used)
        used += int(np.count_nonzero(tied))
        chosen[start : start + keys.size] = ((keys < cut.key) | tied) & (keys != 0)
    return chosen, used
