"""Bits for each layer by loss per byte, as few as the limit allows."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from graphopt.layers import LinearLayer

LEAST, MOST = 3, 8  # bits of a weight
_TRIALS = 4  # models that are made and judged


def allocate(losses: Sequence[tuple[LinearLayer, float]], mean_bits: float) -> dict[str, int]:
    """Return bits by weight name whose mean over all weights is about `mean_bits`.

    With the loss of a layer ``c * 4**-bits`` and bytes in proportion to ``bits``, the sum of losses is least for its
    bytes where all layers lose as much for the last byte: ``bits = log4(c / n) + constant`` (reverse water-filling).

    Args:
        losses: Layers, each with the share of its output that it loses at equal bits.
        mean_bits: Bits of a weight on average, 3 to 8.
    """
    sizes = np.array([np.prod(layer.weight.shape) for layer, _ in losses], np.float64)
    worth = np.array([math.log(max(loss, 1e-12) / size, 4) for (_, loss), size in zip(losses, sizes, strict=True)])

    def bits(offset: float) -> np.ndarray:
        return np.clip(np.rint(worth + offset), LEAST, MOST)

    low, high = LEAST - worth.max(initial=0) - 1, MOST - worth.min(initial=0) + 1
    for _ in range(40):
        middle = (low + high) / 2
        if float((bits(middle) * sizes).sum()) > mean_bits * float(sizes.sum()):
            high = middle
        else:
            low = middle
    return {layer.weight.name: int(count) for (layer, _), count in zip(losses, bits(low), strict=True)}


def fewest_bits(holds: Callable[[float], bool]) -> float | None:
    """Return the least mean bits that hold the limit, found by halving; None if none that was tried does.

    Args:
        holds: Makes and judges a model of so many bits on average.
    """
    low, high, found = float(LEAST), float(MOST), None
    for _ in range(_TRIALS):
        middle = round(2 * (low + high)) / 4
        if holds(middle):
            found = high = middle
        else:
            low = middle
        if high - low <= 0.25:
            break
    if found is None and holds(float(MOST)):
        return float(MOST)
    return found
