"""Size mode: weights on palettes, layer after layer, each fitted to what the compressed layers before it hand on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs

from graphopt.biases import Bias, find_bias
from graphopt.compensate.palette import fit_palette
from graphopt.ir.graph import payload
from graphopt.model import Model
from graphopt.moments import LayerMoments, layer_moments
from graphopt.passes.pack.allocate import MEASURED
from graphopt.passes.pack.bits import packed_bytes
from graphopt.passes.pack.decoders import Draft
from graphopt.passes.pack.forms import Form, ScaledForm, forms
from graphopt.passes.pack.sensitivity import OutputLoss
from graphopt.passes.pack.shrink import Coded, shrink
from graphopt.passes.pack.units import Unit
from graphopt.progress import Progress
from graphopt.samples import Samples
from graphopt.staged import staged_moments

Result = tuple[Unit, Form, gs.Constant | None]
_STAGES = 12  # times that moments are taken anew on the compressed prefix
_BLEND = 0.3  # share of the diagonal; fits unseen samples best, or nearly, on conv nets, MLPs and transformers
_LARGE_BIAS = 2**10  # bytes; of smaller ones half precision would save nothing
_SAMPLES = 96  # that moments rest on; more cost time and hardly change them


@dataclass(frozen=True, eq=False)
class CodedForm(Form):
    """Codes into shared levels (of 8 bits: whole numbers) times a scale a row: Gather or Cast, Mul.

    Attributes:
        codes: Index of the level of each element, uint8 in the weight's shape.
        levels: Values, float32 [2**bits].
        scale: Factors, float16 or float32, broadcastable to the weight.
    """

    codes: np.ndarray
    levels: np.ndarray
    scale: np.ndarray

    def build(self, draft: Draft) -> gs.Tensor:
        """Add the decoder to a draft and return the decoded tensor."""
        single = np.dtype(np.float32)
        scale: gs.Tensor = draft.stored("scale", self.scale)
        scale = scale if self.scale.dtype == single else draft.cast(scale, single)
        if len(self.levels) == 256:
            whole = (self.codes.astype(np.int16) - 128).astype(np.int8)
            return draft.node("Mul", [draft.cast(draft.stored("int8", whole), single), scale])
        return draft.node("Mul", [draft.levels(self.codes, self.levels), scale])


class SizeMode:
    """Rounds the weights of one model, or of its copies.

    Linear layers are fitted to the moments of their inputs, and their biases take up the mean of what is lost; other
    weights (embeddings, recurrent layers, bodies) are rounded by themselves, and before all layers, so that these can
    make up for it.

    Args:
        samples: Inputs to fit to; without them every weight is rounded by itself.
        progress: Where it reports.
    """

    def __init__(self, samples: Samples | None, progress: Progress) -> None:
        self._samples = samples
        self._progress = progress
        self._alone: dict[tuple[int, int], Coded] = {}  # by place of the unit and bits: trials share them

    def round(self, model: Model, units: Sequence[Unit], bits: Sequence[int]) -> Iterator[Result]:
        """Put weights on palettes, in place, and yield each with its form and the bias that was shifted, if any.

        Args:
            model: The model that is rounded.
            units: Its weights; those of a copy must come in the same order.
            bits: Of each.
        """
        shown = {id(tensor) for tensor in model.graph.outputs}
        place = {id(unit.layer): index for index, unit in enumerate(units) if self._is_fitted(unit)}
        for index, unit in enumerate(units):
            if id(unit.layer) not in place:
                coded = self._by_itself(index, unit, bits[index])
                unit.constant.values = unit.stored(coded.decoded())
                yield unit, _form(unit, coded), None
        if self._samples is None:
            return
        layers = [unit.layer for unit in units if id(unit.layer) in place and unit.layer is not None]
        samples = self._samples.take(_SAMPLES)
        for moments in staged_moments(model, layers, samples, stages=_STAGES, progress=self._progress):
            index = place[id(moments.layer)]
            bias = find_bias(moments.layer, shown)
            form = _rounded(units[index], moments, bits[index], bias)
            yield units[index], form, bias.constant if bias is not None else None

    def losses(self, model: Model, units: Sequence[Unit]) -> list[float]:
        """Return for each weight what the outputs lose when it alone is rounded to 4 bits; the model stays as it is."""
        assert self._samples is not None
        fitted, judged = self._samples.halves()
        judge, shown = OutputLoss(model, judged), {id(tensor) for tensor in model.graph.outputs}
        found = [0.0] * len(units)
        place = {id(unit.layer): index for index, unit in enumerate(units) if self._is_fitted(unit)}
        for index, unit in enumerate(units):
            if id(unit.layer) not in place:
                before = payload(unit.constant)
                unit.constant.values = unit.stored(self._by_itself(index, unit, MEASURED).decoded())
                found[index] = judge.of(model)
                unit.constant.values = before
        layers = [unit.layer for unit in units if id(unit.layer) in place and unit.layer is not None]
        for moments in layer_moments(model, layers, fitted.take(_SAMPLES), progress=self._progress):
            index = place[id(moments.layer)]
            bias = find_bias(moments.layer, shown)
            touched = [moments.layer.weight, *([bias.constant] if bias is not None else [])]
            originals = [payload(constant) for constant in touched]
            _rounded(units[index], moments, MEASURED, bias)
            found[index] = judge.of(model)
            for constant, before in zip(touched, originals, strict=True):
                constant.values = before
        return found

    def _is_fitted(self, unit: Unit) -> bool:
        return unit.layer is not None and self._samples is not None

    def _by_itself(self, index: int, unit: Unit, bits: int) -> Coded:
        key = index, bits
        if key not in self._alone:
            self._alone[key] = _coded(unit, None, bits)
        return self._alone[key]


def _rounded(unit: Unit, moments: LayerMoments, bits: int, bias: Bias | None) -> Form:
    """Put a layer's weight on a palette, in place, and let its bias make up for the mean.

    A large bias keeps the eleven significant bits of half precision, which is what the weights' errors leave of it.
    Few samples show correlations of inputs that other samples do not have, so the moments are blended with their
    diagonal.
    """
    second = moments.second if bias is None else moments.covariance
    blended = (1 - _BLEND) * second
    np.einsum("gkk->gk", blended)[...] = np.einsum("gkk->gk", second)
    matrix = unit.matrix()
    coded = _coded(unit, blended, bits)
    decoded = coded.decoded()
    if bias is not None:
        bias.shift(np.einsum("grk,gk->gr", matrix - decoded, moments.mean).ravel())
        if unit.scale is None and bias.constant.values.nbytes >= _LARGE_BIAS:
            bias.constant.values = _halved(bias.constant.values)
    unit.constant.values = unit.stored(decoded)
    return _form(unit, coded)


def _halved(values: np.ndarray) -> np.ndarray:
    """Return float32 values as half precision holds them, if it holds all."""
    with np.errstate(over="ignore"):
        narrow = values.astype(np.float16).astype(np.float32)
    return narrow if np.isfinite(narrow).all() else values


def _coded(unit: Unit, moment: np.ndarray | None, bits: int) -> Coded:
    if unit.scale is None:
        return shrink(unit.matrix(), moment, bits, sparse=unit.is_sparse)
    palette = fit_palette(unit.matrix(), moment, bits, unit.scale, whole=True)
    return Coded(palette.codes, palette.levels.astype(np.float32), unit.scale.astype(np.float32))


def _form(unit: Unit, coded: Coded) -> Form:
    bits = (len(coded.levels) - 1).bit_length()
    codes, scale = unit.stored(coded.codes), unit.stored_scale(coded.scale)
    if unit.is_sparse:
        inner = min(forms(coded.levels[codes]), key=lambda form: form.nbytes)
        return ScaledForm(f"{inner.kind} and scales", inner.nbytes + scale.nbytes, inner.opset, inner, scale)
    nbytes = packed_bytes(coded.codes.size, bits) + (coded.levels.nbytes if bits < 8 else 0) + coded.scale.nbytes
    return CodedForm(f"{bits}-bit codes", nbytes, 10, codes, coded.levels, scale)
