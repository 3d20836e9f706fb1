"""The pass `prune`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import numpy as np

from graphopt.base import Pass, PassReport, Skip
from graphopt.compensate import NofM, Pattern
from graphopt.context import Context
from graphopt.model import Model
from graphopt.passes.prune.allocate import RATIOS, energy_curve, share_out
from graphopt.passes.prune.channels import prune_channels
from graphopt.passes.prune.fitting import fitting
from graphopt.passes.prune.options import CHANNELS, NEED_SAMPLES, Criterion, Scope, Unit, parse_pattern
from graphopt.passes.prune.plain import Scorer, count_zeros, zero_all_but, zero_below, zero_smallest
from graphopt.passes.prune.weights import Weight, find_weights


@dataclass(frozen=True)
class Prune(Pass):
    """Set the weights that matter least to zero, or remove whole channels.

    ``W -> W * M`` with a mask M of zeros and ones. Weights that are zero already count; among equals the first go.
    Pruned are the weights of Conv, ConvTranspose, Gemm, MatMul, LSTM, GRU and RNN; biases, norms and embeddings are
    not. A weight that several nodes share is pruned once. Skipped with a reason is what somebody else reads too, what a
    caller may override, what is quantized already, and what the pattern does not fit.

    Zeros make no runtime of dense kernels faster; they make the file smaller once it is compressed. Removed channels
    (pattern=channels) make it smaller and faster by themselves.

    Source: Han et al., "Learning both Weights and Connections for Efficient Neural Networks", NeurIPS 2015.

    Attributes:
        pattern: unstructured; NofM, such as 2of4, where N of M neighbouring inputs stay; block; or channels.
        ratio: Fraction to take away, in [0, 1), or auto, as much as the limit on the loss allows. With NofM it says
            how much of the model takes the pattern: half of it at 2of4 is ratio 0.25.
        of: What the ratio is a fraction of; latency is for channels only.
        criterion: How a weight's worth is measured; auto is by magnitude (l1). variance is for groups of weights.
        scope: Whether each weight loses the ratio (layer), or all together, compared by the energy that goes
            (global) or by the part of each layer's energy that goes (adaptive).
        block: Outputs times inputs of a block.
        threshold: Zero what scores at most this, instead of a ratio.
        reconstruct: Whether what stays is fitted to the original outputs, where there are samples.
        embeddings: Whether tables that Gather reads are pruned as well.
    """

    name: ClassVar[str] = "prune"
    lossless: ClassVar[bool] = False

    pattern: str = "unstructured"
    ratio: float | Literal["auto"] = 0.5
    of: Unit = "weights"
    criterion: Criterion = "auto"
    scope: Scope = "layer"
    block: str = "4x4"
    threshold: float | None = None
    reconstruct: bool = True
    embeddings: bool = False

    def __post_init__(self) -> None:
        """Check the options.

        Raises:
            ValueError: One is out of its range, or two contradict each other.
        """
        if self.ratio != "auto" and not 0 <= self.ratio < 1:
            raise ValueError(f"ratio must be in [0, 1) or auto, not {self.ratio}")
        for option, allowed in (("of", Unit), ("criterion", Criterion), ("scope", Scope)):
            if getattr(self, option) not in get_args(allowed):
                raise ValueError(f"{option} must be {'|'.join(get_args(allowed))}, not '{getattr(self, option)}'")
        if self.pattern == CHANNELS:
            return
        pattern = parse_pattern(self.pattern, self.block)
        if self.ratio == "auto" or self.criterion in NEED_SAMPLES:
            raise ValueError("ratio=auto and criteria that look at inputs need pattern=channels")
        if self.of in ("latency", "macs"):
            raise ValueError("of=latency needs pattern=channels: zeros save no time")
        if self.criterion == "variance" and self.pattern != "block":
            raise ValueError("criterion=variance compares groups of weights: use pattern=block or channels")
        if self.threshold is not None and (self.threshold < 0 or isinstance(pattern, NofM)):
            raise ValueError("threshold must be at least 0 and goes with pattern=unstructured or block")

    def run(self, model: Model, context: Context) -> PassReport:
        """Prune in place; see the class."""
        if self.pattern == CHANNELS:
            return prune_channels(model, context, self)
        found, skipped = find_weights(model, embeddings=self.embeddings)
        if not found and not skipped:
            operators = "Conv, ConvTranspose, Gemm, MatMul, LSTM, GRU or RNN"
            return PassReport(0, (Skip("model", f"it has no constant weights of {operators} nodes"),))
        pattern = parse_pattern(self.pattern, self.block)
        weights, unfit = fitting(found, pattern)
        zeros_before = sum(count_zeros(weight) for weight in weights)
        gains = list(self._pruned(weights, pattern, context))
        size, zeros = sum(weight.size for weight in weights), zeros_before + sum(gains)
        metrics = {
            "tensors": len(weights),
            "weights": size,
            "zeros_before": zeros_before,
            "zeros": zeros,
            "sparsity": zeros / size if size else 0.0,
        }
        return PassReport(len(gains), (*skipped, *unfit), metrics, _notes(metrics) if gains else ())

    def _pruned(self, weights: Sequence[Weight], pattern: Pattern, context: Context) -> Iterator[int]:
        """Prune by the weights alone; yield the zeros that each changed weight gained."""
        scorer = Scorer(pattern, "l1" if self.criterion == "auto" else self.criterion, self._rng(context))
        if self.threshold is not None:
            for weight in weights:
                yield from zero_below(weight, self.threshold, scorer)
            return
        assert self.ratio != "auto"
        if self.scope == "global" and self.of == "weights" and not isinstance(pattern, NofM):
            yield from zero_smallest(weights, self.ratio, scorer)
            return
        ratios = self._ratios(weights, pattern, self.ratio)
        for weight, ratio in context.progress.track(list(zip(weights, ratios, strict=True)), "prune", len(weights)):
            if not isinstance(pattern, NofM):
                yield from zero_smallest([weight], ratio, scorer)
            elif ratio > 0:
                yield from zero_all_but(weight, pattern, scorer)

    def _ratios(self, weights: Sequence[Weight], pattern: Pattern, ratio: float) -> list[float]:
        """Return the ratio of each weight."""
        fixed = isinstance(pattern, NofM)
        if self.scope == "layer":
            return [ratio] * len(weights)
        steps = (0.0, pattern.ratio) if isinstance(pattern, NofM) else RATIOS
        curves = [
            energy_curve(weight, self._cost(weight), steps, relative=self.scope == "adaptive", whole=fixed)
            for weight in weights
        ]
        return share_out(curves, ratio)

    def _cost(self, weight: Weight) -> float:
        """Return what a weight costs in the unit of the ratio."""
        return float(weight.size * (np.dtype(weight.constant.dtype).itemsize if self.of == "bytes" else 1))

    def _rng(self, context: Context) -> Callable[[str], np.random.Generator]:
        return lambda name: context.rng(f"prune/{name}")


def _notes(metrics: Mapping[str, float]) -> tuple[str, ...]:
    before = metrics["zeros_before"] / metrics["weights"]
    return (
        f"{metrics['sparsity']:.1%} of {metrics['weights']:,.0f} weights are zero, {before:.1%} were before; "
        "ONNX Runtime is no faster for it, the gain is in the compressed size",
    )
