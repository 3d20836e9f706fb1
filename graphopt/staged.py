"""Compressing layers front to back: each stage looks at what the stages before it made of the model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from graphopt.layers import LinearLayer
from graphopt.model import Model
from graphopt.moments import LayerMoments, layer_moments
from graphopt.progress import Progress
from graphopt.samples import Samples


def staged_moments(
    model: Model,
    layers: Sequence[LinearLayer],
    samples: Samples,
    *,
    stages: int,
    threads: int = 1,
    progress: Progress | None = None,
) -> Iterator[LayerMoments]:
    """Yield the moments of each layer's inputs, which the caller's changes to earlier stages have an effect on.

    Args:
        model: May be edited between two layers, its nodes must stay.
        layers: Nodes of its main graph in graph order.
        samples: Run at least once for each stage.
        stages: Into how many runs of about equal length the layers are split; more cost time and are more exact.
        threads: Threads inside an operator.
        progress: Where it reports.

    Raises:
        ModelError: The model cannot run on a sample.
    """
    stages = max(1, min(stages, len(layers)))
    for stage in range(stages):
        part = layers[stage * len(layers) // stages : (stage + 1) * len(layers) // stages]
        yield from layer_moments(model, part, samples, threads=threads, progress=progress)
