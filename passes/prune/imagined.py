"""More kinds of pictures than there are samples of: changed so that the model sees other classes in them.

Which channels matter, and what layers should be fitted to, is known as far as samples excite them. A few pictures show
few of the classes that a classifier knows, cut-outs of them no others. So each sample is changed step by step along the
gradient of the score of a class that is drawn by lot, at all scales alike, until much of what the model looks for in
that class is there. As the targets are what the original gives, it does not matter what a picture shows.

Sources: Mordvintsev et al., "Inceptionism", 2015; Yin et al., "Dreaming to Distill", arXiv:1912.08795, which learns
from such pictures alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice

import numpy as np

from graphopt.context import Context
from graphopt.gradients.examples import targets
from graphopt.gradients.slope import Slope, slope
from graphopt.model import Model
from graphopt.passes.prune.variety import SHARES, is_picture, pixels_of
from graphopt.runtime.session import Session, open_session
from graphopt.samples import Feeds, Samples, open_samples
from graphopt.shapes import shapes_for

_STEPS = 12
_LENGTH = 0.03  # of a step, as a part of the range of the picture's values
_SHIFT = 8  # pixels by which a picture is moved at most in each step, so that no grid of the model shows
_WORK = 2**26  # pixels times steps that are enough


@dataclass(frozen=True, eq=False)
class Imagination:
    """What pictures can be changed by.

    Attributes:
        slope: Of the scores along the picture.
        source: Name of the input that is the picture.
        scores: Shape of the scores, [batch, classes].
    """

    slope: Slope
    source: str
    scores: tuple[int, ...]

    def changed(self, session: Session, feeds: Feeds, rng: np.random.Generator) -> Feeds:
        """Return a sample whose pictures are changed towards classes drawn by lot.

        Args:
            session: Of the slope's model.
            feeds: Where it starts.
            rng: Draws classes and shifts.
        """
        picture = feeds[self.source]
        least, most = float(picture.min()), float(picture.max())
        worth = np.eye(self.scores[1], dtype=np.float32)[rng.integers(self.scores[1], size=len(picture))]
        for _ in range(_STEPS):
            shift = tuple(rng.integers(-_SHIFT, _SHIFT + 1, 2))
            moved = np.roll(picture, shift, (-2, -1))
            given = {name: feeds[name] for name in session.inputs if name in feeds}
            (found,) = session.run({**given, self.source: moved, self.slope.worth: worth}).values()
            way = at_all_scales(np.roll(found, (-shift[0], -shift[1]), (-2, -1)))
            picture = np.clip(picture + _LENGTH * (most - least) * way, least, most).astype(picture.dtype)
        return {**feeds, self.source: picture}


def at_all_scales(gradient: np.ndarray) -> np.ndarray:
    """Return a gradient [..., height, width] in which all octaves count alike, as in natural pictures; of variance 1.

    Source: Field, "Relations between the statistics of natural images and the response properties of cortical cells",
    Journal of the Optical Society of America A, 1987 (amplitudes fall as 1 / frequency).
    """
    height, width = gradient.shape[-2:]
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width))
    frequency[0, 0] = np.inf  # the mean brightness stays
    found = np.fft.irfft2(np.fft.rfft2(gradient) / frequency, s=(height, width))
    return np.asarray(found / max(float(found.std()), np.finfo(np.float64).tiny))


class Extended:
    """Samples, and others that were made from the first of them; these come into the share of what they come from.

    Args:
        samples: What there is.
        made: One from each of the first samples.
    """

    def __init__(self, samples: Samples, made: Sequence[Feeds]) -> None:
        self._samples, self._made = samples, made

    def __len__(self) -> int:
        """Return how many there are."""
        return len(self._samples) + len(self._made)

    def __iter__(self) -> Iterator[Feeds]:
        """Yield some samples, then what was made from them, then the next samples."""
        source = iter(self._samples)
        for start in range(0, max(len(self._samples), 1), SHARES):
            yield from islice(source, SHARES)
            yield from self._made[start : start + SHARES]


def imagining(model: Model, context: Context) -> Context:
    """Return a context with more samples if the model scores classes of pictures: imagined ones beside its own.

    Args:
        model: Stays as it is.
        context: Samples, randomness and progress.
    """
    samples = context.samples
    if samples is None or samples.is_random:
        return context
    first = next(iter(samples))
    imagination = _imagination(model, first)
    if imagination is None:
        return context
    count = min(len(samples), _WORK // (_STEPS * pixels_of(first)))
    rng = context.rng("prune/imagined")
    with open_session(imagination.slope.model) as session:
        few = context.progress.track(islice(samples, count), "imagine", count)
        made = [imagination.changed(session, feeds, rng) for feeds in few]
    extended = Extended(samples, made)
    return replace(context, samples=open_samples(extended, model.interface, optional=frozenset(model.graph.defaults)))


def _imagination(model: Model, feeds: Feeds) -> Imagination | None:
    """Return what the pictures of a model can be changed by; None unless it scores classes of one picture."""
    pictures = [name for name, value in feeds.items() if is_picture(value) and value.dtype == np.float32]
    shapes = shapes_for(model, feeds)
    scores = [name for name in targets(model) if len(shapes.get(name, ())) == 2 and shapes[name][1] > 1]
    if len(pictures) != 1 or len(scores) != 1:
        return None
    found = slope(model, scores[0], pictures[0], feeds)
    return None if found is None else Imagination(found, pictures[0], shapes[scores[0]])
