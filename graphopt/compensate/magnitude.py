"""Units in which squares of weights and of inputs neither overflow nor vanish."""

from __future__ import annotations

import math

import numpy as np


def magnitude(values: np.ndarray) -> float:
    """Return the power of two next above the largest magnitude, 1 where there is none: to divide by it is exact."""
    largest = float(np.abs(values).max(initial=0.0))
    return math.ldexp(1.0, math.frexp(largest)[1]) if largest > 0 else 1.0
