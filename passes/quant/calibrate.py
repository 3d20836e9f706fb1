"""From what was observed on the samples to the parameters of every stored tensor and corrected biases."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from graphopt.model import Model
from graphopt.observe import ChannelMean, Histogram, Observations, Observer, Statistic
from graphopt.passes.quant.placement import Placement, shared_parameters
from graphopt.passes.quant.ranges import Affine, RangeMethod, affine, choose_range
from graphopt.passes.quant.units import Unit
from graphopt.passes.quant.weights import QuantizedWeight


@dataclass(frozen=True)
class Calibration:
    """What is known about the tensors around the units.

    Attributes:
        observations: Statistics by tensor name.
        observed: Names of the tensors that have statistics and only finite values.
    """

    observations: Observations
    observed: frozenset[str]

    def usable(self, units: Iterable[Unit]) -> list[Unit]:
        """Return the units all of whose tensors were observed."""
        return [
            unit
            for unit in units
            if unit.output.name in self.observed and all(tensor.name in self.observed for tensor in unit.inputs)
        ]

    def sizes(self) -> dict[str, int]:
        """Return the number of elements of each tensor in the first sample."""
        return {name: int(np.prod(self.observations.shape(name))) for name in self.observed}

    def parameters(self, placement: Placement, units: Iterable[Unit], method: RangeMethod) -> dict[str, Affine]:
        """Return the parameters of every stored tensor."""
        bounds = {unit.output.name: unit.clamp_high for unit in units if unit.clamp is not None}
        own = {name: self._range(name, method, bounds.get(name)) for name in placement.stored}
        return {name: affine(low, high) for name, (low, high) in shared_parameters(placement, own).items()}

    def _range(self, name: str, method: RangeMethod, bound: float | None) -> tuple[float, float]:
        low, high = self.observations.range(name)
        low, high = choose_range(method, low, high, *self.observations.histogram(name))
        return (low, high) if bound is None else (max(low, 0.0), min(max(high, 0.0), bound))


def calibrate(model: Model, units: Iterable[Unit], observer: Observer) -> Calibration:
    """Observe every tensor that may be stored, in one run over the samples."""
    known = observer.observable(model)
    requests: dict[str, list[Statistic]] = {}
    for unit in units:
        for tensor in (*unit.inputs, unit.output):
            if tensor.name in known:
                requests.setdefault(tensor.name, [Histogram()])
        if unit.weight is not None and unit.inputs[0].name in known:
            _add(requests[unit.inputs[0].name], ChannelMean(channel_axis(unit)))
    found = observer.observe(model, requests)
    finite = frozenset(name for name in requests if found.nonfinite(name) == 0 and found.elements(name) > 0)
    return Calibration(found, finite)


def channel_axis(unit: Unit) -> int:
    """Return the axis of the input that the weight sums over."""
    return 1 if unit.node.op == "Conv" else -1


def bias_shift(unit: Unit, weight: QuantizedWeight, calibration: Calibration) -> np.ndarray:
    """Return what rounding the weight takes from the mean of each output, float64 [channels].

    The mean output changes by (W - W') E[x]; adding that to the bias restores it (bias correction, arXiv:1906.04721,
    section 4.2, with the mean input measured). At the border of a padded convolution it is an approximation.
    """
    assert unit.weight is not None
    name = unit.inputs[0].name
    mean = calibration.observations.mean(name, channel_axis(unit))
    error = np.asarray(unit.weight.values, np.float64) - weight.restored()
    if unit.node.op != "Conv":
        return np.asarray(mean @ np.moveaxis(error, weight.axis or 0, -1) if weight.axis != 0 else error @ mean)
    outputs, per_group = error.shape[:2]
    taps = error.reshape(outputs, per_group, -1).sum(axis=2)
    group = np.arange(outputs) * (len(mean) // per_group) // outputs
    return np.asarray(np.einsum("oi,oi->o", taps, mean.reshape(-1, per_group)[group]))


def _add(requests: list[Statistic], statistic: Statistic) -> None:
    if statistic not in requests:
        requests.append(statistic)
