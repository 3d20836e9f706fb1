"""How much each weight matters: pure functions from weights to scores.

A score is a non-negative float32 or float64 of the weight's own; the smaller, the less is lost with it. A weight that
is zero already scores 0.
"""

from __future__ import annotations

import numpy as np


def magnitude(weights: np.ndarray) -> np.ndarray:
    """Score weights by ``|w|``, in any shape: float64 for float64, else float32, which holds half and bfloat16 exactly.

    Source: Han et al., "Learning both Weights and Connections for Efficient Neural Networks", NeurIPS 2015.
    """
    wide = weights.dtype if weights.dtype == np.float64 else np.dtype(np.float32)
    return np.abs(weights.astype(wide))
