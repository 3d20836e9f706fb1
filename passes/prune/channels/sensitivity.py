"""How much the outputs of the model feel that a part of a group has gone."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from graphopt.biases import find_bias
from graphopt.cut import Side
from graphopt.gradients.examples import Complete
from graphopt.ir.graph import Constant
from graphopt.layers import linear_layer
from graphopt.model import Model
from graphopt.passes.prune.channels.ranking import Ranking, Trial
from graphopt.passes.prune.variety import pixels_of
from graphopt.runtime.session import open_session
from graphopt.samples import Feeds, Samples
from graphopt.shapes import infer_shapes

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
        few = samples.take(max(1, min(_SAMPLES, -(-_PIXELS // pixels))))
        infer_shapes(model)  # a copy has forgotten its types, and what has none cannot be held at a cut
        self._side = Side(model)
        self._front = _Front(self._side, Complete(few, model))
        with open_session(model) as session:
            self._reference = [session.run(feeds) for feeds in few]

    def losses(self, ranking: Ranking) -> np.ndarray:
        """Return the losses of a ranking as errors of the outputs, float64 [removable], ascending.

        Of the group some parts are taken away in the weights that read it. Between them, the losses keep the course of
        the ranking's own.
        """
        counts = [trial.count for trial in ranking.trials]
        errors = [output_error(self._reference, self._outputs(trial)) for trial in ranking.trials]
        factors = np.array(errors) / np.maximum(ranking.losses[np.array(counts) - 1], _ROUNDING)
        measured = ranking.losses * np.interp(np.arange(1, len(ranking.losses) + 1), counts, factors)
        return np.asarray(np.maximum.accumulate(measured))

    def _outputs(self, trial: Trial) -> list[dict[str, Any]]:
        """Return the outputs after a trial; what lies before it runs once for all trials of a group."""
        keys = {change.taker.key for change in trial.changes}
        graph = self._model.graph
        places = [index for index, node in enumerate(graph.nodes) if id(node) in keys]
        cut, values = self._front.at(min(places))
        later = [str(item.name) for item in graph.outputs if item.inputs and self._side.made(item.name) >= cut]
        tail = self._side.between(cut, len(graph.nodes), later)
        _change(tail, trial)
        with open_session(tail) as session:
            found = [session.run({name: held[name] for name in session.inputs}) for held in values]
        return [{**before, **after} for before, after in zip(self._reference, found, strict=True)]


def _change(model: Model, trial: Trial) -> None:
    """Take a part of a group away, in place, its readers compensated."""
    nodes = {node.outputs[0].name: node for node in model.graph.nodes}
    shown = {id(tensor) for tensor in model.graph.outputs}
    for change in trial.changes:
        node, index = nodes[change.taker.use.node.outputs[0].name], change.taker.use.index
        layer = linear_layer(node)
        bias = find_bias(layer, shown) if layer is not None and change.shift is not None else None
        if bias is not None and change.shift is not None:
            bias.shift(change.shift)
        node.inputs[index] = Constant(f"{node.inputs[index].name}/tried", change.taker.stored(change.matrix))


def distance(model: Model, other: Model, samples: Samples) -> float:
    """Return the error of another model's outputs; see `output_error`."""
    found = []
    for item in (model, other):
        with open_session(item) as session:
            found.append([session.run(feeds) for feeds in samples])
    return output_error(found[0], found[1])


class _Front:
    """What crosses a cut through a model on some samples, held; to move the cut forward costs what lies between.

    Args:
        side: The model.
        samples: Few, with values for all inputs.
    """

    def __init__(self, side: Side, samples: Iterable[Feeds]) -> None:
        self._side = side
        self._first = list(samples)
        self._cut, self._values = 0, self._first

    def at(self, position: int) -> tuple[int, list[Feeds]]:
        """Return the last cut up to a position where all can be held, and what crosses it in each sample."""
        while position and not self._side.can_hold(position):
            position -= 1
        if position < self._cut:
            self._cut, self._values = 0, self._first
        crossing = self._side.crossing(position)
        fresh = [name for name in crossing if name not in self._values[0]]
        found: list[dict[str, Any]] = [{} for _ in self._values]
        if fresh:
            with open_session(self._side.between(self._cut, position, fresh)) as session:
                found = [session.run({name: held[name] for name in session.inputs}) for held in self._values]
        kept = ({name: held[name] for name in crossing if name in held} for held in self._values)
        self._cut, self._values = position, [{**old, **new} for old, new in zip(kept, found, strict=True)]
        return self._cut, self._values


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
