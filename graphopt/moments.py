"""Second moments of what linear layers see, computed inside ONNX Runtime.

For each layer the model is extended by nodes that form ``X X^T`` of the layer's input in im2col form, so that only a
matrix of [groups, inputs, inputs] leaves the runtime, whatever the size of the activations. Layers are taken in batches
that fit a budget of memory, each batch one stream over the samples.

`layer_moments` looks at one model. `paired_moments` looks at two: what a layer of a compressed model reads, and what it
should give, which is what the original model gives in its place.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol, Self

import numpy as np

from graphopt.columns import ColumnBuilder
from graphopt.ir.clean import clean
from graphopt.layers import LinearLayer
from graphopt.model import Model
from graphopt.progress import Progress, SilentProgress
from graphopt.runtime.session import open_session
from graphopt.samples import Feeds, Samples
from graphopt.tally import Tally, batches, evidence, twins

_BUDGET = 2**28  # bytes of accumulated moments at a time
_ROUNDING = 1e-6  # of a second moment, which is summed in single precision


class Stream(Protocol):
    """Feeds that can be read several times, such as `Samples`."""

    def __len__(self) -> int:
        """Return how many there are."""
        ...

    def __iter__(self) -> Iterator[Feeds]:
        """Yield them."""
        ...


@dataclass(frozen=True, eq=False)
class LayerMoments:
    """What a layer sees, mean over samples and positions.

    Attributes:
        layer: The layer.
        second: Second moment of its inputs, float64 [groups, inputs, inputs].
        mean: Their mean, float64 [groups, inputs].
        count: Number of positions that it is the mean over.
        left_out: Samples that are not in it, as not all that they give is finite.
    """

    layer: LinearLayer
    second: np.ndarray
    mean: np.ndarray
    count: int = 0
    left_out: int = 0

    @property
    def covariance(self) -> np.ndarray:
        """What counts where a bias makes up for the mean, float64 [groups, inputs, inputs].

        Inputs that hardly vary beside their mean have none: what the difference leaves of them is rounding.
        """
        return _covariance(self.second, self.mean)[0]


@dataclass(frozen=True, eq=False)
class Pair:
    """A layer of a compressed model and what it should give.

    Attributes:
        layer: Node of the compressed model's main graph.
        target: Name of a tensor of the original's main graph with the axes of the layer's output.
        rows: Channels of the target that the layer still has, in its order, [groups * rows].
        besides: Name of a tensor of the compressed model, shaped like the layer's output, that is added to it: only
            what that leaves of the target is for the layer to give. Empty if there is none.
    """

    layer: LinearLayer
    target: str
    rows: np.ndarray
    besides: str = ""

    @classmethod
    def same(cls, layer: LinearLayer) -> Self:
        """Pair a layer with the tensor of the same name as its output, all rows kept."""
        return cls(layer, layer.node.outputs[0].name, np.arange(layer.groups * layer.rows))


@dataclass(frozen=True, eq=False)
class PairedMoments:
    """What a layer x of a compressed model reads and what it should give, t; means over samples and positions.

    The layer that comes nearest to its targets minimizes ``E |t - W x - b|^2``, a quadratic form in these moments:
    ``W second = cross`` without a bias, and the same with the covariances (`centred`) with one.

    Attributes:
        layer: The layer.
        second: ``E x x^T``, float64 [groups, inputs, inputs].
        mean: ``E x``, float64 [groups, inputs].
        cross: ``E t x^T``, float64 [groups, rows, inputs].
        target_mean: ``E t``, float64 [groups, rows].
        energy: ``E t^2``, float64 [groups, rows].
        count: Number of positions.
        split: The same of the samples that may be fitted to, and of those kept apart to judge; empty if none are.
        left_out: Samples that are not in them, as not all that they give is finite.
    """

    layer: LinearLayer
    second: np.ndarray
    mean: np.ndarray
    cross: np.ndarray
    target_mean: np.ndarray
    energy: np.ndarray
    count: int
    split: tuple[PairedMoments, ...] = field(default=(), repr=False)
    left_out: int = 0

    @property
    def centred(self) -> PairedMoments:
        """The same about the means, for layers whose bias makes up for them; the means are zero then.

        Inputs that hardly vary beside their mean are taken for constant: fitted to what rounding leaves of their
        moments, weights of millions would come out.

        The split is not in it: of a large layer it is most of the memory.
        """
        covariance, varies = _covariance(self.second, self.mean)
        return PairedMoments(
            self.layer,
            covariance,
            np.zeros_like(self.mean),
            (self.cross - self.target_mean[:, :, None] * self.mean[:, None, :]) * varies[:, None, :],
            np.zeros_like(self.target_mean),
            np.maximum(self.energy - self.target_mean**2, 0.0),
            self.count,
            left_out=self.left_out,
        )


def _covariance(second: np.ndarray, mean: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the covariance, zero for inputs that hardly vary, and which inputs vary, bool [groups, inputs]."""
    centred: np.ndarray = second - mean[:, :, None] * mean[:, None, :]
    varies = np.einsum("gkk->gk", centred) > _ROUNDING * np.einsum("gkk->gk", second)
    centred *= varies[:, :, None] & varies[:, None, :]
    return centred, varies


