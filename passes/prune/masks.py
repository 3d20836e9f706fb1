"""Zeros by any pattern: which weights, how many of each, and by which method."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from graphopt.base import PassReport, Skip
from graphopt.context import Context
from graphopt.model import Model
from graphopt.passes.prune.fitting import fitting
from graphopt.passes.prune.options import NEED_SAMPLES, parse_pattern
from graphopt.passes.prune.plain import count_zeros
from graphopt.passes.prune.pruner import Pruner
from graphopt.passes.prune.search import Snapshot
from graphopt.passes.prune.weights import find_weights

if TYPE_CHECKING:
    from graphopt.passes.prune.prune import Prune


def prune_masks(model: Model, context: Context, options: Prune) -> PassReport:
    """Prune in place; see `Prune`."""
    found, skipped = find_weights(model, embeddings=options.embeddings)
    if not found and not skipped:
        operators = "Conv, ConvTranspose, Gemm, MatMul, LSTM, GRU or RNN"
        return PassReport(0, (Skip("model", f"it has no constant weights of {operators} nodes"),))
    pattern = parse_pattern(options.pattern, options.block)
    weights, unfit = fitting(found, pattern)
    reason = _objection(model, options, context)
    if reason:
        return PassReport(0, (Skip("model", reason),))
    before = sum(count_zeros(weight) for weight in weights)
    held = Snapshot.of(weight.constant for weight in weights)
    pruner = Pruner.of(model, context, options, pattern, weights)
    notes = pruner.run()
    zeros, size = sum(count_zeros(weight) for weight in weights), sum(weight.size for weight in weights)
    metrics = {
        "tensors": len(weights),
        "fitted": len(pruner.sites),
        "tuned": pruner.tuned,
        "weights": size,
        "zeros_before": before,
        "zeros": zeros,
        "sparsity": zeros / size if size else 0.0,
    }
    changed = held.replaced()
    if pruner.left_out:
        notes = (*notes, f"{pruner.left_out} of the samples are not used: they give values that are not finite")
    if pruner.untuned:
        notes = (*notes, f"not tuned by gradients: {pruner.untuned}")
    notes = (*_notes(metrics), *notes) if changed else notes
    return PassReport(changed, (*skipped, *unfit), metrics, notes)


def _objection(model: Model, options: Prune, context: Context) -> str:
    """Return why the options cannot be followed here, or an empty text."""
    if options.criterion in NEED_SAMPLES and not context.samples:
        return f"criterion={options.criterion} looks at what layers read, and there are no samples"
    searches = options.ratio == "auto" and options.threshold is None
    if searches and not context.samples and context.evaluator.drop(model) is None:
        return "ratio=auto is found by the loss on samples or by a metric, and there is neither; give a ratio"
    return ""


def _notes(metrics: Mapping[str, float]) -> tuple[str, ...]:
    before = metrics["zeros_before"] / metrics["weights"]
    return (
        f"{metrics['sparsity']:.1%} of {metrics['weights']:,.0f} weights are zero, {before:.1%} were before; "
        "ONNX Runtime is no faster for it, the gain is in the compressed size",
    )
