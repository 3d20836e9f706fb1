"""Intervals for what was measured on few samples."""

from __future__ import annotations

import math

import numpy as np

_Z = 1.959963984540054  # of the normal distribution, 95 % two-sided
_RESAMPLES, _BLOCK = 1000, 100  # in all, and drawn at a time


def ratio_interval(numerators: np.ndarray, denominators: np.ndarray, seed: int) -> tuple[float, float]:
    """Return the 95 % interval of sum(numerators) / sum(denominators) over other samples of the same kind.

    Percentile bootstrap over samples (Efron and Tibshirani, An Introduction to the Bootstrap, chapter 13), cut to
    [0, 1]. One sample says nothing about others: the interval is [0, 1].

    Args:
        numerators: One a sample, not negative, shape [samples].
        denominators: Likewise.
        seed: Of the resampling.
    """
    count = len(numerators)
    if count < 2:
        return 0.0, 1.0
    rng = np.random.default_rng([seed, count])
    ratios: list[float] = []
    while len(ratios) < _RESAMPLES:
        drawn = rng.multinomial(count, np.full(count, 1 / count), size=_BLOCK)  # how often each sample is drawn
        ratios.extend(map(ratio, (drawn @ numerators).tolist(), (drawn @ denominators).tolist()))
    low, high = np.quantile(ratios, (0.025, 0.975))
    return float(low), float(high)


def ratio(numerator: float, denominator: float) -> float:
    """Return the quotient, at most 1; of nothing by nothing, 0."""
    if numerator == 0:
        return 0.0
    return 1.0 if numerator >= denominator else numerator / denominator


def share_interval(hits: np.ndarray, trials: np.ndarray) -> tuple[float, float]:
    """Return the 95 % interval of sum(hits) / sum(trials).

    Wilson's score interval (Wilson 1927), which is right for small counts. Trials within one sample resemble each
    other, so their number is cut to the one that independent trials would need for the same spread between samples
    (the design effect: Kish, Survey Sampling, section 5.4), though not below the number of samples.

    Args:
        hits: Whole numbers, one a sample, shape [samples].
        trials: Likewise; at least one trial in all.
    """
    total = float(trials.sum())
    share = float(hits.sum()) / total
    effective = total
    samples = len(trials)
    if samples > 1 and 0 < share < 1:
        spread = float(np.square(hits - share * trials).sum()) * samples / (samples - 1) / total**2
        independent = share * (1 - share) / spread if spread > 0 else total
        effective = min(total, max(float(samples), independent))
    return wilson(share, effective)


def wilson(share: float, trials: float) -> tuple[float, float]:
    """Return Wilson's 95 % interval for a share of `trials` independent trials."""
    slack = _Z**2 / trials
    middle = (share + slack / 2) / (1 + slack)
    half = _Z * math.sqrt(share * (1 - share) / trials + slack / (4 * trials)) / (1 + slack)
    return (0.0 if share == 0 else middle - half), (1.0 if share == 1 else middle + half)
