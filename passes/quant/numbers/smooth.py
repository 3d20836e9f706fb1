"""Channels that reach far are divided before they are rounded, and the weights that read them multiplied.

    x W   becomes   (x / s) (diag(s) W)

One scale for a whole tensor must cover its widest channel. In transformers a few channels behind a normalization reach
ten times as far as the others, which are then left with a tenth of the steps. The factors are powers of two, so that
the float model gives the same numbers; they cost a Mul, and are chosen by the error that both roundings are expected to
cause: with the steps ``d`` of the input and ``e_j`` of output j's weights, and the mean square ``p`` of an input,

    d^2 / 12  sum_c s_c^2 |W_c|^2  +  K p sum_j e_j^2 / 12

SmoothQuant (Xiao et al., arXiv:2211.10438) lets the normalization take the factors up; where its output is also added
to a residual stream, as in BERT, it cannot.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs

from graphopt.ir.exporter import unique_name
from graphopt.ir.graph import Constant, Node, Variable, tensor_names
from graphopt.model import Model
from graphopt.passes.quant.nodes.units import Unit
from graphopt.passes.quant.numbers.calibrate import Calibration
from graphopt.passes.quant.numbers.ranges import LEVELS
from graphopt.passes.quant.numbers.weights import LIMIT

_ENDS = (0.5, 0.75, 0.9, 0.95, 0.98, 0.99, 0.995)  # quantiles of the channels' extents that larger ones are cut down to
_WORTH = 0.75  # of the expected error at most must remain, or the Mul is not worth its time


@dataclass(frozen=True)
class Smoothing:
    """What was done to one tensor.

    Attributes:
        tensor: Its name.
        smooth: Name of what its readers read instead.
        readers: Positions of these readers.
        factors: What channels are divided by, float32 [channels].
    """

    tensor: str
    smooth: str
    readers: tuple[int, ...]
    factors: np.ndarray


def smooth(model: Model, units: Sequence[Unit], calibration: Calibration) -> list[Smoothing]:
    """Smooth the tensors that products among some units read, and that gain by it.

    Args:
        model: Edited in place: a Mul for each tensor is appended, and no node changes its position.
        units: Units of this very model.
        calibration: What is known about the tensors.
    """
    taken, done = tensor_names(model.graph), []
    for name, readers in _groups(units).items():
        low, high = calibration.observations.channel_range(name, -1)
        weight = np.concatenate([_matrix(unit) for unit in readers], axis=1)
        factors = smoothing_factors(low, high, weight, _power(*calibration.observations.histogram(name)))
        if np.any(factors > 1):
            done.append(_apply(model, readers, factors, taken))
    return done


def smoothing_factors(low: np.ndarray, high: np.ndarray, weight: np.ndarray, power: float) -> np.ndarray:
    """Return what to divide each channel by: powers of two of 1 and more, all 1 where it is not worth it.

    Args:
        low: Smallest value of each channel, [channels].
        high: Largest value of each channel, [channels].
        weight: All that reads the channels, [channels, outputs].
        power: Mean square of an element.

    Returns:
        float32 [channels].
    """
    reach = np.maximum(np.maximum(-low, high), np.finfo(np.float32).tiny)
    norms, extents = np.square(weight).sum(axis=1), np.abs(weight)

    def cost(factors: np.ndarray) -> float:
        step = (max(float((high / factors).max()), 0.0) - min(float((low / factors).min()), 0.0)) / LEVELS
        steps = (extents * factors[:, None]).max(axis=0) / LIMIT
        return float(step**2 * (factors**2 @ norms) + len(reach) * power * (steps @ steps))

    plain = np.ones(len(reach))
    ends = (float(np.quantile(reach, part)) for part in _ENDS)
    candidates = [np.exp2(np.ceil(np.log2(np.maximum(reach / end, 1.0)))) for end in ends if end > 0]
    best = min(candidates, key=cost, default=plain)
    return np.asarray(best if cost(best) < _WORTH * cost(plain) else plain, np.float32)


def undo(model: Model, smoothings: Iterable[Smoothing], kept: frozenset[int]) -> None:
    """Take back the smoothings none of whose readers run in integers.

    Args:
        model: A copy of the smoothed model; edited in place.
        smoothings: What was done.
        kept: Positions of the nodes that run in integers.
    """
    for item in smoothings:
        if not kept.isdisjoint(item.readers):
            continue
        nodes = [model.graph.nodes[position] for position in item.readers]
        (multiply,) = nodes[0].inputs[0].inputs
        for node in nodes:
            weight = node.inputs[1]
            node.inputs[0] = multiply.inputs[0]
            node.inputs[1] = Constant(weight.name, _scaled(node, weight.values, 1 / item.factors))
        multiply.inputs.clear()
        multiply.outputs.clear()


def _power(counts: np.ndarray, edges: np.ndarray) -> float:
    """Return the mean square of the values of a histogram."""
    return float(np.square((edges[1:] + edges[:-1]) / 2) @ counts / max(float(counts.sum()), 1.0))


def _groups(units: Iterable[Unit]) -> dict[str, list[Unit]]:
    """Return the products that read each tensor, without those whose weight something else reads as well."""
    groups: dict[str, list[Unit]] = {}
    for unit in units:
        alone = unit.weight is not None and unit.node.op in ("MatMul", "Gemm") and len(unit.weight.outputs) == 1
        if alone:
            groups.setdefault(unit.inputs[0].name, []).append(unit)
    return groups


def _apply(model: Model, readers: Sequence[Unit], factors: np.ndarray, taken: set[str]) -> Smoothing:
    tensor = readers[0].inputs[0]
    divided = Variable(unique_name(f"{tensor.name}_smooth", taken), dtype=tensor.dtype, shape=tensor.shape)
    inverse = Constant(unique_name(f"{tensor.name}_factors", taken), 1 / factors)
    model.graph.nodes.append(Node("Mul", f"{divided.name}/Mul", {}, [tensor, inverse], [divided]))
    for unit in readers:
        weight = unit.node.inputs[1]
        name = unique_name(f"{weight.name}_smooth", taken)
        unit.node.inputs[0] = divided
        unit.node.inputs[1] = Constant(name, _scaled(unit.node, weight.values, factors))
    return Smoothing(tensor.name, divided.name, tuple(unit.position for unit in readers), factors)


def _scaled(node: gs.Node, weight: np.ndarray, factors: np.ndarray) -> np.ndarray:
    """Return a weight with each input multiplied by its factor."""
    turned = node.op == "Gemm" and node.attrs.get("transB", 0)
    return np.asarray(weight * (factors if turned else factors[:, None]), np.float32)


def _matrix(unit: Unit) -> np.ndarray:
    """Return the weight of a product as [inputs, outputs]."""
    assert unit.weight is not None
    values: np.ndarray = unit.weight.values
    return values if unit.weight_axis == 1 else values.T
