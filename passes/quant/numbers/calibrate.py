"""From what was observed on the samples to the parameters of every stored tensor and corrected biases."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace

import numpy as np

from graphopt.ir.clean import clean
from graphopt.model import Model
from graphopt.observe import ChannelMean, ChannelRange, Histogram, Observations, Observer, Statistic
from graphopt.passes.quant.nodes.placement import Placement, shared_parameters
from graphopt.passes.quant.nodes.units import Unit
from graphopt.passes.quant.numbers.ranges import Affine, RangeMethod, affine, choose_range
from graphopt.passes.quant.numbers.weights import QuantizedWeight


@dataclass(frozen=True)
class Calibration:
    """What is known about the tensors around the units.

    Attributes:
        observations: Statistics by tensor name.
        observed: Names of the tensors that have statistics and only finite values.
        observer: Who found them.
        signed: Whether activations become signed integers.
        chosen: How the range of a tensor is chosen where it is not as all others'.
    """

    observations: Observations
    observed: frozenset[str]
    observer: Observer
    signed: bool = False
    chosen: dict[str, RangeMethod] = field(default_factory=dict)
    _ranges: dict[tuple[str, RangeMethod], tuple[float, float]] = field(default_factory=dict)

    def usable(self, units: Iterable[Unit]) -> list[Unit]:
        """Return the units all of whose tensors were observed."""
        return [
            unit
            for unit in units
            if unit.output.name in self.observed and all(tensor.name in self.observed for tensor in unit.inputs)
        ]

    def refusal(self, unit: Unit) -> str:
        """Return why a unit is not usable."""
        seen = [tensor.name for tensor in (*unit.inputs, unit.output) if tensor.name not in self.observed]
        known = [name for name in seen if name in self.observations.shapes]
        spoiled = [name for name in known if self.observations.nonfinite(name)]
        if not spoiled:
            return f"no sample tells what '{seen[0]}' holds"
        count, whole = self.observations.nonfinite(spoiled[0]), self.observations.elements(spoiled[0])
        return f"on the samples {count} of {whole} elements of '{spoiled[0]}' are NaN or infinite: it has no range"

    def sizes(self) -> dict[str, int]:
        """Return the number of elements of each tensor in the first sample."""
        return {name: int(np.prod(self.observations.shape(name))) for name in self.observed}

    def parameters(
        self, placement: Placement, units: Iterable[Unit], method: RangeMethod, only: str = ""
    ) -> dict[str, Affine]:
        """Return the parameters of every stored tensor, or only of those that share them with one."""
        if only:
            placement = placement.of_group(only)
        bounds = {unit.output.name: unit.clamp_high for unit in units if unit.clamp is not None}
        own = {name: self.range(name, self.chosen.get(name, method), bounds.get(name)) for name in placement.stored}
        shared = shared_parameters(placement, own)
        return {name: affine(low, high, signed=self.signed) for name, (low, high) in shared.items()}

    def range(self, name: str, method: RangeMethod, bound: float | None) -> tuple[float, float]:
        """Return the range that a method covers.

        Args:
            name: Of the tensor.
            method: Criterion.
            bound: Upper bound of a clamp that the rounding replaces; None without one.
        """
        if (name, method) not in self._ranges:
            extent = self.observations.range(name)
            histogram = self.observations.histogram(name)
            self._ranges[name, method] = choose_range(method, *extent, *histogram, symmetric=self.signed)
        low, high = self._ranges[name, method]
        return (low, high) if bound is None else (max(low, 0.0), min(max(high, 0.0), bound))


def calibrate(model: Model, units: Iterable[Unit], observer: Observer, *, signed: bool = False) -> Calibration:
    """Observe every tensor that may be stored, in one run over the samples."""
    known = observer.observable(model)
    requests: dict[str, list[Statistic]] = {}
    for unit in units:
        for tensor in (*unit.inputs, unit.output):
            if tensor.name in known:
                requests.setdefault(tensor.name, [Histogram()])
        if unit.weight is not None and unit.inputs[0].name in known:
            _add(requests[unit.inputs[0].name], ChannelMean(channel_axis(unit)))
            if unit.node.op != "Conv":  # for `smooth`
                _add(requests[unit.inputs[0].name], ChannelRange(-1))
    found = observer.observe(model, requests)
    finite = frozenset(name for name in requests if found.nonfinite(name) == 0 and found.elements(name) > 0)
    return Calibration(found, finite, observer, signed)


def extended(calibration: Calibration, model: Model, tensors: Iterable[str]) -> Calibration:
    """Return what is known together with statistics of tensors that products read along their last axis.

    Args:
        calibration: What is known.
        model: Has these tensors; its nodes may be in any order.
        tensors: Their names.

    Raises:
        ModelError: The model does not run on a sample.
    """
    known, ordered = calibration.observations, model.copy()
    clean(ordered.graph)
    more = calibration.observer.observe(ordered, {name: [Histogram(), ChannelMean(-1)] for name in tensors})
    together = Observations(known.samples, {**known.shapes, **more.shapes}, {**known.sums, **more.sums})
    return replace(calibration, observations=together, observed=calibration.observed | more.shapes.keys())


def channel_axis(unit: Unit) -> int:
    """Return the axis of the input that the weight sums over."""
    return 1 if unit.node.op == "Conv" else -1


def bias_shift(unit: Unit, weight: QuantizedWeight, calibration: Calibration) -> np.ndarray:
    """Return what rounding the weight takes from the mean of each output, float64 [channels].

    The mean output changes by (W - W') E[x]; adding that to the bias restores it (bias correction, arXiv:1906.04721,
    section 4.2, with the mean input measured). At the border of a padded convolution it is an approximation.
    """
    assert unit.weight is not None
    mean = calibration.observations.mean(unit.inputs[0].name, channel_axis(unit))
    return _response(unit, np.asarray(unit.weight.values, np.float64) - weight.restored(), mean)


def _response(unit: Unit, weight: np.ndarray, mean: np.ndarray) -> np.ndarray:
    """Return the mean output of a unit with a given weight for a mean input, [channels]."""
    if unit.node.op != "Conv":
        return np.asarray(weight @ mean if unit.weight_axis == 0 else mean @ weight)
    outputs, per_group = weight.shape[:2]
    taps = weight.reshape(outputs, per_group, -1).sum(axis=2)
    group = np.arange(outputs) * (len(mean) // per_group) // outputs
    return np.asarray(np.einsum("oi,oi->o", taps, mean.reshape(-1, per_group)[group]))


def _add(requests: list[Statistic], statistic: Statistic) -> None:
    if statistic not in requests:
        requests.append(statistic)
