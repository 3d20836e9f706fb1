"""More samples from few pictures, so that what is fitted holds for more than these.

The layers of a network have as many unknowns as a few dozen pictures have independent positions, and least squares then
make up for everything on these pictures and for less on others. As the targets are what the original gives, and no
label, any picture will do: each is also shown as a cut-out that is enlarged to its size.

Source: Szegedy et al., "Going Deeper with Convolutions", arXiv:1409.4842, section 6 (cut-outs of any size).
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
_SMALLEST = 16  # height and width below which an input is no picture


def enlarged(picture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return cut-outs of pictures [..., height, width] at the size of the whole, by nearest neighbours."""
    part = rng.uniform(*_ZOOM)
    rows, columns = (_spread(size, max(1, int(part * size)), rng) for size in picture.shape[-2:])
    return np.ascontiguousarray(picture[..., rows, :][..., columns])


def _spread(size: int, part: int, rng: np.random.Generator) -> np.ndarray:
    return int(rng.integers(0, size - part + 1)) + np.arange(size) * part // size


class Varied:
    """Samples, each with variants of its pictures; re-iterable, the same every time.

    Pictures are inputs of a float type, [batch, channels, height, width]; samples without any have no variants, and
    many large ones have few. When these samples are split by turns, variants fall into the share of what they are
    variants of, but for the last few samples where their number is no multiple of the shares.

    Args:
        samples: What there is.
        variants: How many of each, at most.
        seed: Of the generator.
    """

    def __init__(self, samples: Stream, *, variants: int = _VARIANTS, seed: int = 0) -> None:
        self._samples = samples
        self._seed = seed
        pixels = len(samples) * pixels_of(next(iter(samples)))
        self._variants = min(variants, max(_PIXELS // pixels - 1, 0)) if pixels else 0

    def __len__(self) -> int:
        """Return how many there are."""
        return len(self._samples) * (1 + self._variants)

    def __iter__(self) -> Iterator[Feeds]:
        """Yield some samples, then their variants, then the next samples."""
        rng = np.random.default_rng(self._seed)
        block: list[Feeds] = []
        for feeds in self._samples:
            block.append(feeds)
            if len(block) == SHARES:
                yield from self._block(block, rng)
                block = []
        yield from self._block(block, rng)

    def _block(self, block: Sequence[Feeds], rng: np.random.Generator) -> Iterator[Feeds]:
        yield from block
        for _ in range(self._variants):
            for feeds in block:
                yield {name: enlarged(value, rng) if is_picture(value) else value for name, value in feeds.items()}


def pixels_of(feeds: Feeds) -> int:
    """Return how many pixels the pictures of a sample have, 0 without any."""
    pictures = (value for value in feeds.values() if is_picture(value))
    return sum(int(np.prod((len(value), *value.shape[2:]))) for value in pictures)


def is_picture(value: Any) -> bool:
    """Whether a value is pictures: of a float type, [batch, channels, height, width], and not too small."""
    fits = isinstance(value, np.ndarray) and value.dtype.kind == "f" and value.ndim == 4
    return fits and min(value.shape[-2:]) >= _SMALLEST