def merged(parts: Sequence[PairedMoments]) -> PairedMoments:
    """Return the moments of several shares of the samples, which are of one layer, together."""
    counts = [part.count for part in parts]
    total = max(sum(counts), 1)

    def mean(name: str) -> np.ndarray:
        whole: np.ndarray = sum(getattr(part, name) * (part.count / total) for part in parts)
        return whole

    return PairedMoments(
        layer=parts[0].layer,
        second=mean("second"),
        mean=mean("mean"),
        cross=mean("cross"),
        target_mean=mean("target_mean"),
        energy=mean("energy"),
        count=sum(counts),
        split=tuple(parts) if len(parts) > 1 else (),
        left_out=sum(part.left_out for part in parts),
    )


def layer_moments(
    model: Model,
    layers: Sequence[LinearLayer],
    samples: Samples,
    *,
    budget: int = _BUDGET,
    threads: int = 1,
    progress: Progress | None = None,
) -> Iterator[LayerMoments]:
    """Yield the moments of each layer's inputs, in the order of the layers.

    Args:
        model: Stays as it is; the layers are nodes of its main graph.
        layers: What to look at.
        samples: Run once for each batch of layers.
        budget: Bytes of moments to hold at a time; a larger layer is a batch of its own.
        threads: Threads inside an operator.
        progress: Where it reports.

    Raises:
        ModelError: The model cannot run on a sample.
    """
    progress = progress or SilentProgress()
    for batch in batches(layers, lambda layer: 8 * layer.groups * layer.inputs**2, budget):
        probe, names = _probe(model, batch, len(samples))
        tallies = [Tally(found) for found in names]
        with open_session(probe, threads=threads) as session:
            for feeds in progress.track(samples, "second moments", len(samples)):
                found = session.run(feeds, [name for group in names for name in group])
                for tally in tallies:
                    tally.add(found)
        for layer, tally in zip(batch, tallies, strict=True):
            second, mean = tally.means()
            yield LayerMoments(layer, second, mean[..., 0], tally.count, tally.left_out)


