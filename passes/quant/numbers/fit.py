"""Integers of a weight chosen so that the outputs of its layer change least, not the weights themselves.

    minimize  tr((W - Q) H (W - Q)^T)   over integer multiples of the scales, with no pair that saturates

``H`` is the covariance of what the layer reads (the second moment where no bias takes up the mean), computed inside
ONNX Runtime. From the nearest integers, coordinate descent (`graphopt.compensate`) lowers the error of each row or
leaves the row alone; where bounding the pairs takes the gain back, the row keeps its nearest integers. The float
model's inputs serve for all layers: in 8 bits those of the compressed one have nearly the same covariance.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from graphopt.compensate import UniformGrid, coordinate_descent, damped
from graphopt.layers import linear_layer
from graphopt.model import Model
from graphopt.moments import LayerMoments, layer_moments
from graphopt.passes.quant.nodes.units import Unit
from graphopt.passes.quant.numbers.store import WeightStore, weight_key
from graphopt.passes.quant.numbers.weights import LIMIT, QuantizedWeight, bounded
from graphopt.samples import Samples

_SAMPLES = 16  # that moments rest on
_WIDEST = 2048  # inputs of a layer; wider ones take minutes
_SWEEPS = 2


def fit_weights(
    model: Model, units: Iterable[Unit], store: WeightStore, samples: Samples
) -> dict[tuple[str, int, int], QuantizedWeight]:
    """Return the fitted weights of units, by `weight_key`; a weight that several share is fitted to the first.

    Args:
        model: The float model; stays as it is.
        units: Of this model, with weights.
        store: Their nearest integers.
        samples: What the layers read.

    Raises:
        ModelError: The model does not run on a sample.
    """
    chosen: dict[tuple[str, int, int], Unit] = {}
    for unit in units:
        layer = linear_layer(unit.node)
        if layer is not None and layer.inputs <= _WIDEST:
            chosen.setdefault(weight_key(unit), unit)
    layers = {id(unit.node): (key, unit) for key, unit in chosen.items()}
    wanted = [layer for unit in chosen.values() if (layer := linear_layer(unit.node)) is not None]
    found: dict[tuple[str, int, int], QuantizedWeight] = {}
    for moments in layer_moments(model, wanted, samples.take(min(_SAMPLES, len(samples)))):
        key, unit = layers[id(moments.layer.node)]
        weight = store.weight(unit)
        if weight.axis is not None:
            found[key] = _fitted(moments, weight, has_bias=unit.node.op != "MatMul", pairs=store.pairs)
    return found


def _fitted(moments: LayerMoments, weight: QuantizedWeight, *, has_bias: bool, pairs: bool) -> QuantizedWeight:
    layer, axis = moments.layer, weight.axis or 0
    moment = _shrunk(damped(moments.covariance if has_bias else moments.second), moments.count)
    target, start = layer.matrix(), layer.matrix(weight.restored())
    scale = np.asarray(weight.scale, np.float64).reshape(layer.groups, layer.rows, 1)
    grid = UniformGrid(scale, -LIMIT, LIMIT, layer.inputs)
    values = coordinate_descent(target, start, moment.astype(np.float32), grid, sweeps=_SWEEPS)
    codes = layer.stored(np.rint(values / scale)).astype(np.int8)
    if pairs:
        codes = bounded(codes, axis, layer.groups)
    fitted = QuantizedWeight(codes, weight.scale, axis)
    before, after = (_losses(target - layer.matrix(item.restored()), moment) for item in (weight, fitted))
    better = np.expand_dims(after < before, [index for index in range(codes.ndim) if index != axis])
    return QuantizedWeight(np.where(better, codes, weight.values), weight.scale, axis)


def _shrunk(moment: np.ndarray, count: int) -> np.ndarray:
    """Return moments with what lies off the diagonal taken back as far as there are few positions to know it from."""
    inputs = moment.shape[-1]
    diagonal = np.einsum("gkk->gk", moment)[:, :, None] * np.eye(inputs)
    share = inputs / (inputs + count)
    shrunk: np.ndarray = (1 - share) * moment + share * diagonal
    return shrunk


def _losses(error: np.ndarray, moment: np.ndarray) -> np.ndarray:
    """Return the mean squared error of each output, [groups * rows]."""
    losses: np.ndarray = np.einsum("grk,grk->gr", error @ moment, error)
    return losses.ravel()
