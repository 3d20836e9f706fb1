"""Size mode: weights on palettes, layer after layer, each fitted to what the compressed layers before it hand on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs

from graphopt.context import Context
from graphopt.ir.graph import constants, payload_bytes
from graphopt.layers import LinearLayer, linear_layers
from graphopt.model import Model
from graphopt.moments import layer_moments
from graphopt.passes.pack.shrink import Coded, shrink

_STAGES = 6  # times that moments are taken anew on the compressed prefix
_SMALL = 2**13  # elements; smaller weights are a small part of any file and keep 8 bits, as depthwise ones do
_SAMPLES = 48  # that moments rest on; more cost time and hardly change them


@dataclass(frozen=True)
class CodedWeight:
    """A weight of the graph and its codes, in the shape of the weight.

    Attributes:
        constant: The weight; it already holds the decoded values.
        codes: Index of the level of each element, uint8 in the weight's shape.
        bits: Bits of a code.
        levels: Values, float32 [2**bits].
        scale: Factors, broadcastable to the weight.
    """

    constant: gs.Constant
    codes: np.ndarray
    bits: int
    levels: np.ndarray
    scale: np.ndarray


def shrink_weights(model: Model, context: Context, bits: int, min_bytes: int) -> Iterator[CodedWeight]:
    """Put every large float32 weight on a palette, in place, and yield each with its codes.

    Linear layers are fitted to the second moments of their inputs where there are samples; other weights (embeddings,
    recurrent layers, bodies) by themselves, with a scale for each index of their first axes.
    """
    layers = _distinct(layer for layer in linear_layers(model) if _fits(layer.weight, min_bytes))
    done: set[int] = set()
    for layer, moment in _staged(model, layers, context):
        coded = shrink(layer.matrix(), moment, _bits_of(layer, bits))
        done.add(id(layer.weight))
        layer.weight.values = layer.stored(coded.decoded())
        yield _of_layer(layer, coded, _bits_of(layer, bits))
    for constant in constants(model.graph):
        if id(constant) not in done and _fits(constant, min_bytes):
            yield _by_itself(constant, max(bits, 6))


def _fits(constant: gs.Constant, min_bytes: int) -> bool:
    return constant.dtype == np.float32 and len(constant.shape) > 1 and payload_bytes(constant) >= min_bytes


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


def _of_layer(layer: LinearLayer, coded: Coded, bits: int) -> CodedWeight:
    shape = tuple(layer.weight.shape)
    codes = coded.codes.reshape(layer.groups * layer.rows, -1)
    if layer.transposed:
        return CodedWeight(layer.weight, np.ascontiguousarray(codes.T), bits, coded.levels, coded.scale.reshape(1, -1))
    scale = coded.scale.reshape(-1, *[1] * (len(shape) - 1))
    return CodedWeight(layer.weight, codes.reshape(shape), bits, coded.levels, scale)


def _by_itself(constant: gs.Constant, bits: int) -> CodedWeight:
    """Code a weight of any other kind: a row is what the last axis holds."""
    shape = tuple(constant.shape)
    coded = shrink(np.asarray(constant.values, np.float64).reshape(1, -1, shape[-1]), None, bits)
    constant.values = coded.decoded().reshape(shape)
    return CodedWeight(constant, coded.codes.reshape(shape), bits, coded.levels, coded.scale.reshape(*shape[:-1], 1))
