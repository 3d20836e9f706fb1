"""Running a model over the samples to see what its inner tensors hold."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx_graphsurgeon as gs

from graphopt.ir.clean import clean
from graphopt.ir.graph import Graph
from graphopt.model import Model
from graphopt.observe.observations import Observations, Sums
from graphopt.observe.probes import MASKING_OPSET, Probe, attach, new_sum
from graphopt.observe.statistics import ChannelMean, ChannelRange, Range, SecondMoment, Statistic
from graphopt.observe.sums import Sum
from graphopt.observe.wiring import Wiring
from graphopt.progress import Progress, SilentProgress
from graphopt.runtime.session import open_session
from graphopt.samples import Samples
from graphopt.shapes import TensorType, tensor_types

_MODELS = 4  # whose statistics are kept
_NUMERIC = frozenset(
    {"float16", "bfloat16", "float32", "float64"}
    | {f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)}
)
Requests = Mapping[str, Sequence[Statistic]]


@dataclass
class _Known:
    """What is known about a model.

    Attributes:
        types: Of the tensors that can be observed.
        samples: How many were run.
    """

    types: dict[str, TensorType]
    samples: int = 0
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    sums: Sums = field(default_factory=dict)


class Observer:
    """Finds statistics of a model's inner tensors over samples, and remembers them."""

    def __init__(self, samples: Samples, *, threads: int = 1, progress: Progress | None = None) -> None:
        """Set up; nothing runs yet.

        Args:
            samples: What the model is run over.
            threads: Threads inside an operator.
            progress: Where runs report.
        """
        self._samples = samples
        self._threads = threads
        self._progress = progress if progress is not None else SilentProgress()
        self._cache: OrderedDict[str, _Known] = OrderedDict()

    def observable(self, model: Model) -> frozenset[str]:
        """Return the names of the main graph's tensors that can be observed: of a known numeric type, not constant."""
        return frozenset(self._known(model).types)

    def observe(self, model: Model, requests: Requests) -> Observations:
        """Return statistics over all samples.

        What was asked about the same model before is not run again. The values are those of the running model, each
        sample with its own shape.

        Args:
            model: Stays as it is.
            requests: Statistics by tensor name; a `Range` comes with every tensor.

        Raises:
            KeyError: There is no such tensor, or it is not `observable`.
            ValueError: A tensor does not have the axis, or not in all samples the same number of channels.
            ModelError: The model cannot be run.
            SampleError: A sample cannot be read or does not fit.
        """
        known = self._known(model)
        unknown = [name for name in requests if name not in known.types]
        if unknown:
            raise KeyError(f"tensor '{unknown[0]}' cannot be observed: it is no numeric variable of the main graph")
        wanted = {name: list(dict.fromkeys((Range(), *statistics))) for name, statistics in requests.items()}
        missing = {
            name: new
            for name, statistics in wanted.items()
            if (new := [statistic for statistic in statistics if (name, statistic) not in known.sums])
        }
        if missing:
            _Run(model, known, self._samples, self._threads, self._progress).observe(missing)
        sums = {(name, item): known.sums[name, item] for name, statistics in wanted.items() for item in statistics}
        return Observations(known.samples, {name: known.shapes[name] for name in wanted}, sums)

    def _known(self, model: Model) -> _Known:
        key = model.fingerprint()
        if key not in self._cache:
            self._cache[key] = _Known(_observable_types(model))
            if len(self._cache) > _MODELS:
                self._cache.popitem(last=False)
        self._cache.move_to_end(key)
        return self._cache[key]


def _observable_types(model: Model) -> dict[str, TensorType]:
    types, _ = tensor_types(model)
    graph = model.graph
    defaults = graph.defaults if isinstance(graph, Graph) else {}
    return {
        tensor.name: types[tensor]
        for tensor in _tensors(graph)
        if tensor.name not in defaults and _is_numeric(types[tensor].dtype)
    }


