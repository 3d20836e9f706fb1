"""Size mode: weights on palettes, layer after layer, each fitted to what the compressed layers before it hand on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs

from graphopt.biases import Bias, find_bias
from graphopt.compensate import output_loss
from graphopt.context import Context
from graphopt.layers import LinearLayer, linear_layers
from graphopt.model import Model
from graphopt.moments import LayerMoments, layer_moments
from graphopt.passes.pack.bits import packed_bytes
from graphopt.passes.pack.decoders import Draft
from graphopt.passes.pack.forms import Form
from graphopt.passes.pack.shrink import Coded, shrink
from graphopt.staged import staged_moments

_STAGES = 6  # times that moments are taken anew on the compressed prefix
_SMALL = 2**13  # elements; smaller weights are a small part of any file and keep 8 bits, as depthwise ones do
_SAMPLES = 48  # that moments rest on; more cost time and hardly change them
_LEAST_ALONE = 6  # bits of a weight whose inputs are not known


@dataclass(frozen=True, eq=False)
class CodedForm(Form):
    """Codes into shared levels (of 8 bits: whole numbers) times a scale a row: Gather or Cast, Mul.

    Attributes:
        codes: Index of the level of each element, uint8 in the weight's shape.
        levels: Values, float32 [2**bits].
        scale: Factors, float16 or float32, broadcastable to the weight.
        bias: What was shifted together with the weight, or None.
    """

    codes: np.ndarray
    levels: np.ndarray
    scale: np.ndarray
    bias: gs.Constant | None

    def build(self, draft: Draft) -> gs.Tensor:
        """Add the decoder to a draft and return the decoded tensor."""
        single = np.dtype(np.float32)
        if len(self.levels) == 256:
            whole = (self.codes.astype(np.int16) - 128).astype(np.int8)
            return draft.node(
                "Mul", [draft.cast(draft.stored("int8", whole), single), draft.stored("scale", self.scale)]
            )
        values = draft.reshape(draft.levels(self.codes, self.levels), self.codes.shape)
        return draft.node("Mul", [values, draft.cast(draft.stored("scale", self.scale), single)])


@dataclass(frozen=True)
class Budget:
    """How many bits each weight gets.

    Attributes:
        default: Bits of a large weight of a linear layer.
        chosen: Bits by name of the weight, where they differ.
    """

    default: int
    chosen: Mapping[str, int]

    def bits_of(self, layer: LinearLayer) -> int:
        """Return the bits of a layer's weight."""
        small = layer.groups > 1 or int(np.prod(layer.weight.shape)) < _SMALL
        return self.chosen.get(layer.weight.name, 8 if small else self.default)


def fitted_layers(model: Model, candidates: Sequence[gs.Constant]) -> list[LinearLayer]:
    """Return the layers whose weights are among the candidates, the first layer of each weight.

    The codes of a shared weight can follow only one of its users.
    """
    fitting = {id(constant) for constant in candidates if _fits(constant)}
    first: dict[int, LinearLayer] = {}
    for layer in linear_layers(model):
        if id(layer.weight) in fitting:
            first.setdefault(id(layer.weight), layer)
    return list(first.values())


def shrink_weights(
    model: Model, context: Context, budget: Budget, candidates: Sequence[gs.Constant]
) -> Iterator[tuple[gs.Constant, CodedForm]]:
    """Put float32 weights on palettes, in place, and yield each with its form.

    Linear layers are fitted to the moments of their inputs where there are samples, and their biases take up the mean
    of what is lost; other weights (embeddings, recurrent layers, bodies) are rounded by themselves, with a scale for
    each index of their first axes.
    """
    layers = fitted_layers(model, candidates)
    shown = {id(tensor) for tensor in model.graph.outputs}
    for layer, moments in _staged(model, layers, context):
        bias = find_bias(layer, shown) if moments is not None else None
        bits = budget.bits_of(layer)
        coded = _shrunk(layer, moments, bias, bits if moments is not None else max(bits, _LEAST_ALONE))
        yield layer.weight, _of_layer(layer, coded, bias.constant if bias is not None else None)
    done = {id(layer.weight) for layer in layers}
    for constant in candidates:
        if id(constant) not in done and _fits(constant):
            yield constant, _by_itself(constant, max(budget.default, _LEAST_ALONE))


