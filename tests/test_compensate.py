"""Error compensation: each solver must lower what it says it lowers."""

from __future__ import annotations

import numpy as np
import pytest

from graphopt.compensate import (
    PaletteGrid,
    UniformGrid,
    coordinate_descent,
    damped,
    gptq,
    output_loss,
    refit_levels,
    refit_scales,
)
from graphopt.compensate.grid import project_all
from graphopt.compensate.ridge import Problem, ridge

ROWS, INPUTS = 24, 40


@pytest.fixture
def layer() -> tuple[np.ndarray, np.ndarray]:
    """A layer with correlated inputs, as real ones are: weights [ROWS, INPUTS], second moment [INPUTS, INPUTS]."""
    rng = np.random.default_rng(7)
    inputs = rng.normal(size=(500, 8)) @ rng.normal(size=(8, INPUTS)) + 0.3 * rng.normal(size=(500, INPUTS))
    return rng.normal(size=(ROWS, INPUTS)), inputs.T @ inputs / 500


def uniform(weight: np.ndarray, bits: int, block: int = INPUTS) -> UniformGrid:
    high = 2 ** (bits - 1) - 1
    blocks = weight.reshape(len(weight), -1, block)
    return UniformGrid(np.abs(blocks).max(axis=2) / high, -high, high, block)


def total(weight: np.ndarray, approximation: np.ndarray, moment: np.ndarray) -> float:
    return float(output_loss(weight, approximation, moment).sum())


def test_loss_is_the_squared_error_of_the_outputs(layer: tuple[np.ndarray, np.ndarray]) -> None:
    weight, _ = layer
    inputs = np.random.default_rng(1).normal(size=(100, INPUTS))
    other = np.round(weight, 1)
    direct = ((inputs @ (weight - other).T) ** 2).mean(axis=0)
    np.testing.assert_allclose(output_loss(weight, other, inputs.T @ inputs / 100), direct)


@pytest.mark.parametrize("bits", [2, 3, 4])
@pytest.mark.parametrize("block", [INPUTS, 8])
def test_gptq_beats_rounding_by_far(layer: tuple[np.ndarray, np.ndarray], bits: int, block: int) -> None:
    weight, moment = layer
    grid = uniform(weight, bits, block)
    nearest = project_all(grid, weight)
    compensated = gptq(weight, damped(moment), grid)
    np.testing.assert_allclose(compensated, project_all(grid, compensated), atol=1e-12, err_msg="off the grid")
    assert total(weight, compensated, moment) < 0.5 * total(weight, nearest, moment)


def test_descent_never_makes_a_row_worse(layer: tuple[np.ndarray, np.ndarray]) -> None:
    weight, moment = layer
    grid = uniform(weight, 3)
    for start in (project_all(grid, weight), gptq(weight, damped(moment), grid)):
        better = coordinate_descent(weight, start, moment, grid)
        assert (output_loss(weight, better, moment) <= output_loss(weight, start, moment) + 1e-9).all()
        assert total(weight, better, moment) < total(weight, start, moment)
        np.testing.assert_allclose(better, project_all(grid, better), atol=1e-12)


def test_descent_is_still_at_its_own_result(layer: tuple[np.ndarray, np.ndarray]) -> None:
    weight, moment = layer
    grid = uniform(weight, 4)
    once = coordinate_descent(weight, project_all(grid, weight), moment, grid, sweeps=100)
    np.testing.assert_array_equal(coordinate_descent(weight, once, moment, grid), once)


def test_inputs_that_were_always_zero_do_no_harm(layer: tuple[np.ndarray, np.ndarray]) -> None:
    weight, moment = layer
    moment = moment.copy()
    moment[:, 3] = moment[3] = 0
    grid = uniform(weight, 4)
    result = coordinate_descent(weight, gptq(weight, damped(moment), grid), moment, grid)
    assert np.isfinite(result).all()