def _tensors(graph: gs.Graph) -> list[gs.Variable]:
    """The main graph's inputs and results."""
    found = (*graph.inputs, *(tensor for node in graph.nodes for tensor in node.outputs))
    return [tensor for tensor in found if isinstance(tensor, gs.Variable) and tensor.name]


def _is_numeric(dtype: np.dtype | None) -> bool:
    return dtype is not None and np.dtype(dtype).name in _NUMERIC


class _Run:
    """One or several passes over the samples that fill in what is not known yet."""

    def __init__(self, model: Model, known: _Known, samples: Samples, threads: int, progress: Progress) -> None:
        self._model = model
        self._known = known
        self._samples = samples
        self._threads = threads
        self._progress = progress

    def observe(self, requests: Requests) -> None:
        """Fill in; where the model is too old for masks, samples with NaN or infinite elements are left out whole."""
        sums, tainted = self._pass(requests, masked=False)
        if tainted and self._model.opset >= MASKING_OPSET:
            again, _ = self._pass({name: requests[name] for name in tainted}, masked=True)
            sums.update(again)
        self._known.sums.update(sums)

    def _pass(self, requests: Requests, *, masked: bool) -> tuple[Sums, set[str]]:
        """Run over all samples; returns the sums, and the tensors that had NaN or infinite elements."""
        sums: dict[str, dict[Statistic, Sum]] = {
            name: {statistic: new_sum(statistic) for statistic in statistics} for name, statistics in requests.items()
        }
        probed, probes = self._probed(requests, masked=masked)
        tainted: set[str] = set()
        count = 0
        with open_session(probed, threads=self._threads) as session:
            del probed
            for feeds in self._progress.track(self._samples, "observe", len(self._samples)):
                results = session.run(feeds)
                for probe in probes:
                    self._known.shapes.setdefault(probe.tensor, probe.read_shape(results))
                    if not probe.read(results, sums[probe.tensor]):
                        tainted.add(probe.tensor)
                count += 1
        self._known.samples = count
        return {(name, statistic): item for name, items in sums.items() for statistic, item in items.items()}, tainted

    def _probed(self, requests: Requests, *, masked: bool) -> tuple[Model, list[Probe]]:
        """Return a copy of the model whose only outputs are those of probes."""
        probed = self._model.copy()
        graph = probed.graph
        tensors = {tensor.name: tensor for tensor in _tensors(graph)}
        ranks = self._ranks(requests)
        wiring = Wiring(probed)
        # ONNX Runtime starts from the last node without consumers and goes back to what it needs. With the probes in
        # reverse order it runs each as soon as its tensor is there, and frees the tensor early.
        names = [name for name in tensors if name in requests]
        probes = [
            attach(
                wiring,
                tensors[name],
                np.dtype(self._known.types[name].dtype),
                ranks.get(name),
                requests[name],
                masked=masked,
            )
            for name in reversed(names)
        ]
        outputs = {tensor.name: tensor for node in graph.nodes for tensor in node.outputs}
        graph.outputs = [outputs[name] for probe in probes for name in probe.names]
        graph.output_infos.clear()
        clean(graph)
        return probed, probes

    def _ranks(self, requests: Requests) -> dict[str, int]:
        """Return the number of axes of each tensor; where inference does not know it, the first sample tells."""
        ranks = {name: len(shape) for name in requests if (shape := self._known.types[name].shape) is not None}
        needed = (ChannelMean, ChannelRange, SecondMoment)
        unknown = [
            name
            for name, statistics in requests.items()
            if name not in ranks and any(isinstance(statistic, needed) for statistic in statistics)
        ]
        if unknown:
            probed, probes = self._probed({name: [] for name in unknown}, masked=False)
            with open_session(probed, threads=self._threads) as session:
                results = session.run(next(iter(self._samples)))
            ranks.update({probe.tensor: len(probe.read_shape(results)) for probe in probes})
        return ranks
