"""Size mode: weights on palettes, layer after layer, each fitted to what the compressed layers before it hand on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs

from graphopt.context import Context
from graphopt.layers import LinearLayer, linear_layers
from graphopt.model import Model
from graphopt.moments import layer_moments
from graphopt.passes.pack.bits import packed_bytes
from graphopt.passes.pack.decoders import Draft
from graphopt.passes.pack.forms import Form
from graphopt.passes.pack.shrink import Coded, shrink

_STAGES = 6  # times that moments are taken anew on the compressed prefix
_SMALL = 2**13  # elements; smaller weights are a small part of any file and keep 8 bits, as depthwise ones do
_SAMPLES = 48  # that moments rest on; more cost time and hardly change them


@dataclass(frozen=True, eq=False)
class CodedForm(Form):
    """Codes into shared levels, times a scale a row: Gather, Mul.

    Attributes:
        codes: Index of the level of each element, uint8 in the weight's shape.
        levels: Values, float32 [2**bits].
        scale: Factors, float16, broadcastable to the weight.
    """

    codes: np.ndarray
    levels: np.ndarray
    scale: np.ndarray

    def build(self, draft: Draft) -> gs.Tensor:
        """Add the decoder to a draft and return the decoded tensor."""
        values = draft.reshape(draft.levels(self.codes, self.levels), self.codes.shape)
        scale = draft.cast(draft.stored("scale", self.scale), np.dtype(np.float32))
        return draft.node("Mul", [values, scale])


def shrink_weights(
    model: Model, context: Context, bits: int, candidates: Sequence[gs.Constant]
) -> Iterator[tuple[gs.Constant, CodedForm]]:
    """Put float32 weights on palettes, in place, and yield each with its form.

    Linear layers are fitted to the second moments of their inputs where there are samples; other weights (embeddings,
    recurrent layers, bodies) by themselves, with a scale for each index of their first axes.
    """
    fitting = {id(constant) for constant in candidates if constant.dtype == np.float32 and len(constant.shape) > 1}
    layers = _distinct(layer for layer in linear_layers(model) if id(layer.weight) in fitting)
    done: set[int] = set()
    for layer, moment in _staged(model, layers, context):
        coded = shrink(layer.matrix(), moment, _bits_of(layer, bits))
        done.add(id(layer.weight))
        layer.weight.values = layer.stored(coded.decoded())
        yield layer.weight, _of_layer(layer, coded)
    for constant in candidates:
        if id(constant) in fitting and id(constant) not in done:
            yield constant, _by_itself(constant, max(bits, 6))


def _distinct(layers: Iterator[LinearLayer]) -> list[LinearLayer]:
    """Keep the first layer of each weight: the codes of a shared weight can follow only one of its users."""
    first: dict[int, LinearLayer] = {}
    for layer in layers:
        first.setdefault(id(layer.weight), layer)
    return list(first.values())


def _bits_of(layer: LinearLayer, bits: int) -> int:
    return 8 if layer.groups > 1 or np.prod(layer.weight.shape) < _SMALL else bits


def _staged(
    model: Model, layers: Sequence[LinearLayer], context: Context
) -> Iterator[tuple[LinearLayer, np.ndarray | None]]:
    """Yield the layers front to back; the moments of a stage see what the stages before it made of the model."""
    if context.samples is None:
        yield from ((layer, None) for layer in layers)
        return
    samples = context.samples.take(min(_SAMPLES, len(context.samples)))
    for stage in range(_STAGES):
        part = layers[stage * len(layers) // _STAGES : (stage + 1) * len(layers) // _STAGES]
        yield from layer_moments(model, part, samples, progress=context.progress)


def _of_layer(layer: LinearLayer, coded: Coded) -> CodedForm:
    shape = tuple(layer.weight.shape)
    codes = coded.codes.reshape(layer.groups * layer.rows, -1)
    if layer.transposed:
        return _form(np.ascontiguousarray(codes.T), coded, (1, -1))
    return _form(codes.reshape(shape), coded, (-1, *[1] * (len(shape) - 1)))


def _by_itself(constant: gs.Constant, bits: int) -> CodedForm:
    """Code a weight of any other kind: a row is what the last axis holds."""
    shape = tuple(constant.shape)
    coded = shrink(np.asarray(constant.values, np.float64).reshape(1, -1, shape[-1]), None, bits)
    constant.values = coded.decoded().reshape(shape)
    return _form(coded.codes.reshape(shape), coded, (*shape[:-1], 1))


def _form(codes: np.ndarray, coded: Coded, scale_shape: tuple[int, ...]) -> CodedForm:
    bits = (len(coded.levels) - 1).bit_length()
    nbytes = packed_bytes(codes.size, bits) + coded.levels.nbytes + coded.scale.nbytes
    return CodedForm(f"{bits}-bit codes", nbytes, 10, codes, coded.levels, coded.scale.reshape(scale_shape))
