"""How much of a unit's output is lost by its integers, from what was observed alone.

Nothing is run: the errors of rounding weight, inputs and output are taken as independent noise, and set against the
energy of the output. It ranks units well enough to decide which to leave float first; the limit itself is always
measured.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from graphopt.passes.quant.calibrate import Calibration
from graphopt.passes.quant.ranges import Affine, squared_error
from graphopt.passes.quant.units import Unit
from graphopt.passes.quant.weights import QuantizedWeight

_TINY = 1e-30


def unit_noise(
    unit: Unit, weight: QuantizedWeight | None, calibration: Calibration, parameters: Mapping[str, Affine]
) -> float:
    """Return noise over signal at the output of a unit, a fraction of energy.

    Args:
        unit: The unit.
        weight: Its integer weight, if it has one.
        calibration: Statistics of its tensors.
        parameters: Of its stored tensors; an output that stays float adds no noise of its own.
    """
    output = unit.output.name
    signal = max(_energy(calibration, output), _TINY)
    noise = _rounding(calibration, output, parameters[output]) if output in parameters else 0.0
    if weight is not None and unit.weight is not None:
        noise += _weighted_noise(unit, weight, calibration, parameters)
    else:
        inputs = [name for name in (tensor.name for tensor in unit.inputs) if name in parameters]
        relative = [
            _rounding(calibration, name, parameters[name]) / max(_energy(calibration, name), _TINY) for name in inputs
        ]
        noise += signal * sum(relative) if unit.kind in ("mul", "attention") else 0.0
    return noise / signal


def _weighted_noise(
    unit: Unit, weight: QuantizedWeight, calibration: Calibration, parameters: Mapping[str, Affine]
) -> float:
    """Mean over outputs of sum(dW^2) E[x^2] + sum(W^2) E[dx^2]."""
    assert unit.weight is not None
    name = unit.inputs[0].name
    real = np.asarray(unit.weight.values, np.float64)
    outputs = real.shape[weight.axis or 0]
    lost = float(np.sum((real - weight.restored()) ** 2)) / outputs
    kept = float(np.sum(real**2)) / outputs
    return float(lost * _energy(calibration, name) + kept * _rounding(calibration, name, parameters[name]))


def _energy(calibration: Calibration, name: str) -> float:
    counts, edges = calibration.observations.histogram(name)
    centers = (edges[1:] + edges[:-1]) / 2
    return float(np.sum(counts * centers**2) / max(float(np.sum(counts)), 1.0))


def _rounding(calibration: Calibration, name: str, parameters: Affine) -> float:
    return squared_error(parameters.low, parameters.high, *calibration.observations.histogram(name))
