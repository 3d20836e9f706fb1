"""More samples from few pictures or sequences, so that what is fitted holds for more than these.

The layers of a network have as many unknowns as a few dozen samples have independent positions, and least squares then
make up for everything on these samples and for less on others. As the targets are what the original gives, and no
label, any input will do: pictures are also shown as cut-outs that are enlarged to their size, and sequences of whole
numbers, as tokens or bytes, with the end of another one.

Sources: Szegedy et al., "Going Deeper with Convolutions", arXiv:1409.4842, section 6 (cut-outs of any size); Yun et
al., "CutMix", arXiv:1905.04899 (parts of one sample in another).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from graphopt.moments import Stream
from graphopt.passes.prune.shares import SHARES
from graphopt.samples import Feeds

_ZOOM = 0.6, 0.95  # least and greatest part of height and width that a cut-out has
_VARIANTS = 3  # of each sample, at most
_PIXELS = 2**24  # of all pictures and variants together that are enough
_TOKENS = 2**20  # likewise of sequences
_SMALLEST = 16  # height and width below which an input is no picture


def enlarged(picture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return cut-outs of pictures [..., height, width] at the size of the whole, by nearest neighbours."""
    part = rng.uniform(*_ZOOM)
    rows, columns = (_spread(size, max(1, int(part * size)), rng) for size in picture.shape[-2:])
    return np.ascontiguousarray(picture[..., rows, :][..., columns])


def _spread(size: int, part: int, rng: np.random.Generator) -> np.ndarray:
    return int(rng.integers(0, size - part + 1)) + np.arange(size) * part // size


def spliced(one: Feeds, other: Feeds, rng: np.random.Generator) -> Feeds:
    """Return the start of a sequence and the end of another one, all inputs [batch, length] cut at the same place.

    Sequences of another batch size give nothing.
    """
    batch, length = next(iter(one.values())).shape
    if len(next(iter(other.values()))) != batch:
        return one
    start = int(rng.integers(1, length)) if length > 1 else length
    return {
        name: np.concatenate([value[..., :start], other[name][..., start - length :][..., : length - start]], axis=-1)
        for name, value in one.items()
    }


class Varied:
    """Samples, each with variants; re-iterable, the same every time.

    Samples vary that have pictures, which are inputs of a float type, [batch, channels, height, width], or that are
    nothing but integers [batch, length] of one shape; large ones have few variants. What a sequence is spliced with is
    of the same share. When these samples are split by turns, variants fall into the share of what they are
    variants of, but for the last few samples where their number is no multiple of the shares.

    Args:
        samples: What there is.
        variants: How many of each, at most.
        seed: Of the generator.
    """

    def __init__(self, samples: Stream, *, variants: int = _VARIANTS, seed: int = 0) -> None:
        self._samples = samples
        self._seed = seed
        first = next(iter(samples))
        size, enough = (tokens_of(first), _TOKENS) if tokens_of(first) else (pixels_of(first), _PIXELS)
        self._variants = min(variants, max(enough // (len(samples) * size) - 1, 0)) if size else 0

    def __len__(self) -> int:
        """Return how many there are."""
        return len(self._samples) * (1 + self._variants)

    def __iter__(self) -> Iterator[Feeds]:
        """Yield some samples, then their variants, then the next samples."""
        rng = np.random.default_rng(self._seed)
        block: list[Feeds] = []
        known: tuple[list[Feeds], list[Feeds]] = ([], [])  # sequences, of those that are fitted to and those that judge
        for feeds in self._samples:
            if self._variants and tokens_of(feeds):
                known[len(block) == SHARES - 1].append(feeds)
            block.append(feeds)
            if len(block) == SHARES:
                yield from self._block(block, known, rng)
                block = []
        yield from self._block(block, known, rng)

    def _block(
        self, block: Sequence[Feeds], known: tuple[list[Feeds], list[Feeds]], rng: np.random.Generator
    ) -> Iterator[Feeds]:
        yield from block
        for _ in range(self._variants):
            for place, feeds in enumerate(block):
                if tokens_of(feeds):
                    others = known[place == SHARES - 1]
                    yield spliced(feeds, others[int(rng.integers(len(others)))], rng)
                    continue
                yield {name: enlarged(value, rng) if is_picture(value) else value for name, value in feeds.items()}


def tokens_of(feeds: Feeds) -> int:
    """Return how many places the sequences of a sample have, 0 if anything else is in it."""
    values = list(feeds.values())
    fits = all(isinstance(value, np.ndarray) and value.dtype.kind in "iu" and value.ndim == 2 for value in values)
    return int(values[0].size) if fits and values and len({value.shape for value in values}) == 1 else 0


def pixels_of(feeds: Feeds) -> int:
    """Return how many pixels the pictures of a sample have, 0 without any."""
    pictures = (value for value in feeds.values() if is_picture(value))
    return sum(int(np.prod((len(value), *value.shape[2:]))) for value in pictures)


def is_picture(value: Any) -> bool:
    """Whether a value is pictures: of a float type, [batch, channels, height, width], and not too small."""
    fits = isinstance(value, np.ndarray) and value.dtype.kind == "f" and value.ndim == 4
    return fits and min(value.shape[-2:]) >= _SMALLEST