def test_asymmetric_grid_uses_its_zero_point() -> None:
    grid = UniformGrid(np.full((1, 1), 0.5), 0, 15, 4, zero=np.full((1, 1), 3.0))
    weight = np.array([[-9.0, -1.5, 0.2, 100.0]])
    np.testing.assert_array_equal(project_all(grid, weight), [[-1.5, -1.5, 0.0, 6.0]])


def test_palette_projects_to_the_nearest_level() -> None:
    grid = PaletteGrid(np.array([[2.0]]), np.array([-1.0, 0.0, 0.3]), 4)
    np.testing.assert_array_equal(project_all(grid, np.array([[-3.0, -0.9, 0.2, 9.0]])), [[-2.0, 0.0, 0.0, 0.6]])


def test_refits_lower_the_loss(layer: tuple[np.ndarray, np.ndarray]) -> None:
    weight, moment = layer
    levels = np.linspace(-1, 1, 8)
    scale = np.abs(weight).max(axis=1, keepdims=True)
    grid = PaletteGrid(scale, levels, INPUTS)
    start = project_all(grid, weight)
    codes = np.stack([grid.codes(weight[:, k], k) for k in range(INPUTS)], axis=1)
    fitted = refit_levels(weight, codes, scale, moment, levels)
    assert total(weight, fitted[codes] * scale, moment) < 0.9 * total(weight, start, moment)
    scales = refit_scales(weight, levels[codes], moment, scale)
    assert (output_loss(weight, levels[codes] * scales, moment) <= output_loss(weight, start, moment) + 1e-9).all()


def test_refits_find_an_exact_answer(layer: tuple[np.ndarray, np.ndarray]) -> None:
    _, moment = layer
    rng = np.random.default_rng(3)
    levels, codes = np.sort(rng.normal(size=4)), rng.integers(0, 4, (ROWS, INPUTS))
    scale = rng.uniform(0.5, 2, (ROWS, 1))
    weight = levels[codes] * scale
    np.testing.assert_allclose(refit_levels(weight, codes, scale, moment, levels + 0.1), levels, atol=1e-8)
    np.testing.assert_allclose(refit_scales(weight, levels[codes], moment, np.ones((ROWS, 1))), scale, atol=1e-8)


@pytest.mark.parametrize("size", [1.0, 1e-6, 0.0])
def test_inputs_next_to_nothing_get_no_weights_of_millions(size: float) -> None:
    """Such an input may tell all that another one lacks; a weight that makes that of it could not be rounded."""
    rng = np.random.default_rng(3)
    inputs = rng.normal(size=(400, 5))
    targets = inputs @ rng.normal(size=(5, 2)) * 4
    inputs[:, 0] *= size
    problem = Problem(inputs.T @ inputs / 400, targets.T @ inputs / 400, np.square(targets).mean(axis=0))
    (weight,) = ridge(problem, np.ones((2, 5)), [1e-4])
    assert np.abs(weight).max() < 20
    assert (weight[:, 0] == 1).all() == (size < 1)
    assert problem.loss(weight) < problem.loss(np.ones((2, 5)))


def test_a_moment_that_rounding_has_spoilt_can_be_inverted() -> None:
    rng = np.random.default_rng(5)
    inputs = rng.normal(size=(64, 4)) @ rng.normal(size=(4, 32))
    noise = rng.normal(size=(32, 32))
    moment = np.stack([inputs.T @ inputs / 64, np.eye(32)]) + 0.05 * np.stack([noise + noise.T, np.zeros((32, 32))])
    assert np.linalg.eigvalsh(moment[0]).min() < -0.1
    found = damped(moment)
    assert np.linalg.eigvalsh(found).min() > 0
    np.testing.assert_allclose(found[1], 1.01 * np.eye(32), atol=1e-12)
    largest = np.linalg.eigvalsh(moment[0]).max()
    assert np.abs(found[0] - moment[0]).max() < 0.1 * largest
