"""Criteria of pruning as pure functions, against their formulas."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest

from graphopt.compensate import Blocks, NofM, Unstructured
from graphopt.compensate.sparse import saliency
from graphopt.passes.prune import criteria
from graphopt.passes.prune.scores import GROUPED, meanings, score_of

GROUPS = np.array([[3.0, -4.0], [0.0, 0.0], [1.0, 1.0], [-2.0, 2.0]], np.float32)


def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def test_groups_by_their_formulas() -> None:
    assert np.allclose(criteria.l1(GROUPS), [3.5, 0, 1, 2])
    assert np.allclose(criteria.l2(GROUPS), [np.sqrt(12.5), 0, 1, 2])
    assert np.allclose(criteria.max_norm(GROUPS), [4, 0, 1, 2])
    assert np.allclose(criteria.variance(GROUPS), [12.25, 0, 0, 4])


@pytest.mark.parametrize("name", GROUPED)
def test_only_groups_of_zeros_score_zero(name: str) -> None:
    scores = GROUPED[name](GROUPS)
    assert np.array_equal(scores == 0, ~GROUPS.any(axis=1))  # equal weights have no variance, but are not zeros
    assert scores.shape == (4,)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, ml_dtypes.bfloat16])
def test_magnitude_is_exact_in_every_type(dtype: Any) -> None:
    values = np.array([-1.5, 0.0, 2.0, -0.0], np.float64).astype(dtype)
    found = criteria.magnitude(values)
    assert found.dtype == (np.float64 if dtype is np.float64 else np.float32)
    assert np.array_equal(found, [1.5, 0, 2, 0])


def test_lamp_is_what_is_lost_over_what_is_left() -> None:
    found = criteria.lamp(np.array([[3.0, 1.0], [2.0, 0.0]]))
    assert np.allclose(found, [[1, 1 / 14], [4 / 13, 0]])
    assert criteria.lamp(np.zeros(3)).tolist() == [0, 0, 0]


def test_lamp_compares_layers_of_any_scale() -> None:
    weights = np.abs(rng().standard_normal(50))
    assert np.allclose(criteria.lamp(weights), criteria.lamp(1000 * weights))
    assert np.array_equal(np.argsort(criteria.lamp(weights)), np.argsort(weights))


def test_lamp_spares_what_is_not_finite() -> None:
    found = criteria.lamp(np.array([1.0, np.inf, np.nan]))
    assert found[0] < found[1]
    assert found[0] < found[2]


def test_chance_is_seeded_and_spares_no_zero() -> None:
    weights = np.array([1.0, 0.0, -2.0])
    first, second = (criteria.random(weights, rng()) for _ in range(2))
    assert np.array_equal(first, second)
    assert first[1] == 0
    assert (first[[0, 2]] > 0).all()


def test_scores_that_look_at_inputs() -> None:
    weights, energy = np.array([[1.0, -2.0], [3.0, 0.0]]), np.array([4.0, 9.0])
    assert np.allclose(criteria.wanda(weights, energy), [[2, 6], [6, 0]])
    assert np.allclose(criteria.fluctuation(weights, energy), [[4, 36], [36, 0]])
    assert np.allclose(saliency(weights, np.array([0.5, 2.0])), [[2, 2], [18, 0]])


@pytest.mark.parametrize("name", [*GROUPED, "lamp", "random"])
def test_scores_of_blocks_are_equal_within_each(name: str) -> None:
    weights = rng().standard_normal((6, 8))
    scores = score_of(name, Blocks(3, 4), rng())(weights, np.eye(8))
    parts = Blocks(3, 4).split(scores).transpose(0, 2, 1, 3).reshape(-1, 12)
    assert (parts == parts[:, :1]).all()
    assert len(np.unique(parts[:, 0])) == 4


@pytest.mark.parametrize("pattern", [Unstructured(), NofM(2, 4)])
def test_of_single_weights_all_magnitudes_are_one(pattern: Any) -> None:
    weights = rng().standard_normal((6, 8))
    wanted = pattern.keep(np.abs(weights), 0.5)
    for name in ("l1", "l2", "max-norm", "lamp"):
        assert np.array_equal(pattern.keep(score_of(name, pattern, rng())(weights, np.eye(8)), 0.5), wanted)


def test_every_criterion_says_what_it_is() -> None:
    for name, text in meanings().items():
        assert text[0].isupper(), name
        assert "``" in text or "lot" in text, name
