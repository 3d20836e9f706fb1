"""How much weights matter: pure functions from weights, and what is known of their inputs, to scores.

A score is a non-negative float32 or float64; the smaller, the less is lost. What is zero already scores 0, and nothing
else does. Groups of weights that go together (blocks, channels) are the last axis of `groups`; it is 1 for single
weights. The second-order score is `graphopt.compensate.saliency`.
"""

from __future__ import annotations

import numpy as np


def magnitude(weights: np.ndarray) -> np.ndarray:
    """Score single weights by ``|w|``, in any shape: float64 for float64, else float32, which holds half and bfloat16.

    Source: Han et al., "Learning both Weights and Connections for Efficient Neural Networks", NeurIPS 2015.
    """
    wide = weights.dtype if weights.dtype == np.float64 else np.dtype(np.float32)
    return np.abs(weights.astype(wide))


def l1(groups: np.ndarray) -> np.ndarray:
    """Score groups by the mean of ``|w|``, [..., members] -> [...].

    Source: Li et al., "Pruning Filters for Efficient ConvNets", arXiv:1608.08710.
    """
    return np.asarray(magnitude(groups).mean(axis=-1))


def l2(groups: np.ndarray) -> np.ndarray:
    """Score groups by the root of the mean of ``w^2``, [..., members] -> [...].

    Source: He et al., "Soft Filter Pruning", arXiv:1808.06866.
    """
    return np.asarray(np.sqrt(np.square(magnitude(groups)).mean(axis=-1)))


def max_norm(groups: np.ndarray) -> np.ndarray:
    """Score groups by the largest ``|w|``, [..., members] -> [...].

    Source: the L-infinity case of Wen et al., "Learning Structured Sparsity", arXiv:1608.03665.
    """
    return np.asarray(magnitude(groups).max(axis=-1))


def variance(groups: np.ndarray) -> np.ndarray:
    """Score groups by ``Var(w)``, [..., members] -> [...]: equal weights only average.

    Source: Polyak and Wolf, "Channel-Level Acceleration of Deep Face Representations", IEEE Access 2015, where the
    variance is that of activations.
    """
    wide = magnitude(groups)
    spread = np.where(groups < 0, -wide, wide).var(axis=-1)
    floor = np.finfo(spread.dtype).tiny
    return np.where(wide.any(axis=-1), np.maximum(spread, floor), 0).astype(spread.dtype)


def random(weights: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Score by lot, in any shape: the control that a criterion must beat."""
    return np.where(weights == 0, np.float32(0), 1 - rng.random(weights.shape, np.float32))


def lamp(scores: np.ndarray) -> np.ndarray:
    """Score by ``s^2 / sum of s^2 that are at least as large``, by which layers can be compared, in any shape.

    That is what is lost relative to what would be left, of the magnitudes s of one layer. What is not finite scores
    infinity.

    Source: Lee et al., "Layer-adaptive Sparsity for the Magnitude-based Pruning", arXiv:2010.07611.
    """
    flat = scores.ravel().astype(np.float64)
    result = np.full(flat.shape, np.inf)  # what is not finite never goes
    known = np.flatnonzero(np.isfinite(flat))
    order = known[np.argsort(flat[known], kind="stable")]
    squares = np.square(flat[order])
    left = np.cumsum(squares[::-1])[::-1]
    result[order] = np.divide(squares, left, out=np.zeros_like(left), where=left > 0)
    return result.reshape(scores.shape)


def wanda(weights: np.ndarray, energy: np.ndarray) -> np.ndarray:
    """Score weights by ``|w| * |x|``, [..., rows, inputs].

    Source: Sun et al., "A Simple and Effective Pruning Approach for Large Language Models", arXiv:2306.11695.

    Args:
        weights: [..., rows, inputs].
        energy: Mean square of each input, [..., inputs].
    """
    return np.asarray(np.abs(weights) * np.sqrt(energy)[..., None, :])


def fluctuation(weights: np.ndarray, spread: np.ndarray) -> np.ndarray:
    """Score weights by ``w^2 Var(x)``, [..., rows, inputs]: right where the bias takes up the mean.

    Source: An et al., "Fluctuation-based Adaptive Structured Pruning" (FLAP), arXiv:2312.11983.

    Args:
        weights: [..., rows, inputs].
        spread: Variance of each input, [..., inputs].
    """
    return np.asarray(np.square(weights) * spread[..., None, :])
