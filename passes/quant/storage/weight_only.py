"""Weights in 4 or 8 bits, activations in float: for size, and for the speed of reading weights.

Each weight is put on integers times a scale a row or block, ``w = s q``, or ``w = s (q - z)``. Where there are samples,
layers are fitted front to back: GPTQ, coordinate descent and least squares choose integers and scales so that the
*outputs* of a layer change least on what the compressed layers before it hand on, and its bias takes up the mean of
what is lost.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Literal

import numpy as np

from graphopt.base import PassReport, Skip
from graphopt.biases import find_bias
from graphopt.compensate import Integers, fit_integers
from graphopt.context import Context
from graphopt.model import Model
from graphopt.moments import LayerMoments
from graphopt.passes.quant.nodes.units import name_of
from graphopt.passes.quant.storage.forms import SLICES, Format, Writer, refusal
from graphopt.passes.quant.storage.weights import Weight, find_weights
from graphopt.progress import Progress
from graphopt.samples import Samples
from graphopt.staged import staged_moments

_STAGES = 8  # times that moments are taken anew on the compressed prefix
_SAMPLES = 64  # that moments rest on; more cost time and hardly change them
_SECONDS = 1.0  # to time a form


@dataclass(frozen=True)
class WeightOptions:
    """What is wanted of the weights.

    Attributes:
        bits: 4 or 8.
        block: Inputs that share a scale; 0 for all of a row.
        symmetric: Whether there are no zero points.
        form: How codes are written; auto: the quicker of kernels (nbits) and decoding at load.
        exclude: Nodes whose weights stay: names with wildcards, or operators.
    """

    bits: int
    block: int
    symmetric: bool
    form: Literal["auto", "nbits", "qdq", "load"]
    exclude: tuple[str, ...]


def quantize_weights(model: Model, context: Context, options: WeightOptions) -> PassReport:
    """Put the weights of a model on integers, in place."""
    reason = refusal("load" if options.form == "auto" else options.form, options.bits, options.block, model.opset)
    if reason:
        return PassReport(0, (Skip("model", reason),))
    weights, skipped = find_weights(model)
    kept = [weight for weight in weights if not is_excluded(weight, options.exclude)]
    left = {id(weight) for weight in kept}
    skipped += [Skip(item.constant.name, "it is excluded") for item in weights if id(item) not in left]
    if not kept:
        return PassReport(0, tuple(skipped))
    samples, notes = _samples(model, context)
    integers = fitted(model, kept, samples, options, context.progress)
    form = options.form if options.form != "auto" else _quicker(model, kept, integers, context, options, notes)
    write(model, kept, integers, options.bits, form)
    metrics = {f"weights of {options.bits} bits": float(len(kept))}
    return PassReport(len(kept), tuple(skipped), metrics, tuple(notes))


def _samples(model: Model, context: Context) -> tuple[Samples | None, list[str]]:
    """Return the samples that weights are fitted on, or None and why there are none."""
    if context.samples is None:
        return None, ["without --data weights are rounded to nearest"]
    if model.opset < SLICES:
        return None, [f"weights are rounded to nearest: second moments need opset {SLICES}, not {model.opset}"]
    return context.samples.take(min(_SAMPLES, len(context.samples))), []


def fitted(
    model: Model,
    weights: Sequence[Weight],
    samples: Samples | None,
    options: WeightOptions,
    progress: Progress,
    *,
    stages: int = _STAGES,
) -> list[Integers]:
    """Round the weights in place and return their integers.

    What no layer of the main graph reads (tables, recurrent weights, bodies) is rounded first, by itself, so that the
    layers can make up for it.
    """
    found: dict[int, Integers] = {}
    layers = {id(weight.layer.node): weight for weight in weights if weight.layer is not None}
    if samples is None:
        layers.clear()
    for weight in weights:
        if weight.layer is None or id(weight.layer.node) not in layers:
            found[id(weight)] = _fit(weight, None, options)
            weight.constant.values = weight.stored(found[id(weight)].decoded())
    if samples is not None and layers:
        order = [weight.layer for weight in layers.values() if weight.layer is not None]
        shown = {id(tensor) for tensor in model.graph.outputs}
        for moments in staged_moments(model, order, samples, stages=stages, progress=progress):
            weight = layers[id(moments.layer.node)]
            found[id(weight)] = _fit_layer(weight, moments, shown, options)
    return [found[id(weight)] for weight in weights]


def _fit(weight: Weight, moment: np.ndarray | None, options: WeightOptions) -> Integers:
    return fit_integers(weight.matrix(), moment, options.bits, block=options.block, symmetric=options.symmetric)


def _fit_layer(weight: Weight, moments: LayerMoments, shown: set[int], options: WeightOptions) -> Integers:
    """Fit a layer's weight to its inputs, in place, and let its bias make up for the mean."""
    bias = find_bias(moments.layer, shown)
    matrix = weight.matrix()
    integers = _fit(weight, moments.second if bias is None else moments.covariance, options)
    decoded = integers.decoded()
    if bias is not None:
        bias.shift(np.einsum("grk,gk->gr", matrix - decoded, moments.mean).ravel())
    weight.constant.values = weight.stored(decoded)
    return integers


def _quicker(
    model: Model,
    weights: Sequence[Weight],
    integers: Sequence[Integers],
    context: Context,
    options: WeightOptions,
    notes: list[str],
) -> Format:
    """Return the form that runs faster; the kernels where that cannot be measured."""
    forms: dict[Format, Model] = {}
    for form in ("nbits", "load"):
        candidate = model.copy()
        twins: dict[str, list[Weight]] = {}
        for twin in find_weights(candidate)[0]:  # in another order, perhaps; bodies may use a name twice
            twins.setdefault(twin.constant.name, []).append(twin)
        write(candidate, [twins[item.constant.name].pop(0) for item in weights], integers, options.bits, form)
        forms[form] = candidate
    ratio = context.evaluator.latency(forms["load"], forms["nbits"], seconds=_SECONDS)
    if ratio is None:
        notes.append(f"kernels that read {options.bits} bits; not timed here")
        return "nbits"
    notes.append(f"kernels that read {options.bits} bits take {ratio.median:.2f} x the time of decoding at load")
    return "nbits" if ratio.high < 1 else "load"  # what is decoded at load computes with exact activations


def write(model: Model, weights: Sequence[Weight], integers: Sequence[Integers], bits: int, form: Format) -> None:
    """Let all users of weights read their integers."""
    writer = Writer(model, bits, form)
    for weight, codes in zip(weights, integers, strict=True):
        writer.write(weight, codes)


def is_excluded(weight: Weight, patterns: Sequence[str]) -> bool:
    """Whether a node that reads the weight is to be left alone."""
    nodes = [use.node for use in weight.uses]
    return any(node.op == item or fnmatchcase(name_of(node), item) for node in nodes for item in patterns)