def layer_losses(
    model: Model, context: Context, candidates: Sequence[gs.Constant], bits: int
) -> Iterator[tuple[LinearLayer, float]]:
    """Yield each layer with the share of its output's energy that it loses when its weights get so many bits."""
    shown = {id(tensor) for tensor in model.graph.outputs}
    assert context.samples is not None
    samples = context.samples.take(min(_SAMPLES, len(context.samples)))
    for moments in layer_moments(model, fitted_layers(model, candidates), samples, progress=context.progress):
        layer = moments.layer
        seen = moments.second if find_bias(layer, shown) is None else moments.covariance
        matrix = layer.matrix()
        diagonal = np.einsum("gkk->gk", seen)
        rounded = shrink(matrix, None, bits).decoded()
        lost = float(((matrix - rounded) ** 2 @ diagonal[..., None]).sum())
        energy = sum(float(output_loss(matrix[g], np.zeros(1), seen[g]).sum()) for g in range(layer.groups))
        yield layer, lost / energy if energy > 0 else 0.0


def _fits(constant: gs.Constant) -> bool:
    return bool(constant.dtype == np.float32 and len(constant.shape) > 1 and np.isfinite(constant.values).all())


def _shrunk(layer: LinearLayer, moments: LayerMoments | None, bias: Bias | None, bits: int) -> Coded:
    """Put a layer's weight on a palette, in place, and let its bias make up for the mean."""
    matrix = layer.matrix()
    if moments is None:
        coded = shrink(matrix, None, bits)
    else:
        coded = shrink(matrix, moments.second if bias is None else moments.covariance, bits)
    decoded = coded.decoded()
    if bias is not None and moments is not None:
        bias.shift(np.einsum("grk,gk->gr", matrix - decoded, moments.mean).ravel())
    layer.weight.values = layer.stored(decoded)
    return coded


def _staged(
    model: Model, layers: Sequence[LinearLayer], context: Context
) -> Iterator[tuple[LinearLayer, LayerMoments | None]]:
    """Yield the layers front to back; the moments of a stage see what the stages before it made of the model."""
    if context.samples is None:
        yield from ((layer, None) for layer in layers)
        return
    samples = context.samples.take(min(_SAMPLES, len(context.samples)))
    for moments in staged_moments(model, layers, samples, stages=_STAGES, progress=context.progress):
        yield moments.layer, moments


def _of_layer(layer: LinearLayer, coded: Coded, bias: gs.Constant | None) -> CodedForm:
    shape = tuple(layer.weight.shape)
    codes = coded.codes.reshape(layer.groups * layer.rows, -1)
    if layer.transposed:
        return _form(np.ascontiguousarray(codes.T), coded, (1, -1), bias)
    return _form(codes.reshape(shape), coded, (-1, *[1] * (len(shape) - 1)), bias)


def _by_itself(constant: gs.Constant, bits: int) -> CodedForm:
    """Code a weight of any other kind: a row is what the last axis holds."""
    shape = tuple(constant.shape)
    coded = shrink(np.asarray(constant.values, np.float64).reshape(1, -1, shape[-1]), None, bits)
    constant.values = coded.decoded().reshape(shape)
    return _form(coded.codes.reshape(shape), coded, (*shape[:-1], 1), None)


def _form(codes: np.ndarray, coded: Coded, scale_shape: tuple[int, ...], bias: gs.Constant | None) -> CodedForm:
    bits = (len(coded.levels) - 1).bit_length()
    nbytes = packed_bytes(codes.size, bits) + (coded.levels.nbytes if bits < 8 else 0) + coded.scale.nbytes
    return CodedForm(f"{bits}-bit codes", nbytes, 10, codes, coded.levels, coded.scale.reshape(scale_shape), bias)
