"""The figure that everything here minimizes."""

from __future__ import annotations

import numpy as np


def output_loss(weight: np.ndarray, approximation: np.ndarray, moment: np.ndarray) -> np.ndarray:
    """Return the mean squared error of each output row.

    Args:
        weight: Weights, [rows, inputs].
        approximation: Their replacement, [rows, inputs].
        moment: Second moment of the inputs, [inputs, inputs].

    Returns:
        Error per row, [rows], in squared units of the output.
    """
    difference = np.asarray(weight, np.float64) - approximation
    return np.asarray(np.einsum("rk,rk->r", difference @ moment, difference))
