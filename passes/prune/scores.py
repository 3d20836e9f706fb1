"""The criteria by name: what they say, and as scores of a layer's matrix."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping
from types import MappingProxyType

import numpy as np

from graphopt.compensate import Blocks, Pattern
from graphopt.compensate.problem import Score, obs_score
from graphopt.compensate.sparse import saliency
from graphopt.passes.prune import criteria

GROUPED: Mapping[str, Callable[[np.ndarray], np.ndarray]] = MappingProxyType(
    {"l1": criteria.l1, "l2": criteria.l2, "max-norm": criteria.max_norm, "variance": criteria.variance}
)
"""Criteria of groups of weights, [..., members] -> [...]; those but the variance are the magnitude of single ones."""

_DEFINITIONS: Mapping[str, Callable[..., np.ndarray]] = MappingProxyType(
    {
        **GROUPED,
        "lamp": criteria.lamp,
        "random": criteria.random,
        "wanda": criteria.wanda,
        "fluctuation": criteria.fluctuation,
        "obs": saliency,
    }
)
_SHAPES = re.compile(r", (?:\[\.\.\.[^\]]*\](?: -> \[\.\.\.\])?|in any shape)")
_SOURCE = re.compile(r"^Source: (.+?)(?:\n\n|\Z)", re.M | re.S)


def meanings() -> dict[str, str]:
    """Return by option what each criterion is and where it comes from, from the docstrings of their functions."""
    found = {}
    for name, function in _DEFINITIONS.items():
        text = inspect.cleandoc(function.__doc__ or "")
        source = _SOURCE.search(text)
        meaning = _SHAPES.sub("", " ".join(text.split("\n\n", maxsplit=1)[0].split()))
        found[f"criterion={name}"] = f"{meaning} Source: {' '.join(source[1].split())}" if source else meaning
    return found


def score_of(criterion: str, pattern: Pattern, rng: np.random.Generator) -> Score:
    """Return a criterion as scores of single weights; of a pattern of blocks the sum over a block is the block's.

    Args:
        criterion: Its name.
        pattern: Where zeros may stand.
        rng: For random.
    """
    if criterion == "obs":
        return obs_score
    if criterion == "wanda":
        return lambda weights, moment: criteria.wanda(weights, np.diag(moment))
    if criterion == "fluctuation":
        return lambda weights, moment: criteria.fluctuation(weights, np.diag(moment))
    if isinstance(pattern, Blocks):
        return lambda weights, _: _of_blocks(weights, pattern, criterion, rng)
    if criterion == "random":
        return lambda weights, _: criteria.random(weights, rng)
    return lambda weights, _: criteria.magnitude(weights)  # of one weight l2 and the others are in its order


def _of_blocks(weights: np.ndarray, blocks: Blocks, criterion: str, rng: np.random.Generator) -> np.ndarray:
    """Return scores [rows, inputs], equal within each block, from a matrix of that shape."""
    groups = np.swapaxes(blocks.split(weights), -3, -2)
    groups = groups.reshape(*groups.shape[:-2], -1)
    if criterion == "random":
        scores = criteria.random(np.asarray(groups.any(axis=-1)), rng)
    else:
        scores = GROUPED["l2" if criterion == "lamp" else criterion](groups)
    return np.asarray(np.repeat(np.repeat(scores, blocks.height, axis=-2), blocks.width, axis=-1))
