"""How much the outputs of the model feel that a part of a group has gone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from graphopt.biases import find_bias
from graphopt.ir.graph import Constant
from graphopt.layers import linear_layer
from graphopt.model import Model
from graphopt.passes.prune.channels.ranking import Ranking, Trial
from graphopt.passes.prune.variety import pixels_of
from graphopt.runtime.session import open_session
from graphopt.samples import Samples

_SAMPLES = 8  # what is measured on, at most; it has to be right within tens of percent
_PIXELS = 2**20  # of pictures that are enough
_ROUNDING = 1e-9  # losses below it are none, and tell nothing of those that follow
_TINY = float(np.finfo(np.float64).tiny)


class Meter:
    """Measures rankings by the outputs of the model.

    Args:
        model: The model; stays as it is.
        samples: Other ones than the ranking rests on. Least squares make up for nearly everything on the samples they
            are fitted to, the less on others the fewer samples there were; only those tell what a removal costs.
    """

    def __init__(self, model: Model, samples: Samples) -> None:
        self._model = model
        pixels = max(pixels_of(next(iter(samples))), 1)
        self._few = samples.take(max(1, min(_SAMPLES, -(-_PIXELS // pixels))))
        self._reference = _outputs(model, self._few)

    def losses(self, ranking: Ranking) -> np.ndarray:
        """Return the losses of a ranking as errors of the outputs, float64 [removable], ascending.

        Of the group some parts are taken away in the weights that read it. Between them, the losses keep the course of
        the ranking's own.
        """
        counts = [trial.count for trial in ranking.trials]
        errors = [output_error(self._reference, _outputs(self._tried(trial), self._few)) for trial in ranking.trials]
        factors = np.array(errors) / np.maximum(ranking.losses[np.array(counts) - 1], _ROUNDING)
        measured = ranking.losses * np.interp(np.arange(1, len(ranking.losses) + 1), counts, factors)
        return np.asarray(np.maximum.accumulate(measured))

    def _tried(self, trial: Trial) -> Model:
        """Return a copy of the model without a part of a group, its readers compensated."""
        position = {id(node): index for index, node in enumerate(self._model.graph.nodes)}
        copy = self._model.copy()
        shown = {id(tensor) for tensor in copy.graph.outputs}
        for change in trial.changes:
            node, index = copy.graph.nodes[position[change.taker.key]], change.taker.use.index
            layer = linear_layer(node)
            bias = find_bias(layer, shown) if layer is not None and change.shift is not None else None
            if bias is not None and change.shift is not None:
                bias.shift(change.shift)
            node.inputs[index] = Constant(f"{node.inputs[index].name}/tried", change.taker.stored(change.matrix))
        return copy


def output_error(before: Sequence[dict[str, Any]], after: Sequence[dict[str, Any]]) -> float:
    """Return the squared error of the float outputs relative to their variance over samples, mean over outputs."""
    errors = []
    for name, first in before[0].items():
        if not isinstance(first, np.ndarray) or first.dtype.kind != "f":
            continue
        pairs = [
            (one[name].astype(np.float64), other[name].astype(np.float64))
            for one, other in zip(before, after, strict=True)
        ]
        error = sum(float(np.square(one - other).sum()) for one, other in pairs)
        mean = sum(float(one.sum()) for one, _ in pairs) / max(1, sum(int(one.size) for one, _ in pairs))
        spread = sum(float(np.square(one - mean).sum()) for one, _ in pairs)
        errors.append(error / max(spread, _TINY))
    return float(np.mean(errors)) if errors else 0.0


def _outputs(model: Model, samples: Samples) -> list[dict[str, Any]]:
    with open_session(model) as session:
        return [session.run(feeds) for feeds in samples]
