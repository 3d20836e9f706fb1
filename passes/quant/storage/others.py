"""Weights that stay float, stored in fewer bits and decoded at load: in 8 bits, in blocks, or in 16-bit floats.

The nodes that read them run as before. So this saves bytes and no time, and is not worth what integers may lose: 8 bits
may add a small part of the limit to the loss, and where they would add more, 16 bits take their place.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from graphopt.errors import ModelError
from graphopt.evaluate import Drop
from graphopt.ir.clean import clean
from graphopt.ir.exporter import unique_name
from graphopt.ir.graph import Constant, Node, Variable, payload_bytes, tensor_names
from graphopt.model import Model
from graphopt.passes.quant.storage.forms import SLICES, redirect
from graphopt.passes.quant.storage.weight_only import WeightOptions, fitted, is_excluded, write
from graphopt.passes.quant.storage.weights import Weight, find_weights
from graphopt.progress import Progress
from graphopt.samples import Samples
from graphopt.shapes import infer_shapes

WIDTHS = (8, 16)
"""Bits that are tried, in this order."""
_PART = 0.1  # of the limit is what storing in fewer bits may add to the loss
_BLOCK, _FEW = 32, 16  # inputs that share a scale, and samples that weights are fitted on
_WORST = 2.0**-9  # relative error of a weight in 16 bits; rounding alone makes less than half


@dataclass(frozen=True)
class Judgement:
    """What decides whether weights are stored.

    Attributes:
        limit: Largest loss allowed, a fraction.
        lost: The loss that may be held against the model as it is.
        drop: Measures the loss of a model; None where there is nothing to judge on.
    """

    limit: float
    lost: float
    drop: Callable[[Model], Drop | None]

    def refusal(self, model: Model) -> str:
        """Return why a model with weights in fewer bits is not taken, or an empty text."""
        drop = self.drop(model)
        if drop is None or (drop.within(self.limit) and drop.against <= self.lost + _PART * self.limit):
            return ""
        return f"that loses {drop.value:.2%}" + (f", {self.lost:.2%} without" if self.lost else "")


def others_stored(
    known: Model,
    judgement: Judgement,
    samples: Samples | None,
    progress: Progress,
    exclude: Sequence[str],
    worth: float,
) -> tuple[Model, int, list[str]]:
    """Return a model with the weights that are still floats in as few bits as lose next to nothing.

    Args:
        known: The model; stays as it is.
        judgement: Decides.
        samples: What weights of 8 bits are fitted on; None: they are rounded to nearest.
        progress: Where the fit reports.
        exclude: Nodes whose weights stay: names with wildcards, or operators.
        worth: Part of all weights' bytes that must be saved.

    Returns:
        The model (as it was if nothing is stored), how many weights these are, and what there is to say.
    """
    notes: list[str] = []
    for bits in WIDTHS:
        model = known.copy()
        try:
            count = store_others(model, bits, samples, progress, exclude, worth=worth)
        except ModelError as error:  # the integers are good all the same
            notes.append(_refused(bits, str(error)))
            continue
        if not count:
            continue
        why = judgement.refusal(model)
        if not why:
            return (
                model,
                count,
                [*notes, f"weights that stay float are stored in {bits} bits, decoded at load: {count}"],
            )
        notes.append(_refused(bits, why))
    return known, 0, notes


def _refused(bits: int, why: str) -> str:
    return f"weights that stay float are not stored in {bits} bits: {why}"


def store_others(
    model: Model,
    bits: int,
    samples: Samples | None,
    progress: Progress,
    exclude: Sequence[str],
    *,
    worth: float = 0.0,
) -> int:
    """Store the weights that are still floats in fewer bits.

    Args:
        model: Edited in place and cleaned up.
        bits: 8 or 16.
        samples: As in `others_stored`.
        progress: Likewise.
        exclude: Likewise.
        worth: Likewise; where less would be saved, nothing is done.

    Returns:
        How many there are.

    Raises:
        ModelError: The model does not run on a sample.
    """
    weights = [weight for weight in find_weights(model)[0] if not is_excluded(weight, exclude)]
    if bits == 16:
        weights = [weight for weight in weights if _fits_half(weight.constant.values)]
    saved = sum(payload_bytes(weight.constant) for weight in weights) * (32 - bits) // 32
    if not weights or saved < worth * model.weight_bytes:
        return 0
    if bits == 16:
        _store_halves(model, weights)
    else:
        options = WeightOptions(bits, _BLOCK if model.opset >= SLICES else 0, True, "load", tuple(exclude))
        few = None if samples is None or model.opset < SLICES else samples.take(min(_FEW, len(samples)))
        infer_shapes(model)
        write(model, weights, fitted(model, weights, few, options, progress, stages=1), bits, "load")
    clean(model.graph)
    return len(weights)


def _store_halves(model: Model, weights: Sequence[Weight]) -> None:
    """Let all users of weights read a Cast from 16-bit floats."""
    taken = tensor_names(model.graph)
    for weight in weights:
        constant = weight.constant
        half = Constant(unique_name(f"{constant.name}_fp16", taken), constant.values.astype(np.float16))
        whole = Variable(unique_name(f"{constant.name}_float", taken), np.dtype(np.float32), list(constant.shape))
        redirect(constant, whole)
        model.graph.nodes.append(_cast(half, whole))


def _cast(source: gs.Tensor, result: gs.Tensor) -> gs.Node:
    return Node("Cast", f"{result.name}/Cast", {"to": int(onnx.TensorProto.FLOAT)}, [source], [result])


def _fits_half(values: np.ndarray) -> bool:
    with np.errstate(over="ignore", under="ignore"):
        rounded = values.astype(np.float16).astype(np.float64)
    lost = float(np.linalg.norm(rounded - values))
    return bool(lost <= _WORST * float(np.linalg.norm(values.astype(np.float64))))
