"""Weight sharing inside a weight: few distinct values, which codes can stand for."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import onnx_graphsurgeon as gs

from graphopt.base import Skip
from graphopt.biases import find_bias
from graphopt.compensate.magnitude import magnitude
from graphopt.compensate.palette import fit_palette
from graphopt.context import Context
from graphopt.ir.graph import constants, walk_graphs
from graphopt.layers import LinearLayer, linear_layers
from graphopt.model import Model
from graphopt.moments import LayerMoments
from graphopt.staged import staged_moments

_LEAST = 1024  # elements; the levels and codes of smaller weights save next to nothing
_STAGES = 12  # times that moments are taken anew on what the layers before have become
_SAMPLES = 96  # that moments rest on
_TRUST = 0.7  # in what inputs have to do with each other: few samples show correlations that others do not have
_PROBED = 4096  # elements that are looked at before all are


def share_values(model: Model, context: Context, bits: int) -> tuple[int, list[Skip]]:
    """Give each large float weight no more than 2**bits distinct values, in place.

    The weights of linear layers are fitted to the moments of their inputs, front to back, and their biases take up the
    mean of what is lost. Others, and all without samples, are fitted by themselves, before them.

    Args:
        model: Edited in place.
        context: Samples and progress.
        bits: 1 to 8.

    Returns:
        How many weights were changed, and those that were left alone, with the reasons.
    """
    shown = {id(tensor) for scope in walk_graphs(model.graph) for tensor in scope.outputs}
    chosen, skips = [], []
    for constant in constants(model.graph):
        if constant.dtype != np.float32 or len(constant.shape) < 2 or int(np.prod(constant.shape)) < _LEAST:
            continue
        reason = _reason(constant, shown, 2**bits)
        if reason:
            skips.append(Skip(constant.name, reason))
        else:
            chosen.append(constant)
    layers = _layers(model, chosen) if context.samples is not None and len(context.samples) else {}
    for constant in chosen:
        if id(constant) not in layers:
            constant.values = _fitted(constant.values.reshape(1, 1, -1), None, bits).reshape(constant.shape)
    if layers and context.samples is not None:
        samples = context.samples.take(_SAMPLES)
        stream = staged_moments(model, list(layers.values()), samples, stages=_STAGES, progress=context.progress)
        for moments in stream:
            _share_layer(moments, bits, shown)
    return len(chosen), skips


def _reason(constant: gs.Constant, shown: set[int], count: int) -> str:
    """Return why a weight is left alone, or an empty text."""
    if id(constant) in shown:
        return "it is a graph output"
    values = constant.values.ravel()
    if not np.isfinite(values).all():
        return "it holds NaN or infinities"
    if len(np.unique(values[:_PROBED])) <= count and len(np.unique(values)) <= count:
        return f"it has no more than {count} distinct values"
    return ""


def _layers(model: Model, chosen: Iterable[gs.Constant]) -> dict[int, LinearLayer]:
    """Return the first layer that uses each weight, by id of the weight, in graph order."""
    wanted = {id(constant) for constant in chosen}
    found: dict[int, LinearLayer] = {}
    for layer in linear_layers(model):
        if id(layer.weight) in wanted:
            found.setdefault(id(layer.weight), layer)
    return found


def _share_layer(moments: LayerMoments, bits: int, shown: set[int]) -> None:
    layer = moments.layer
    bias = find_bias(layer, shown)
    second = moments.second if bias is None else moments.covariance
    blended = _TRUST * second
    np.einsum("gkk->gk", blended)[...] = np.einsum("gkk->gk", second)
    matrix = layer.matrix()
    shared = _fitted(matrix, blended, bits)
    if bias is not None:
        bias.shift(np.einsum("grk,gk->gr", matrix - shared, moments.mean).ravel())
    layer.weight.values = layer.stored(shared)


def _fitted(matrix: np.ndarray, moment: np.ndarray | None, bits: int) -> np.ndarray:
    """Return weights [groups, rows, inputs] with few distinct values, float32."""
    unit = magnitude(matrix)
    palette = fit_palette(matrix, moment, bits, np.full((*matrix.shape[:2], 1), unit))
    return np.asarray((palette.levels * unit).astype(np.float32)[palette.codes])
