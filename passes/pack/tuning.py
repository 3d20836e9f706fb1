"""Levels and scales of rounded weights, tuned together by gradients of what the whole model gives.

Rounding fits each layer by itself and cannot know which of the errors that are left matter behind it. The codes stay as
they are here; the gradient of a level is the sum of those of its weights (times their scales), that of a scale the sum
along its row (times the levels): a few hundred numbers a layer, which few samples can tell. As the outputs alone of few
samples are soon learnt by heart, layers on the way are compared as well, and a part of the samples is kept back: what
does best on those is taken.

Source: Deep Compression (arXiv:1510.00149), section 3.2, with the targets of Hinton et al. (arXiv:1503.02531); layers
on the way as in BRECQ (arXiv:2102.05426).
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx_graphsurgeon as gs

from graphopt.cut import Side
from graphopt.errors import ModelError
from graphopt.gradients.adam import Adam, step_length
from graphopt.gradients.backward import OPSET
from graphopt.gradients.examples import Complete, Results, both, fetched, results, spreads, targets, usable
from graphopt.gradients.objective import Objective
from graphopt.layers import linear_layers
from graphopt.model import Model
from graphopt.passes.pack.rounding import Rounding
from graphopt.progress import Progress
from graphopt.samples import Samples
from graphopt.shapes import infer_shapes
from graphopt.walk import Shelf

_LEAST_SAMPLES = 32  # with fewer, too little is left when some are kept back
_KEPT_BACK = 4  # one sample of so many
_MOST_WEIGHTS = 2**26  # whose gradients are in memory together
_STATIONS = 8  # layers on the way that are compared
_BATCH = 8  # samples a step
_STEPS = 24  # at least, in whole rounds over the samples that are not kept back
_RATE = 1e-3  # length of the first steps, as a part of the size of what is tuned
_TINY = 1e-30
Pair = tuple[Results, Results]


@dataclass(frozen=True)
class Tuning:
    """What tuning did.

    Attributes:
        left: Squared error on the samples that were kept back, over what it was before; 1 if nothing was tuned.
        reason: Why nothing was tuned, or an empty text.
    """

    left: float
    reason: str = ""

    def describe(self) -> str:
        """Return it in words."""
        if self.left < 1:
            return f"tuned by gradients, which leaves {self.left:.0%} of the squared error on samples kept back"
        return f"not tuned by gradients: {self.reason}"


def tune(
    original: Model, rounded: Model, roundings: Sequence[Rounding], samples: Samples, progress: Progress
) -> Tuning:
    """Tune the levels and scales of a rounded model, in place.

    Args:
        original: Gives the targets; its tensors have the same names.
        rounded: What is tuned.
        roundings: Its weights that were rounded; those of integer weights stay.
        samples: What both run on.
        progress: Where it reports.
    """
    mine = [item for item in roundings if item.unit.scale is None and len(item.unit.constant.outputs) == 1]
    size = sum(item.unit.size for item in mine)
    if len(samples) < _LEAST_SAMPLES:
        return Tuning(1.0, f"there are {len(samples)} samples, and {_LEAST_SAMPLES} are needed")
    if rounded.graph.opset < OPSET or not 0 < size <= _MOST_WEIGHTS:
        return Tuning(1.0, f"it takes 1 to {_MOST_WEIGHTS} float weights ({size} found) and opset {OPSET} or later")
    for model in (original, rounded):
        infer_shapes(model)
    try:
        return _tuned(original, rounded, mine, samples, progress)
    except ModelError as error:
        return Tuning(1.0, str(error))


def _tuned(
    original: Model, rounded: Model, roundings: Sequence[Rounding], samples: Samples, progress: Progress
) -> Tuning:
    names = [*dict.fromkeys([*targets(rounded), *_stations(rounded)])]
    if not names:
        return Tuning(1.0, "it has no float outputs")
    with tempfile.TemporaryDirectory(prefix="graphopt-") as folder:
        teacher = Side(original).between(0, len(original.graph.nodes), names)
        shelf = Shelf(Path(folder))
        whole = Complete(samples, rounded)
        feeds = [{name: shelf.put(value) for name, value in sample.items()} for sample in whole]
        aims = results(teacher, whole, shelf)
        pairs = [pair for pair in zip(feeds, aims, strict=True) if usable(*pair)]
        if len(pairs) < _LEAST_SAMPLES:
            return Tuning(1.0, f"on {len(pairs)} samples all is finite, and {_LEAST_SAMPLES} are needed")
        student = Side(rounded).between(0, len(rounded.graph.nodes), names)
        weights = {item.unit.name: item for item in roundings}
        objective = Objective(student, weights.keys(), spreads(pairs, names), fetched(pairs[0][0]))
        books = [_Book(constant, weights[constant.name]) for constant in objective.weights]
        if not books:
            return Tuning(1.0, f"no gradients lead through {', '.join(objective.stops[:3]) or 'the graph'}")
        left = _descend(objective, books, *parted(pairs, names[0]), progress)
    return Tuning(left, "" if left < 1 else "it helps none of the samples that were kept back")


@dataclass(frozen=True, eq=False)
class _Book:
    """Levels and scales of one weight.

    Attributes:
        weight: The weight in the objective.
        rounding: What became of it in the rounded model.
    """

    weight: gs.Constant
    rounding: Rounding

    def values(self) -> list[np.ndarray]:
        """Return the levels, if they are the weight's own, and the scales, float64."""
        coded = self.rounding.coded
        levels = [coded.levels.astype(np.float64)] if coded.own_levels else []
        return [*levels, coded.scale.astype(np.float64)]

    def slopes(self, gradient: np.ndarray) -> list[np.ndarray]:
        """Return the gradients of `values` from that of the weight."""
        unit, coded = self.rounding.unit, self.rounding.coded
        matrix = np.transpose(gradient, unit.order).reshape(coded.codes.shape)
        along = np.einsum("grk,grk->gr", matrix, coded.unscaled())[..., None].astype(np.float64)
        if not coded.own_levels:
            return [along]
        moved = matrix * coded.scale.astype(np.float32)
        levels = np.bincount(coded.codes.ravel(), moved.ravel(), len(coded.levels))
        return [np.where(coded.levels == 0, 0, levels) if unit.is_sparse else levels, along]

    def put(self, values: Sequence[np.ndarray]) -> None:
        """Take over what was tuned, as it is stored."""
        coded = self.rounding.coded
        levels = values[0].astype(np.float32) if len(values) > 1 else coded.levels
        self.rounding.put(replace(coded, levels=levels, scale=values[-1].astype(coded.scale.dtype)))
        self.weight.values = self.rounding.unit.constant.values


