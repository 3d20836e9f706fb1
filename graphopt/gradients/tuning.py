"""Tuning the weights of a compressed model together, by gradients.

Fitting layer by layer makes each come close to what it gave, and cannot know which of the errors that are left matter
behind it. Here all weights go down the slope of the error of the model's outputs, before a final Softmax. As targets
are what the original gives, no labels are needed. What lies before the layers that hold most of the weights stays as it
is: it runs once, and its results are held.

Source: Hinton et al., "Distilling the Knowledge in a Neural Network", arXiv:1503.02531, section 2.1 (logits).
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_graphsurgeon as gs

from graphopt.cut import Side
from graphopt.errors import ModelError
from graphopt.gradients.adam import Adam, step_length
from graphopt.gradients.backward import OPSET
from graphopt.gradients.examples import Complete, Results, both, fetched, results, spreads, targets, usable
from graphopt.gradients.objective import Objective
from graphopt.layers import LinearLayer, linear_layers
from graphopt.model import Model
from graphopt.moments import Stream
from graphopt.progress import Progress
from graphopt.shapes import infer_shapes
from graphopt.walk import Shelf

_MOST_WEIGHTS = 2**26  # whose gradients are in memory together
_SHARE = 0.9  # of the weights that the tuned end of the model has
_ROUNDS = 3  # over all samples, at least
_STEPS = 24  # at least
_LEARNT, _JUDGES = 192, 64  # samples at most that are tuned on, and that judge
_PARTS = 0.5, 0.25  # of the way that was gone, which are tried as well


@dataclass(frozen=True)
class Pace:
    """How quickly weights move.

    Attributes:
        rate: Length of the first steps, as a part of the size of each weight.
        batch: Samples a step.
        falls: Whether steps are the shorter the less is wrong in the beginning; `rate` is for outputs all wrong then.
    """

    rate: float
    batch: int
    falls: bool


SWIFT = Pace(4e-3, 8, falls=True)  # for masks: much is wrong, and the zeros leave less to learn by heart
GENTLE = Pace(1e-3, 16, falls=False)  # for removed channels: longer steps are worse on pictures of other kinds


def tune(
    original: Model,
    compressed: Model,
    samples: Stream,
    progress: Progress,
    rng: np.random.Generator,
    *,
    apart: int = 0,
    pace: Pace = SWIFT,
) -> tuple[int, str]:
    """Tune weights and biases of a compressed model's linear layers in place; weights that are zero stay zero.

    From few samples they soon learn what holds for these only. So others say after which round they were best.

    Args:
        original: Gives the targets; its tensors have the same names.
        compressed: What is tuned.
        samples: What both run on.
        progress: Where it reports.
        rng: Chooses the order of the samples.
        apart: Every so many-th sample is not tuned on, but judges; 0: all are for both.
        pace: How quickly weights move.

    Returns:
        How many constants were tuned, and if none why.
    """
    for model in (original, compressed):
        infer_shapes(model)
    shown = {id(tensor) for tensor in compressed.graph.outputs}
    layers = [layer for layer in linear_layers(compressed) if _own(layer, shown)]
    size = sum(int(np.prod(layer.weight.shape)) for layer in layers)
    if compressed.graph.opset < OPSET or not 0 < size <= _MOST_WEIGHTS:
        return 0, f"gradients need 1 to {_MOST_WEIGHTS} weights of layers in float32 ({size} found) and opset {OPSET}"
    side, wanted, samples = Side(compressed), targets(compressed), Complete(samples, compressed)
    cut = _start(side, layers)
    with tempfile.TemporaryDirectory(prefix="graphopt-") as folder:
        shelf = Shelf(Path(folder))
        aims = results(Side(original).between(0, len(original.graph.nodes), wanted), samples, shelf)
        feeds: Sequence[Results] = list(samples)
        if cut:
            feeds = results(side.between(0, cut, side.crossing(cut)), samples, shelf)
        pairs = list(zip(feeds, aims, strict=True))
        judges = pairs[apart - 1 :: apart] if 1 < apart <= len(pairs) else pairs
        learnt = [pair for index, pair in enumerate(pairs) if judges is pairs or (index + 1) % apart]
        learnt, judges = (
            _spaced([pair for pair in part if usable(*pair)], most)
            for part, most in ((learnt, _LEARNT), (judges, _JUDGES))
        )
        if not wanted or not learnt or not judges:
            return 0, "there are no outputs with finite values to compare"
        tail = side.between(cut, len(compressed.graph.nodes), wanted)
        own = {item.name: item for layer in layers for item in _own(layer, shown)}
        try:
            objective = Objective(tail, own.keys(), spreads(learnt, wanted), fetched(learnt[0][0]))
        except ModelError as error:
            return 0, str(error)
        if not objective.weights:
            return 0, f"no gradients lead through {', '.join(objective.stops[:3])}"
        if not _descend(objective, learnt, judges, pace, progress, rng):
            return 0, "it comes no closer to the original"
    for constant in objective.weights:
        own[constant.name].values = constant.values
    return len(objective.weights), ""


def _descend(
    objective: Objective,
    pairs: Sequence[tuple[Results, Results]],
    judges: Sequence[tuple[Results, Results]],
    pace: Pace,
    progress: Progress,
    rng: np.random.Generator,
) -> bool:
    """Change the weights in place, step by step, by the gradients of a few samples each.

    After each round over all samples others judge, and at last parts of the way; the best weights are put back.
    Returns whether any are better than the first ones.
    """
    start = best = [item.values for item in objective.weights]
    least = objective.error(map(both, judges))
    adam, rate, steps = Adam(start), pace.rate, math.ceil(len(pairs) / pace.batch)
    if pace.falls:
        wrong = objective.error(map(both, pairs)) / (len(pairs) * objective.targets)  # 1: as wrong as the mean would be
        rate *= min(math.sqrt(wrong), 1.0)
    rounds = max(_ROUNDS, math.ceil(_STEPS / steps))
    for index in progress.track(range(rounds), "tune", rounds):
        order = rng.permutation(len(pairs))
        for step in range(steps):
            chosen = order[step * pace.batch :][: pace.batch]
            gradients = [item / len(chosen) for item in objective.gradients(both(pairs[place]) for place in chosen)]
            present = [item.values for item in objective.weights]
            fresh = adam.step(present, gradients, step_length(index * steps + step, rounds * steps, rate))
            for constant, values, first in zip(objective.weights, fresh, start, strict=True):
                constant.values = np.where(first != 0, values, 0)
        if (error := objective.error(map(both, judges))) < least:
            least, best = error, [item.values for item in objective.weights]
    end = [item.values for item in objective.weights]
    for part in _PARTS:
        between = [(first + part * (last - first)).astype(last.dtype) for first, last in zip(start, end, strict=True)]
        _put(objective, between)
        if (error := objective.error(map(both, judges))) < least:
            least, best = error, between
    _put(objective, best)
    return best is not start


def _put(objective: Objective, values: Sequence[np.ndarray]) -> None:
    for constant, item in zip(objective.weights, values, strict=True):
        constant.values = item


def _spaced(pairs: list[tuple[Results, Results]], most: int) -> list[tuple[Results, Results]]:
    """Return at most so many of them, evenly spaced."""
    count = min(most, len(pairs))
    return [pairs[index * len(pairs) // count] for index in range(count)]


def _start(side: Side, layers: Sequence[LinearLayer]) -> int:
    """Return the last cut behind which most of the weights are."""
    sizes = np.array([np.prod(layer.weight.shape) for layer in layers], np.float64)
    behind = np.cumsum(sizes[::-1])[::-1]
    cut = side.position(layers[int(np.flatnonzero(behind >= _SHARE * sizes.sum())[-1])].node)
    while cut and not side.can_hold(cut):
        cut -= 1
    return cut


def _own(layer: LinearLayer, shown: Collection[int]) -> list[gs.Constant]:
    """Return weight and bias of a layer, as far as they are its own, of float32, and no outputs of the graph."""
    constants = [item for item in layer.node.inputs[1:3] if isinstance(item, gs.Constant) and id(item) not in shown]
    return [item for item in constants if len(item.outputs) == 1 and item.dtype == np.float32]
