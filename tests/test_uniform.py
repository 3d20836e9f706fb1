"""Fitting integers of a few bits: never worse than rounding, scales, zero points, blocks, layers nobody has seen."""

from __future__ import annotations

import numpy as np
import pytest

from graphopt.compensate import fit_integers, output_loss, refit_block_scales


def case(groups: int, rows: int, inputs: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return weights [groups, rows, inputs] and a moment of correlated inputs [groups, inputs, inputs]."""
    rng = np.random.default_rng(seed)
    mix = rng.standard_normal((groups, inputs, inputs)) / np.sqrt(inputs) + np.eye(inputs)
    return rng.standard_normal((groups, rows, inputs)), mix @ np.swapaxes(mix, 1, 2)


def loss(matrix: np.ndarray, approximation: np.ndarray, moment: np.ndarray) -> float:
    """Return the error of all groups."""
    return sum(float(output_loss(*parts).sum()) for parts in zip(matrix, approximation, moment, strict=True))


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("block", [0, 16, 10])
@pytest.mark.parametrize("groups", [1, 3])
def test_fitting_beats_rounding(groups: int, block: int, symmetric: bool) -> None:
    matrix, moment = case(groups, 12, 36)
    fitted = fit_integers(matrix, moment, 4, block=block, symmetric=symmetric)
    rounded = fit_integers(matrix, None, 4, block=block, symmetric=symmetric)
    assert loss(matrix, fitted.decoded(), moment) < 0.75 * loss(matrix, rounded.decoded(), moment)
    low, high = (-8, 7) if symmetric else (0, 15)
    assert low <= fitted.codes.min()
    assert fitted.codes.max() <= high
    assert fitted.scale.shape == (groups, 12, -(-36 // (block or 36)))
    assert (fitted.scale > 0).all()
    assert (fitted.zero is None) == symmetric


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_more_bits_lose_less(bits: int) -> None:
    matrix, moment = case(1, 8, 32)
    energy = loss(matrix, np.zeros_like(matrix), moment)
    assert loss(matrix, fit_integers(matrix, moment, bits).decoded(), moment) < energy * 4.0 ** (2 - bits) / 4


def test_zero_points_help_where_weights_are_one_sided() -> None:
    matrix, moment = case(1, 8, 32)
    matrix = np.abs(matrix)
    asymmetric = fit_integers(matrix, moment, 4, symmetric=False)
    assert asymmetric.zero is not None
    whole = fit_integers(matrix, moment, 4)
    assert loss(matrix, asymmetric.decoded(), moment) < 0.5 * loss(matrix, whole.decoded(), moment)


def test_zeros_stay_zero() -> None:
    matrix, moment = case(1, 4, 8)
    matrix[:, 1] = 0
    for symmetric in (True, False):
        assert not fit_integers(matrix, moment, 4, block=4, symmetric=symmetric).decoded()[:, 1].any()
    assert not fit_integers(np.zeros((1, 4, 8)), None, 4).decoded().any()


def test_inputs_that_were_never_seen_do_no_harm() -> None:
    matrix, _ = case(1, 4, 8)
    decoded = fit_integers(matrix, np.zeros((1, 8, 8)), 4).decoded()
    assert np.abs(decoded - matrix).max() < np.abs(matrix).max() / 4


def test_scales_of_blocks_are_the_least_squares_solution() -> None:
    rng = np.random.default_rng(0)
    _, moment = case(1, 5, 12)
    levels = rng.integers(-8, 8, (1, 5, 12)).astype(np.float64)
    true = rng.uniform(0.5, 2, (1, 5, 3))
    weight = levels * np.repeat(true, 4, axis=-1)
    np.testing.assert_allclose(refit_block_scales(weight, levels, moment, np.ones((1, 5, 3)), 4), true, rtol=1e-4)


def test_scales_never_turn_negative_or_worse() -> None:
    _, moment = case(1, 1, 4)
    levels, scale = np.array([[[1.0, -2.0, 3.0, 1.0]]]), np.array([[[0.5, 0.25]]])
    np.testing.assert_array_equal(refit_block_scales(-levels, levels, moment, scale, 2), scale)
    exact = levels * np.repeat(scale, 2, axis=-1)
    np.testing.assert_allclose(refit_block_scales(exact, levels, moment, scale, 2), scale, rtol=1e-4)


def test_a_block_without_levels_keeps_its_scale() -> None:
    _, moment = case(1, 1, 4)
    levels, scale = np.array([[[1.0, -2.0, 0.0, 0.0]]]), np.array([[[0.5, 0.25]]])
    fitted = refit_block_scales(levels * 0.7, levels, moment, scale, 2)
    assert fitted[0, 0, 0] == pytest.approx(0.7, rel=1e-4)
    assert fitted[0, 0, 1] > 0
