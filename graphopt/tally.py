"""What `moments` counts with: batches of layers, thinned positions, sums over samples."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeVar

import numpy as np

from graphopt.layers import LinearLayer, linear_layer
from graphopt.model import Model

_POSITIONS = 64, 4096  # least and most patches of one sample that count; neighbours add cost but little knowledge
_EVIDENCE = 64  # patches for each input of a layer, over all samples
_TARGET = 2**24  # floats of one layer's targets that one sample may have

ItemT = TypeVar("ItemT")


class Tally:
    """Sums of one layer, in float64; the last of the names is that of the number of positions.

    Attributes:
        count: Positions that the sums are over.
        left_out: Samples whose sums were not finite, which no sum holds.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self._names = names
        self._sums: list[np.ndarray] = []
        self.count = 0
        self.left_out = 0

    def add(self, found: dict[str, np.ndarray]) -> None:
        """Add one sample."""
        *sums, count = (found[name] for name in self._names)
        self._sums = self._sums or [np.zeros(item.shape) for item in sums]
        if not all(np.isfinite(item).all() for item in sums):
            self.left_out += 1
            return
        for total, item in zip(self._sums, sums, strict=True):
            total += item
        self.count += int(count)

    def means(self) -> list[np.ndarray]:
        """Return the mean over all positions."""
        return [total / max(self.count, 1) for total in self._sums]


def batches(items: Iterable[ItemT], size: Callable[[ItemT], int], budget: int) -> Iterator[list[ItemT]]:
    """Yield the items in batches whose sizes fit a budget; a larger item is a batch of its own."""
    batch: list[ItemT] = []
    used = 0
    for item in items:
        if batch and used + size(item) > budget:
            yield batch
            batch, used = [], 0
        batch.append(item)
        used += size(item)
    if batch:
        yield batch


def evidence(layer: LinearLayer, samples: int, rows: int = 1) -> int:
    """Return how many patches of a sample count for a layer."""
    least, most = _POSITIONS
    return min(max(_EVIDENCE * layer.inputs // max(samples, 1), least), most, max(_TARGET // rows, 1))


def twins(model: Model, layers: Sequence[LinearLayer]) -> tuple[Model, list[LinearLayer]]:
    """Return a copy of the model without outputs, and the layers in it."""
    positions = {id(node): index for index, node in enumerate(model.graph.nodes)}
    copy = model.copy()
    copy.graph.outputs.clear()  # what no moment needs is not computed
    found = [linear_layer(copy.graph.nodes[positions[id(layer.node)]]) for layer in layers]
    return copy, [twin for twin in found if twin is not None]