def paired_moments(
    original: Model,
    compressed: Model,
    pairs: Sequence[Pair],
    samples: Stream,
    *,
    apart: int = 0,
    budget: int = _BUDGET,
    threads: int = 1,
    progress: Progress | None = None,
) -> Iterator[PairedMoments]:
    """Yield the moments of what each layer reads in the compressed model with what it should give.

    Both models run on each sample, and the same positions count in both. A sample may hold inputs of either model.

    Args:
        original: Model that gives the targets; stays as it is.
        compressed: Model with the layers; stays as it is.
        pairs: What to look at, in any order.
        samples: Run once for each batch of layers.
        apart: Every so many-th sample is counted apart as well, to judge what is fitted to the others; 0 for none.
        budget: Bytes of moments to hold at a time; a larger layer is a batch of its own.
        threads: Threads inside an operator.
        progress: Where it reports.

    Raises:
        ModelError: A model cannot run on a sample.
        KeyError: The original has no tensor of that name.
    """
    progress = progress or SilentProgress()
    shares = 2 if 1 < apart <= len(samples) else 1
    for batch in batches(pairs, lambda pair: shares * _paired_bytes(pair.layer), budget):
        teacher, wanted = _teacher(original, batch, len(samples))
        probe, fed, names = _student(compressed, batch, len(samples))
        tallies = [[Tally(found) for found in names] for _ in range(shares)]
        with open_session(teacher, threads=threads) as giving, open_session(probe, threads=threads) as reading:
            others = set(giving.inputs) - set(reading.inputs)  # of the two models' inputs those that only one has
            for index, feeds in enumerate(progress.track(samples, "paired moments", len(samples))):
                targets = giving.run({name: feeds[name] for name in giving.inputs}, wanted)
                shown = dict(zip(fed, targets.values(), strict=True))
                given = {name: value for name, value in feeds.items() if name not in others} | shown
                found = reading.run(given, [name for group in names for name in group])
                for tally in tallies[-1 if (index + 1) % max(apart, 1) == 0 else 0]:
                    tally.add(found)
        for pair, *own in zip(batch, *tallies, strict=True):
            yield merged([_paired(pair.layer, tally) for tally in own])


def _paired(layer: LinearLayer, tally: Tally) -> PairedMoments:
    second, mean, cross, target_mean, energy = tally.means()
    means = second, mean[..., 0], cross, target_mean[..., 0], energy[..., 0]
    return PairedMoments(layer, *means, tally.count, left_out=tally.left_out)


def _paired_bytes(layer: LinearLayer) -> int:
    return 8 * layer.groups * layer.inputs * (layer.inputs + layer.rows)


def _probe(model: Model, layers: Sequence[LinearLayer], samples: int) -> tuple[Model, list[tuple[str, ...]]]:
    """Return a copy of the model with outputs for each layer's moments and their number of positions."""
    probe, inner = twins(model, layers)
    builder = ColumnBuilder(probe.graph)
    names: list[tuple[str, ...]] = []
    for twin in inner:
        columns = builder.columns(twin, evidence(twin, samples))
        names.append((builder.product(columns, columns), builder.total(columns), builder.count(columns)))
    clean(probe.graph)
    return probe, names


def _teacher(model: Model, pairs: Sequence[Pair], samples: int) -> tuple[Model, list[str]]:
    """Return a copy of the original model whose outputs are the targets, and their names."""
    copy, _ = twins(model, ())
    builder = ColumnBuilder(copy.graph)
    tensors = {tensor.name: tensor for node in copy.graph.nodes for tensor in node.outputs}
    wanted = []
    for pair in pairs:
        kept = evidence(pair.layer, samples, len(pair.rows))
        wanted.append(builder.targets(tensors[pair.target], pair.layer, pair.rows, kept))
    clean(copy.graph)
    return copy, wanted


def _student(model: Model, pairs: Sequence[Pair], samples: int) -> tuple[Model, list[str], list[tuple[str, ...]]]:
    """Return a copy of the compressed model that is fed targets too, their names, and those of the moments."""
    probe, inner = twins(model, [pair.layer for pair in pairs])
    builder = ColumnBuilder(probe.graph)
    fed: list[str] = []
    names: list[tuple[str, ...]] = []
    tensors = {item.name: item for item in probe.graph.inputs}
    tensors |= {item.name: item for node in probe.graph.nodes for item in node.outputs}
    for pair, twin in zip(pairs, inner, strict=True):
        kept = evidence(twin, samples, len(pair.rows))
        columns = builder.columns(twin, kept)
        name, targets = builder.received(twin)
        if pair.besides:
            targets = builder.remainder(targets, tensors[pair.besides], twin, kept)
        fed.append(name)
        sums = builder.product(columns, columns), builder.total(columns), builder.product(targets, columns)
        names.append((*sums, builder.total(targets), builder.energy(targets), builder.count(columns)))
    clean(probe.graph)
    return probe, fed, names
