"""Steps down a noisy slope."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

_MEAN, _SQUARE = 0.9, 0.99  # how much of what was is kept of the gradients and of their squares
_TINY = 1e-12
_WARMUP = 8  # steps until they are as long as wanted


def step_length(step: int, steps: int, longest: float) -> float:
    """Return the length of a step: at first ever longer, then shorter by half a cosine.

    Args:
        step: Which one, from 0.
        steps: How many there will be.
        longest: What the length is a part of.
    """
    return longest * min(1.0, (step + 1) / _WARMUP) * 0.5 * (1 + math.cos(math.pi * step / steps))


class Adam:
    """Adam, whose steps are a part of the size of each weight.

    Source: Kingma and Ba, "Adam: A Method for Stochastic Optimization", arXiv:1412.6980; steps relative to the weights
    as in You et al., "Large Batch Optimization for Deep Learning", arXiv:1904.00962.

    Args:
        weights: What it starts from.
    """

    def __init__(self, weights: Sequence[np.ndarray]) -> None:
        self._sizes = [max(float(np.sqrt(np.mean(np.square(weight)))), _TINY) for weight in weights]
        self._means = [np.zeros_like(weight) for weight in weights]
        self._squares = [np.zeros_like(weight) for weight in weights]
        self._steps = 0

    def step(self, weights: Sequence[np.ndarray], gradients: Sequence[np.ndarray], rate: float) -> list[np.ndarray]:
        """Return the weights after one step.

        Args:
            weights: The present ones.
            gradients: Of what is to become smaller.
            rate: Length of a step, as a part of the root mean square of the weight that it started from.
        """
        self._steps += 1
        grown = 1 - _MEAN**self._steps, 1 - _SQUARE**self._steps
        found = []
        for index, (weight, gradient) in enumerate(zip(weights, gradients, strict=True)):
            mean, square = self._means[index], self._squares[index]
            mean += (1 - _MEAN) * (gradient - mean)
            square += (1 - _SQUARE) * (np.square(gradient) - square)
            way = (mean / grown[0]) / (np.sqrt(square / grown[1]) + _TINY)
            found.append((weight - rate * self._sizes[index] * way).astype(weight.dtype))
        return found
