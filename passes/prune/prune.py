"""The pass `prune`."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import ClassVar, Literal, get_args

import numpy as np

from graphopt.base import Pass, PassReport, Skip
from graphopt.context import Context
from graphopt.model import Model
from graphopt.passes.prune.criteria import magnitude
from graphopt.passes.prune.selection import Cut, find_cut, first_ties, score_keys
from graphopt.passes.prune.weights import Weight, find_weights

Pattern = Literal["unstructured"]
Scope = Literal["layer", "global"]
_CHUNK = 2**20  # weights scored at a time


@dataclass(frozen=True)
class Prune(Pass):
    """Set the weights of smallest magnitude to zero.

    ``W -> W * M`` with a mask M that is 0 for the ``floor(ratio * size)`` smallest ``|w|`` and 1 elsewhere. Weights
    that are zero already count; among equal magnitudes the first go. Pruned are the weights of Conv, ConvTranspose,
    Gemm, MatMul, LSTM, GRU and RNN; biases, norms and embeddings are not. A weight that several nodes share is pruned
    once. Skipped with a reason is what somebody else reads too, what a caller may override, and what is quantized
    already.

    Zeros alone make no runtime of dense kernels faster; they make the file smaller once it is compressed.

    Source: Han et al., "Learning both Weights and Connections for Efficient Neural Networks", NeurIPS 2015.

    Attributes:
        pattern: Where zeros may stand; unstructured is anywhere.
        ratio: Fraction of the weights to zero, in [0, 1).
        scope: Whether each weight tensor loses this fraction, or all of them together, compared by magnitude.
        embeddings: Whether tables that Gather reads are pruned as well.
    """

    name: ClassVar[str] = "prune"
    lossless: ClassVar[bool] = False

    pattern: Pattern = "unstructured"
    ratio: float = 0.5
    scope: Scope = "layer"
    embeddings: bool = False

    def __post_init__(self) -> None:
        """Check the options.

        Raises:
            ValueError: One is out of its range.
        """
        if not 0 <= self.ratio < 1:
            raise ValueError(f"ratio must be in [0, 1), not {self.ratio}")
        if self.scope not in get_args(Scope):
            raise ValueError(f"scope must be {' or '.join(get_args(Scope))}, not '{self.scope}'")
        if self.pattern not in get_args(Pattern):
            raise ValueError(f"pattern must be {' or '.join(get_args(Pattern))}, not '{self.pattern}'")

    def run(self, model: Model, context: Context) -> PassReport:
        """Prune in place; see the class."""
        weights, skipped = find_weights(model, embeddings=self.embeddings)
        if not weights and not skipped:
            operators = "Conv, ConvTranspose, Gemm, MatMul, LSTM, GRU or RNN"
            return PassReport(0, (Skip("model", f"it has no constant weights of {operators} nodes"),))
        groups = [[weight] for weight in weights] if self.scope == "layer" else [weights]
        zeros_before = sum(count_zeros(weight) for weight in weights)
        tracked = context.progress.track(groups, "prune", len(groups))
        gains = [gain for group in tracked for gain in zero_smallest(group, self.ratio)]
        size, zeros = sum(weight.size for weight in weights), zeros_before + sum(gains)
        metrics = {
            "tensors": len(weights),
            "weights": size,
            "zeros_before": zeros_before,
            "zeros": zeros,
            "sparsity": zeros / size if size else 0.0,
        }
        return PassReport(len(gains), tuple(skipped), metrics, _notes(metrics) if gains else ())


def zero_smallest(weights: Sequence[Weight], ratio: float) -> Iterator[int]:
    """Zero the smallest weights of a group in place; for each tensor that changed, yield the zeros it gained.

    Args:
        weights: The group; its scores are compared with each other.
        ratio: Fraction of the group's elements that are to be zero, in [0, 1), taken at its decimal value.
    """
    count = math.floor(Fraction(str(ratio)) * sum(weight.size for weight in weights))
    if count == 0:
        return
    wide = any(weight.constant.dtype == np.float64 for weight in weights)
    kind = np.float64 if wide else np.float32
    cut = find_cut(lambda: (scores for weight in weights for _, scores in _scored(weight, wide)), count, kind)
    if cut.key == 0:
        return  # as many are zero already
    ties = cut.ties
    for weight in weights:
        pruned, gained, used = _without(weight, Cut(cut.key, ties), wide)
        ties -= used
        if gained:
            weight.constant.values = pruned
            yield gained


def count_zeros(weight: Weight) -> int:
    """Return how many elements of a weight are zero."""
    return sum(scores.size - int(np.count_nonzero(scores)) for _, scores in _scored(weight, wide=False))


def _scored(weight: Weight, wide: bool) -> Iterator[tuple[int, np.ndarray]]:
    """Yield the scores of a weight, chunk by chunk, each with the flat position it starts at."""
    values = weight.constant.values.reshape(-1)
    for start in range(0, values.size, _CHUNK):
        scores = magnitude(values[start : start + _CHUNK])
        yield start, scores.astype(np.float64) if wide else scores


def _without(weight: Weight, cut: Cut, wide: bool) -> tuple[np.ndarray, int, int]:
    """Return the weight without what lies below the cut, the zeros that it gained and the ties that it used."""
    pruned = np.array(weight.constant.values, order="C")
    flat = pruned.reshape(-1)
    gained, used = 0, 0
    for start, scores in _scored(weight, wide):
        keys = score_keys(scores)
        tied = first_ties(keys == cut.key, cut.ties - used)
        used += int(np.count_nonzero(tied))
        chosen = (keys < cut.key) | tied
        gained += int(np.count_nonzero(chosen & (keys != 0)))
        flat[start : start + keys.size][chosen] = 0
    return pruned, gained, used


def _notes(metrics: Mapping[str, float]) -> tuple[str, ...]:
    before = metrics["zeros_before"] / metrics["weights"]
    return (
        f"{metrics['sparsity']:.1%} of {metrics['weights']:,.0f} weights are zero, {before:.1%} were before; "
        "ONNX Runtime is no faster for it, the gain is in the compressed size",
    )
