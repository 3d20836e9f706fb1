"""Two versions of a model, walked through front to back on the same samples, so that each node runs about once.

What has to be known of a layer is what it reads in the compressed model and what it gave in the original. Running both
up to the layer, for one layer after the other, costs the square of the layers. Here the values at a cut through both
graphs are held instead, and the cut is moved forward: a node runs when the cut gets past it, with the weights that it
has by then.
"""

from __future__ import annotations

import tempfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from graphopt.cut import Side
from graphopt.ir.graph import StoredPayload
from graphopt.layers import LinearLayer, linear_layer
from graphopt.model import Model
from graphopt.moments import Pair, PairedMoments, Stream, paired_moments
from graphopt.progress import Progress, SilentProgress
from graphopt.runtime.session import open_session
from graphopt.samples import Feeds
from graphopt.shapes import infer_shapes

_HELD = 2**28  # bytes of values in memory; what is beyond lies in files
_TARGET = "walk/original/"  # before the names of the original's values


@dataclass(eq=False)
class Walk:
    """A cut through an original and a compressed model that has the same nodes; a context manager.

    Attributes:
        original: What gives the targets.
        compressed: Its weights may be replaced at any time.
        samples: What both run on.
        progress: Where it reports.
    """

    original: Model
    compressed: Model
    samples: Stream
    progress: Progress = field(default_factory=SilentProgress)

    def __enter__(self) -> Self:
        """Read the samples and put the cut before the first node."""
        self._folder = tempfile.TemporaryDirectory(prefix="graphopt-")
        self._shelf = Shelf(Path(self._folder.name))
        for model in (self.original, self.compressed):
            infer_shapes(model)  # a copy has forgotten its types, and what has none cannot be held at a cut
        self._sides = Side(self.original, _TARGET), Side(self.compressed, "")
        self._cut = 0
        needed = self._sides[1].crossing(0)
        self._values = [self._first(feeds, needed) for feeds in self.samples]
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        """Remove the files."""
        self._folder.cleanup()

    def moments(self, layers: Sequence[LinearLayer]) -> Iterator[PairedMoments]:
        """Yield the moments of layers of the compressed model, after moving the cut to the first of them.

        Args:
            layers: None of them reads what another one gives, and none lies before the cut.

        Raises:
            ModelError: A model cannot run on a sample.
        """
        yield from self.paired([Pair.same(layer) for layer in layers])

    def paired(self, pairs: Sequence[Pair], *, apart: int = 0) -> Iterator[PairedMoments]:
        """Yield the moments of layers and what they should give, as `moments` does for what they gave.

        Args:
            pairs: Layers as for `moments`; their targets do not lie before the cut.
            apart: As for `paired_moments`.

        Raises:
            ModelError: A model cannot run on a sample.
        """
        if not pairs:
            return
        given, read = self._sides
        places = [read.position(pair.layer.node) for pair in pairs]
        self._advance(min(places))
        targets = [pair.target for pair in pairs]
        wanted = [pair.layer.node.outputs[0].name for pair in pairs]
        teacher = given.between(self._cut, max(map(given.made, targets)) + 1, targets)
        besides = [pair.besides for pair in pairs if pair.besides]
        student = read.between(self._cut, max(places) + 1, [*wanted, *besides])
        twins = [replace(pair, layer=twin) for pair, twin in zip(pairs, _named(student, wanted), strict=True)]
        fed = {spec.name for part in (teacher, student) for spec in part.interface.inputs}
        found = paired_moments(teacher, student, twins, Held(self._values, fed), apart=apart, progress=self.progress)
        for pair, moments in zip(pairs, found, strict=True):
            yield replace(moments, layer=pair.layer)

    def _first(self, feeds: Feeds, needed: Collection[str]) -> dict[str, Any]:
        """Return the values before the first node: those of the sample, and defaults that it leaves as they are."""
        defaults = self.compressed.graph.defaults
        found: dict[str, Any] = {}
        for name in needed:
            held = defaults.get(name)
            given = held.load() if isinstance(held, StoredPayload) else held
            found[name] = found[_TARGET + name] = self._shelf.put(feeds.get(name, given))
        return found

    def _advance(self, position: int) -> None:
        """Run both models up to a position, or up to the last one before it where all values can be held."""
        side = self._sides[1]
        while position > self._cut and not all(each.can_hold(position) for each in self._sides):
            position -= 1
        if position <= self._cut:
            return
        crossing, before = side.crossing(position), frozenset(side.crossing(self._cut))
        fresh = [name for name in crossing if name not in before]
        for each in self._sides:
            if fresh:
                self._run(each, each.between(self._cut, position, fresh))
        kept = {prefix + name for name in crossing for prefix in ("", _TARGET)}
        for values in self._values:
            for name in values.keys() - kept:
                held = values.pop(name)
                if not any(held is other for other in values.values()):  # an input is held once for both models
                    self._shelf.drop(held)
        self._cut = position

    def _run(self, side: Side, part: Model) -> None:
        with open_session(part) as session:
            for values in self.progress.track(self._values, "front to back", len(self._values)):
                feeds = {name: loaded(values[name]) for name in session.inputs}
                found = session.run(feeds)
                values.update((side.prefix + name, self._shelf.put(value)) for name, value in found.items())


class Held:
    """Some of the values that are held, as samples."""

    def __init__(self, values: Sequence[Mapping[str, Any]], names: Collection[str]) -> None:
        self._values = values
        self._names = names

    def __len__(self) -> int:
        """Return the number of samples."""
        return len(self._values)

    def __iter__(self) -> Iterator[Feeds]:
        """Yield the samples."""
        for values in self._values:
            yield {name: loaded(values[name]) for name in self._names}


class Shelf:
    """Holds arrays: in memory up to a limit, the others in files.

    Args:
        folder: Where the files are.
        limit: Bytes in memory.
    """

    def __init__(self, folder: Path, limit: int = _HELD) -> None:
        self._folder = folder
        self._left = limit
        self._count = 0

    def put(self, value: Any) -> Any:
        """Return the value, or the file that it lies in now."""
        if not isinstance(value, np.ndarray):
            return value
        if value.nbytes <= self._left or value.dtype.kind not in "biufc":  # no file for text
            self._left -= value.nbytes
            return value
        self._count += 1
        path = self._folder / f"{self._count}.npy"
        np.save(path, value, allow_pickle=False)
        return path

    def drop(self, held: Any) -> None:
        """Forget what `put` returned."""
        if isinstance(held, Path):
            held.unlink()
        elif isinstance(held, np.ndarray):
            self._left += held.nbytes


def loaded(held: Any) -> Any:
    """Return a value that a `Shelf` holds."""
    return np.load(held, mmap_mode="r") if isinstance(held, Path) else held


def _named(model: Model, outputs: Sequence[str]) -> list[LinearLayer]:
    """Return the layers that give these outputs."""
    makers = {node.outputs[0].name: linear_layer(node) for node in model.graph.nodes if node.outputs}
    found = [makers[name] for name in outputs]
    return [layer for layer in found if layer is not None]
