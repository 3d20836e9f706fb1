"""Nodes that reduce a tensor inside the runtime, and what is done with their results.

A tensor is read as float32, whatever its type. Its smallest and largest values and its sum are computed always: the
reductions of ONNX Runtime pass over most NaN, but a sum is finite only if all elements are. A tensor that is found to
have others is probed again with these masked, which costs more.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from graphopt.observe.statistics import ChannelMean, ChannelRange, Histogram, Range, SecondMoment, Statistic
from graphopt.observe.sums import ChannelExtent, Counts, Extent, Sum, WeightedSum
from graphopt.observe.wiring import Wiring

MASKING_OPSET = 9  # the first with Where
_STRIDED_OPSET = 10  # the first whose Slice takes steps
_MOST = 16384  # elements of a tensor that a histogram looks at per sample; of larger ones, at least a third of it
_FLOAT = onnx.TensorProto.FLOAT
_END = 2**63 - 1

Results = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Probe:
    """Where to find what about a tensor in the results of a run.

    Attributes:
        tensor: Name of the tensor.
        masked: Whether NaN and infinite elements are left out.
        outputs: Names of outputs for each statistic.
        shape: Name of the output with the tensor's shape.
    """

    tensor: str
    masked: bool
    shape: str
    outputs: dict[Statistic, tuple[str, ...]] = field(default_factory=dict)

    @property
    def names(self) -> list[str]:
        """All outputs."""
        return [self.shape, *(name for names in self.outputs.values() for name in names)]

    def read_shape(self, results: Results) -> tuple[int, ...]:
        """Return the tensor's shape in this sample."""
        return tuple(int(size) for size in results[self.shape])

    def read(self, results: Results, sums: Mapping[Statistic, Sum]) -> bool:
        """Add the results of a run to the sums of the tensor's statistics.

        Returns:
            False if there were NaN or infinite elements which the probe does not mask; the sample is left out then.

        Raises:
            ValueError: The tensor had as many channels in this sample as in none before.
        """
        shape = self.read_shape(results)
        if not math.prod(shape):
            return True
        values = {statistic: [results[name] for name in names] for statistic, names in self.outputs.items()}
        extent = _extent(values[Range()], math.prod(shape), masked=self.masked)
        for held in sums.values():
            if isinstance(held, Extent):
                held.include(extent)
        if extent.nonfinite and not self.masked:
            return False
        for statistic, held in sums.items():
            if isinstance(statistic, Histogram) and isinstance(held, Counts):
                some = values[statistic][0]
                held.add(some[np.isfinite(some)] if self.masked else some, extent.elements / some.size)
            elif isinstance(held, WeightedSum | ChannelExtent):
                self._add_channels(held, statistic, values[statistic], shape)
        return True

    def _add_channels(
        self, held: WeightedSum | ChannelExtent, statistic: Statistic, values: list[np.ndarray], shape: tuple[int, ...]
    ) -> None:
        count = math.prod(shape) / shape[statistic.axis if isinstance(statistic, ChannelMean) else -1]
        total = values[0].astype(np.float64)
        try:
            if isinstance(held, ChannelExtent):
                held.include(total, values[1].astype(np.float64))
            elif isinstance(statistic, SecondMoment):
                held.add((total + total.T) / 2, float(values[1]) if self.masked else count)
            else:
                held.add(total * count, values[1].astype(np.float64) * count if self.masked else count)
        except ValueError as error:
            raise ValueError(f"{statistic} of tensor '{self.tensor}' has {error} in another sample") from error


def new_sum(statistic: Statistic) -> Sum:
    """Return the sum of a statistic over no samples."""
    if isinstance(statistic, Range):
        return Extent()
    if isinstance(statistic, ChannelRange):
        return ChannelExtent()
    return Counts(statistic.bins) if isinstance(statistic, Histogram) else WeightedSum()


def attach(
    wiring: Wiring,
    tensor: gs.Tensor,
    dtype: np.dtype,
    rank: int | None,
    statistics: Iterable[Statistic],
    *,
    masked: bool,
) -> Probe:
    """Append the nodes that reduce a tensor.

    Args:
        wiring: Where to.
        tensor: What is reduced.
        dtype: Its element type.
        rank: Number of its axes; statistics over some axes need it.
        statistics: What is wanted besides the range.
        masked: Whether NaN and infinite elements are left out.

    Raises:
        ValueError: The tensor has no such axis.
    """
    values = tensor if dtype == np.float32 else wiring.cast(tensor, _FLOAT)
    finite = wiring.node("Less", wiring.node("Abs", values), wiring.scalar(math.inf)) if masked else None
    probe = Probe(tensor.name, masked, wiring.node("Shape", tensor).name)
    wanted: dict[Statistic, tuple[gs.Variable, ...]] = {Range(): _range(wiring, values, finite)}
    for statistic in statistics:
        if isinstance(statistic, Histogram):
            wanted[statistic] = (_some_values(wiring, values),)
        elif isinstance(statistic, ChannelMean | ChannelRange):
            axis = _axis(statistic.axis, rank, tensor.name)
            others = [other for other in range(rank or 0) if other != axis]
            reduced = _channel_mean if isinstance(statistic, ChannelMean) else _channel_range
            wanted[statistic] = reduced(wiring, values, finite, others)
        elif isinstance(statistic, SecondMoment):
            wanted[statistic] = _second_moment(wiring, values, finite, _axis(-1, rank, tensor.name))
    probe.outputs.update({statistic: tuple(item.name for item in items) for statistic, items in wanted.items()})
    return probe