def _descend(
    objective: Objective, books: Sequence[_Book], used: Sequence[Pair], kept: Sequence[Pair], progress: Progress
) -> float:
    """Tune by gradients of the samples used; keep what errs least on the others, and return that over the first."""
    start = [value for book in books for value in book.values()]
    sizes = [max(float(np.sqrt(np.mean(np.square(value)))), _TINY) for value in start]
    present = best = [value / size for value, size in zip(start, sizes, strict=True)]  # raw slopes are tiny
    adam = Adam(present)
    steps = math.ceil(len(used) / _BATCH)
    total = math.ceil(_STEPS / steps) * steps
    try:
        before = least = objective.error(map(both, kept))
        for step in progress.track(range(total), "tune", total):
            chosen = used[step % steps :: steps]
            gradients = objective.gradients(map(both, chosen))
            slopes = [slope for book, gradient in zip(books, gradients, strict=True) for slope in book.slopes(gradient)]
            scaled = [slope * (size / len(chosen)) for slope, size in zip(slopes, sizes, strict=True)]
            present = adam.step(present, scaled, step_length(step, total, _RATE))
            _put(books, present, sizes)
            if (step + 1) % steps == 0 and (error := objective.error(map(both, kept))) < least:
                least, best = error, present
    finally:
        _put(books, best, sizes)
    return least / before if before > 0 else 1.0


def _put(books: Sequence[_Book], values: Sequence[np.ndarray], sizes: Sequence[float]) -> None:
    left = iter(value * size for value, size in zip(values, sizes, strict=True))
    for book in books:
        book.put([next(left) for _ in book.values()])


def _stations(model: Model) -> list[str]:
    """Return the names of what evenly spaced linear layers give."""
    found = [str(layer.node.outputs[0].name) for layer in linear_layers(model) if layer.weight.dtype == np.float32]
    places = {len(found) * part // _STATIONS - 1 for part in range(1, _STATIONS + 1)}
    return [found[place] for place in sorted(places) if place >= 0]


def parted(pairs: Sequence[Pair], name: str) -> tuple[list[Pair], list[Pair]]:
    """Return the pairs to fit to, and those that are kept back: what is most like the first, for near copies of a
    sample, as other crops of a picture, would tell nothing new.

    Args:
        pairs: What is fed and what should come of it.
        name: The output by which samples are alike.
    """
    rows = [np.asarray(fetched(aims)[name], np.float64) for _, aims in pairs]
    rows = [row.reshape(-1, row.shape[-1]).mean(axis=0) if row.ndim else row.reshape(1) for row in rows]
    width = min(len(row) for row in rows)
    facts = np.stack([row[:width] for row in rows])
    facts -= facts.mean(axis=0)
    likeness = facts @ facts[0] / np.maximum(np.linalg.norm(facts, axis=1), _TINY)
    back = set(np.argsort(-likeness, kind="stable")[: len(pairs) // _KEPT_BACK].tolist())
    chosen = [(place in back, pair) for place, pair in enumerate(pairs)]
    return [pair for kept, pair in chosen if not kept], [pair for kept, pair in chosen if kept]
