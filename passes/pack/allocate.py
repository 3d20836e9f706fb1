"""Bits for each weight by loss per byte, and the fewest bits that a limit allows."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from graphopt.passes.pack.bits import plane_widths

LEAST, MOST = 2, 8  # bits of a weight
_SLOW = 7  # bits that take long to decode, in three planes
MEASURED = 4  # bits at which losses are measured
_NODE_BYTES = 80  # of a decoder's node, roughly
_STEP = 2.0**-5  # bits; less than one layer more or less of most models
_TRIALS = 5  # models that are made and judged
_RATE = 2.0  # the loss falls by 4 a bit: its logarithm to base 2 by so much
_AIM = math.log2(0.97)  # the loss over the limit that trials aim at, for they hit it only nearly
_CLOSE = 0.94  # of the limit: less would not be worth another trial
_NARROW = 0.125  # bits between a trial that held and one that did not


def allocate(losses: Sequence[float], sizes: Sequence[int], mean_bits: float) -> list[int]:
    """Return the bits of each weight, with the least sum of losses among all of the same bytes.

    A weight that loses ``c`` at 4 bits loses ``c * 4**(4 - bits)`` at others. Each weight takes the bits that minimize
    ``loss + price * bytes``; the price is found by halving. A weight that made no difference, as in a branch that no
    sample takes, is not known to be worthless: it counts as the others do on average.

    Args:
        losses: What the outputs of the model lose when this weight alone has 4 bits.
        sizes: Elements.
        mean_bits: Bits of a weight on average, which limits the bytes of all.
    """
    choices = np.setdiff1d(np.arange(min(LEAST, math.floor(mean_bits)), MOST + 1), [_SLOW])
    count = np.asarray(sizes, np.float64)[:, None]
    lost = _known_losses(losses, sizes)[:, None] * 4.0 ** (MEASURED - choices)
    nbytes = count * choices / 8 + [_decoder_bytes(int(bits)) for bits in choices]
    allowed = float(count.sum()) * mean_bits / 8 + len(count) * _decoder_bytes(round(mean_bits))

    def chosen(price: float) -> np.ndarray:
        return np.asarray(np.argmin(lost + price * nbytes, axis=1))

    cheap, dear = -120.0, 40.0  # logarithms of the price to base 2
    for _ in range(60):
        middle = (cheap + dear) / 2
        used = float(np.take_along_axis(nbytes, chosen(2.0**middle)[:, None], 1).sum())
        cheap, dear = (middle, dear) if used > allowed else (cheap, middle)
    return [int(bits) for bits in choices[chosen(2.0**dear)]]


def _known_losses(losses: Sequence[float], sizes: Sequence[int]) -> np.ndarray:
    """Return the losses, those of zero made up from the mean loss of an element."""
    lost, count = np.asarray(losses, np.float64), np.asarray(sizes, np.float64)
    known = lost > 0
    each = float(lost.sum()) / float(count[known].sum()) if known.any() else 1.0
    return np.where(known, lost, each * count)


def predicted_bits(losses: Sequence[float], sizes: Sequence[int], limit: float) -> float:
    """Return the least mean bits at which the losses of all weights add up to no more than the limit."""
    for mean in np.arange(LEAST, MOST, _STEP):
        bits = allocate(losses, sizes, float(mean))
        if sum(loss * 4.0 ** (MEASURED - count) for loss, count in zip(losses, bits, strict=True)) <= limit:
            return float(mean)
    return float(MOST)


def _decoder_bytes(bits: int) -> int:
    """Return what the nodes and levels of a decoder take, roughly: each further plane needs nodes of its own."""
    if bits == MOST:
        return 2 * _NODE_BYTES
    levels: int = 4 * 2**bits
    return (5 + 3 * (len(plane_widths(bits)) - 1)) * _NODE_BYTES + levels


def fewest_bits(excess: Callable[[float], float], start: float = 4.0) -> float | None:
    """Return the least mean bits that hold the limit, nearly; None if not even the most do.

    Each trial tells how many bits more or fewer would meet the limit if the loss fell by 4 with each bit. Where that is
    too hopeful, steps grow. Between a trial that held and one that did not, the logarithm of the loss is taken as a
    straight line; where a loss is no more than within the limit, as one that is counted, the middle comes next.

    Args:
        excess: Makes and judges a model of so many bits on average; returns its loss over the limit, at most 1 where
            the limit holds.
        start: First trial.
    """
    low, high = (LEAST - _STEP, math.nan), (float(MOST), math.nan)  # bits, and the logarithm of the loss over the limit
    trial, step, found = min(max(start, float(LEAST)), float(MOST)), _NARROW, None
    for _ in range(_TRIALS):
        over = excess(trial)
        judged = trial, math.log2(min(max(over, 2.0**-8), 2.0**8))
        if over <= 1:
            found, high = trial, judged
        else:
            low, step = judged, 2 * step
        if found is not None and (_CLOSE <= over < 1 or high[0] - low[0] <= _NARROW):
            break
        trial = _next(low, high, step)
        if not low[0] < trial < high[0] and found is not None:
            break
        if low[0] >= MOST:
            return None
    if found is None and excess(float(MOST)) <= 1:
        return float(MOST)
    return found


def _next(low: tuple[float, float], high: tuple[float, float], step: float) -> float:
    """Return the bits to try next, given the most that did not hold and the fewest that did, if any, with their losses.

    Args:
        low: Bits, and the logarithm to base 2 of the loss over the limit; NaN if not tried.
        high: The same.
        step: Least bits to add as long as nothing held.
    """
    if math.isnan(high[1]):
        return _rounded(min(max(low[0] + (low[1] - _AIM) / _RATE, low[0] + step), float(MOST)))
    if high[1] == 0:
        return _rounded((low[0] + high[0]) / 2)
    rate = _RATE if math.isnan(low[1]) else (low[1] - high[1]) / (high[0] - low[0])
    return _rounded(min(max(high[0] + (high[1] - _AIM) / rate, low[0] + _STEP), high[0] - _STEP))


def _rounded(bits: float) -> float:
    return math.ceil(bits / _STEP) * _STEP