def _axis(axis: int, rank: int | None, tensor: str) -> int:
    if rank is None or not -rank <= axis < rank:
        raise ValueError(f"tensor '{tensor}' has no axis {axis}; it has {rank} axes")
    return axis % rank


def _range(wiring: Wiring, values: gs.Tensor, finite: gs.Tensor | None) -> tuple[gs.Variable, ...]:
    if finite is None:
        return tuple(wiring.reduce(op, values) for op in ("ReduceMin", "ReduceMax", "ReduceSum"))
    low = wiring.node("Where", finite, values, wiring.scalar(math.inf))
    high = wiring.node("Where", finite, values, wiring.scalar(-math.inf))
    count = wiring.reduce("ReduceSum", wiring.cast(finite, onnx.TensorProto.INT64))
    return wiring.reduce("ReduceMin", low), wiring.reduce("ReduceMax", high), count


def _some_values(wiring: Wiring, values: gs.Tensor) -> gs.Variable:
    """All elements of a small tensor, evenly spaced ones of a large.

    The step is odd: even ones would meet the same columns of most images again and again.
    """
    flat = wiring.node("Reshape", values, wiring.integers(-1))
    if wiring.opset < _STRIDED_OPSET:
        return _gathered(wiring, flat)
    half = wiring.node("Div", wiring.node("Size", values), wiring.integers(_MOST))
    step = wiring.node("Add", wiring.node("Mul", half, wiring.integers(2)), wiring.integers(1))
    begin, axis = wiring.integers(0), wiring.integers(0)
    return wiring.node("Slice", flat, begin, wiring.integers(_END), axis, step)


def _gathered(wiring: Wiring, flat: gs.Tensor) -> gs.Variable:
    """Elements at fixed fractions of the way through; a small tensor's come several times, almost equally often."""
    places = wiring.constant((np.arange(_MOST) + 0.5) / _MOST)
    padded = wiring.node("Concat", flat, wiring.constant(np.zeros(1, np.float32)), axis=0)  # nothing else is empty
    size = wiring.cast(wiring.node("Size", flat), onnx.TensorProto.DOUBLE)
    return wiring.node("Gather", padded, wiring.cast(wiring.node("Mul", places, size), onnx.TensorProto.INT64), axis=0)


def _channel_mean(
    wiring: Wiring, values: gs.Tensor, finite: gs.Tensor | None, axes: list[int]
) -> tuple[gs.Variable, ...]:
    def mean(tensor: gs.Tensor) -> gs.Variable:
        return wiring.reduce("ReduceMean", tensor, axes) if axes else wiring.node("Identity", tensor)

    if finite is None:
        return (mean(values),)
    zeroed = wiring.node("Where", finite, values, wiring.scalar(0))
    return mean(zeroed), mean(wiring.cast(finite, _FLOAT))


def _channel_range(
    wiring: Wiring, values: gs.Tensor, finite: gs.Tensor | None, axes: list[int]
) -> tuple[gs.Variable, ...]:
    def reduced(op: str, masked: float) -> gs.Variable:
        tensor = values if finite is None else wiring.node("Where", finite, values, wiring.scalar(masked))
        return wiring.reduce(op, tensor, axes) if axes else wiring.node("Identity", tensor)

    return reduced("ReduceMin", math.inf), reduced("ReduceMax", -math.inf)


def _second_moment(wiring: Wiring, values: gs.Tensor, finite: gs.Tensor | None, axis: int) -> tuple[gs.Variable, ...]:
    if finite is None:
        rows = wiring.node("Flatten", values, axis=axis)
        return (wiring.node("MatMul", wiring.node("Transpose", rows, perm=[1, 0]), rows),)
    whole = wiring.reduce(
        "ReduceMin", wiring.node("Flatten", wiring.cast(finite, _FLOAT), axis=axis), [1], keepdims=True
    )
    zeroed = wiring.node("Flatten", wiring.node("Where", finite, values, wiring.scalar(0)), axis=axis)
    rows = wiring.node("Mul", zeroed, whole)
    gram = wiring.node("MatMul", wiring.node("Transpose", rows, perm=[1, 0]), rows)
    return gram, wiring.reduce("ReduceSum", whole)


def _extent(values: list[np.ndarray], elements: int, *, masked: bool) -> Extent:
    low, high, third = (float(value) for value in values)
    if masked:
        return Extent(low, high, elements, elements - int(third))
    if all(map(math.isfinite, (low, high, third))):
        return Extent(low, high, elements)
    return Extent(elements=elements, nonfinite=elements)
