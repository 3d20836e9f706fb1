"""Pruning by what layers read: patterns, least squares, limits, places that cannot be fitted."""

from __future__ import annotations

import re
from typing import Any, get_args

import numpy as np
import onnx
import pytest

from graphopt.base import PassReport, Skip
from graphopt.compensate import Blocks, NofM, UniformGrid, Unstructured, damped
from graphopt.compensate.gptq import inverse_factor
from graphopt.compensate.problem import SparseProblem
from graphopt.compensate.sparse import obs_losses, refit_support, sparsegpt
from graphopt.context import Context
from graphopt.evaluate import Evaluator
from graphopt.evaluate.error import OutputError
from graphopt.ir.graph import constants
from graphopt.model import Model
from graphopt.passes.prune import Prune
from graphopt.passes.prune.allocate import Curve, share_out
from graphopt.passes.prune.levels import levels
from graphopt.passes.prune.options import Criterion
from graphopt.passes.prune.regularize import judged_problem
from graphopt.passes.prune.sites import Evidence
from graphopt.samples import Samples, open_samples, random_samples
from graphopt.targets import get_target
from tests.test_prune import model_of, random, values

TWO = "m (float[N,16] x) => (float[N,8] y) { h = Gemm(x, a, b)  r = Relu(h)  y = MatMul(r, c) }"
CONV = "m (float[1,8,9,9] x) => (float[1,8,5,5] y) { y = Conv<pads=[1,1,1,1], strides=[2,2]>(x, w, b) }"


def two(seed: int = 0) -> Model:
    return model_of(TWO, a=random(16, 32, seed=seed), b=random(32, seed=seed + 1), c=random(32, 8, seed=seed + 2))


def samples_of(model: Model, count: int = 32) -> Samples:
    return random_samples(model.interface, count=count)


def run(model: Model, max_drop: float = 0.01, **options: Any) -> PassReport:
    target, samples = get_target("cpu"), samples_of(model)
    context = Context(target, Evaluator(model.copy(), target, samples=samples), samples, max_drop=max_drop)
    return Prune(**options).run(model, context)


def problem(rows: int, inputs: int, pattern: Any, groups: int = 1, seed: int = 0) -> SparseProblem:
    rng = np.random.default_rng(seed)
    mixing = rng.standard_normal((groups, inputs, inputs)) * np.geomspace(1, 0.05, inputs)
    return SparseProblem(
        rng.standard_normal((groups, rows, inputs)), damped(mixing @ np.swapaxes(mixing, 1, 2) / inputs), pattern
    )


def brute_force(weight: np.ndarray, moment: np.ndarray, keep: np.ndarray) -> np.ndarray:
    """Return the best weights on a support, row by row."""
    result = np.zeros_like(weight)
    for row in range(len(weight)):
        kept = np.flatnonzero(keep[row])
        result[row, kept] = np.linalg.solve(moment[np.ix_(kept, kept)], (moment @ weight[row])[kept])
    return result


def test_least_squares_on_a_support_is_exact() -> None:
    case = problem(6, 20, Unstructured())
    weight, moment = case.target[0], case.moment[0]
    keep = random(6, 20) > 0
    found = refit_support(weight, weight, keep, moment, steps=60)
    assert not found[~keep].any()
    assert np.allclose(found, brute_force(weight, moment, keep), atol=1e-4)


def test_exact_obs_counts_the_true_loss_of_the_first_removal() -> None:
    case = problem(4, 9, Unstructured())
    weight, moment = case.target[0], case.moment[0]
    losses = obs_losses(weight, np.repeat(np.linalg.inv(moment)[None], 4, axis=0))
    for row in range(4):
        lost = []
        for column in range(9):
            keep = np.arange(9)[None] != column
            left = brute_force(weight[row : row + 1], moment, keep) - weight[row]
            lost.append((left @ moment @ left.T).item())
        assert np.isclose(losses[row].min(), min(lost))


@pytest.mark.parametrize("shape", [(8, 24), (96, 160)])  # exact, and column by column
@pytest.mark.parametrize("pattern", [Unstructured(), NofM(2, 4), NofM(1, 4), NofM(4, 8), Blocks(4, 4)])
def test_second_order_loses_at_most_half_of_magnitude(shape: tuple[int, int], pattern: Any) -> None:
    case = problem(*shape, pattern)
    found = case.fit(0.5)
    keep = pattern.keep(np.abs(case.target), 0.5)
    assert np.count_nonzero(found) <= np.count_nonzero(keep)
    assert case.loss(found) < 0.5 * case.loss(np.where(keep, case.target, 0))
    assert case.loss(found) <= case.loss(case.masked(0.5, lambda weights, _: np.abs(weights)))
    if isinstance(pattern, NofM):
        zeros = (found.reshape(-1, pattern.among) == 0).sum(axis=1)
        assert (zeros >= pattern.among - pattern.keeps).all()
    if isinstance(pattern, Blocks):
        whole = pattern.split(found[0] != 0)
        assert (whole.any(axis=(1, 3)) == whole.all(axis=(1, 3))).all()


def test_sparse_and_on_a_grid_at_once() -> None:
    case = problem(16, 64, NofM(2, 4))
    weight, moment = case.target[0], case.moment[0]
    grid = UniformGrid(np.full((16, 1), np.abs(weight).max() / 7), -7, 7, 64)
    together = sparsegpt(weight, inverse_factor(moment), NofM(2, 4), 0.5, grid)
    apart = np.where(NofM(2, 4).keep(np.abs(weight)), weight, 0)
    apart = np.stack([grid.project(apart[:, column], column) for column in range(64)], axis=1)
    assert np.allclose(together / grid.scale, np.rint(together / grid.scale))
    assert ((together.reshape(-1, 4) == 0).sum(axis=1) >= 2).all()
    assert case.loss(together[None]) < 0.7 * case.loss(apart[None])


def test_ratios_are_shared_out_by_loss() -> None:
    cheap = Curve((0.0, 0.5, 1.0), (0.0, 0.0, 0.1), 100.0)
    dear = Curve((0.0, 0.5, 1.0), (0.0, 1.0, 4.0), 100.0)
    assert share_out([cheap, dear], 0.25) == [0.5, 0.0]
    assert share_out([cheap, dear], 0.5) == [1.0, 0.0]
    assert np.allclose(share_out([cheap, dear], 0.6), [1.0, 0.2])
    whole = [Curve((0.0, 0.5), (0.0, loss), 10.0, whole=True) for loss in (3.0, 1.0, 2.0)]
    assert share_out(whole, 0.2) == [0.0, 0.5, 0.5]


def test_layers_in_a_row_have_rising_levels() -> None:
    model = model_of(
        "m (float[N,4] x) => (float[N,4] y) { p = MatMul(x, a) q = MatMul(x, a) r = Add(p, q) y = MatMul(r, b) }",
        a=random(4, 4),
        b=random(4, 4),
    )
    nodes = [node for node in model.graph.nodes if node.op == "MatMul"]
    found = levels(model.graph, {id(node) for node in nodes})
    assert [found[id(node)] for node in nodes] == [0, 0, 1]


@pytest.mark.parametrize("pattern", ["unstructured", "2of4", "block"])
@pytest.mark.parametrize("scope", ["layer", "adaptive", "global"])
def test_outputs_stay_closer_than_by_magnitude(pattern: str, scope: Any) -> None:
    original = two()
    error = OutputError(original, samples_of(original))
    plain, fitted = original.copy(), original.copy()
    run(plain, pattern=pattern, ratio=0.5, scope=scope, criterion="l1", reconstruct=False)
    report = run(fitted, pattern=pattern, ratio=0.5, scope=scope)
    assert report.metrics["fitted"] == 2
    assert 0.45 <= report.metrics["sparsity"] <= 0.5
    assert error(fitted) < 0.7 * error(plain)


def test_reconstruction_helps_every_criterion() -> None:
    original = two()
    error = OutputError(original, samples_of(original))
    for criterion in ("l1", "wanda", "fluctuation", "obs"):
        bare, fitted = original.copy(), original.copy()
        run(bare, ratio=0.5, scope="layer", criterion=criterion, reconstruct=False)
        run(fitted, ratio=0.5, scope="layer", criterion=criterion)
        assert error(fitted) < error(bare), criterion


def test_groups_of_four_lie_along_the_input_channels() -> None:
    model = model_of(CONV, w=random(8, 8, 3, 3), b=random(8))
    run(model, pattern="2of4", ratio=0.5)
    pruned = values(model, "w")
    assert ((pruned.reshape(8, 2, 4, 3, 3) != 0).sum(axis=2) <= 2).all()


def test_depthwise_convolutions_are_fitted_group_by_group() -> None:
    text = "m (float[1,8,9,9] x) => (float[1,8,9,9] y) { y = Conv<group=8, pads=[1,1,1,1]>(x, w, b) }"
    model = model_of(text, w=random(8, 1, 3, 3), b=random(8))
    error = OutputError(model.copy(), samples_of(model))
    plain = model.copy()
    run(plain, ratio=0.5, criterion="l1", reconstruct=False)
    assert run(model, ratio=0.5).metrics["fitted"] == 1
    assert error(model) < 1.1 * error(plain)  # equal, as random inputs are white
    assert run(two(), pattern="2of4", ratio=0.5).skipped == ()
    report = run(model_of(text, w=random(8, 1, 3, 3), b=random(8)), pattern="2of4", ratio=0.5)
    assert report.skipped[0].reason == "its 1 input channels are no whole number of groups of 4"


def test_a_weight_of_several_layers_is_fitted_to_all() -> None:
    text = "m (float[N,8] x) => (float[N,8] y) { h = MatMul(x, w)  r = Relu(h)  y = MatMul(r, w) }"
    model = model_of(text, w=random(8, 8))
    report = run(model, ratio=0.5)
    assert (report.changed, report.metrics["fitted"]) == (1, 1)
    assert np.count_nonzero(values(model, "w") == 0) == 32


@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_other_float_types_are_fitted(dtype: Any) -> None:
    kind = {np.float16: "float16", np.float64: "double"}[dtype]
    model = model_of(f"m ({kind}[N,16] x) => ({kind}[N,8] y) {{ y = MatMul(x, w) }}", w=random(16, 8, dtype=dtype))
    assert run(model, ratio=0.5).metrics["fitted"] == 1
    assert values(model, "w").dtype == dtype


def test_inputs_that_are_always_zero_are_no_trouble() -> None:
    model = model_of(
        "m (float[N,16] x) => (float[N,8] y) <float z = {0}> { d = Mul(x, z)  y = MatMul(d, w) }", w=random(16, 8)
    )
    run(model, ratio=0.5)
    assert np.isfinite(values(model, "w")).all()


@pytest.mark.parametrize("scope", ["layer", "adaptive"])
def test_a_second_run_changes_nothing(scope: Any) -> None:
    model = two()
    assert run(model, ratio=0.5, scope=scope).changed == 2
    before = model.fingerprint()
    assert run(model, ratio=0.5, scope=scope).changed == 0
    assert model.fingerprint() == before


def test_auto_goes_as_far_as_its_part_of_the_limit() -> None:
    found = []
    for budget in (0.1, 1.0):
        model = two()
        evaluator = Evaluator(model.copy(), get_target("cpu"), samples=samples_of(model))
        report = run(model, max_drop=0.05, budget=budget)
        drop = evaluator.drop(model)
        assert drop is not None
        assert drop.within(0.05 * budget)
        found.append(report.metrics["sparsity"])
    assert 0 < found[0] < found[1] < 1


def test_what_needs_samples_says_so() -> None:
    model = two()
    target = get_target("cpu")
    context = Context(target, Evaluator(model, target, samples=None))
    for options, reason in (({}, "ratio=auto is found by the loss"), ({"criterion": "wanda"}, "criterion=wanda looks")):
        report = Prune(**options).run(model, context)  # type: ignore[arg-type]
        assert report.changed == 0
        assert report.skipped[0].reason.startswith(reason)


def test_a_threshold_takes_what_is_small() -> None:
    model = two()
    before = {constant.name: constant.values for constant in constants(model.graph)}
    run(model, threshold=0.25)
    for name in ("a", "c"):
        expected = np.where(np.abs(before[name]) <= 0.25, 0, before[name])
        assert np.array_equal(values(model, name), expected)


def test_macs_may_be_what_is_counted() -> None:
    text = """m (float[1,4,8,8] x) => (float[1,4] y) {
        h = Conv(x, w)  g = GlobalAveragePool(h)  f = Flatten(g)  y = Gemm(f, v)
    }"""
    model = model_of(text, w=random(4, 4, 1, 1), v=random(4, 4))
    run(model, ratio=0.5, of="macs", criterion="l1", reconstruct=False)
    assert np.count_nonzero(values(model, "w") == 0) >= 7


BIASES = {
    "a caller gives it": "(float[N,16] x, float[8] given) => (float[N,8] y) { y = Gemm(u, w, given) }",
    "a caller may override it": "(float[N,16] x, float[8] b) => (float[N,8] y) { y = Gemm(u, w, b) }",
    "computed": "(float[N,16] x) => (float[N,8] y) { d = Abs(b)  y = Gemm(u, w, d) }",
    "left out": '(float[N,16] x) => (float[N,8] y) { y = Gemm(u, w, "") }',
    "one for all": "(float[N,16] x) => (float[N,8] y) { y = Gemm(u, w, s) }",
    "one a sample": "(float[5,16] x) => (float[5,8] y) { y = Gemm(u, w, c) }",
    "with factors": "(float[N,16] x) => (float[N,8] y) { y = Gemm<alpha=3.0, beta=0.5>(u, w, b) }",
    "with a factor": "(float[N,16] x) => (float[N,8] y) { y = Gemm<beta=0.5>(u, w, b) }",
    "an output too": "(float[N,16] x) => (float[N,8] y, float[8] b) { y = Gemm(u, w, b) }",
    "shared": "(float[N,16] x) => (float[N,8] y) { p = Gemm(u, w, b)  q = Gemm(u, v, b)  y = Add(p, q) }",
}


@pytest.mark.parametrize("kind", BIASES)
def test_layers_are_fitted_whatever_their_bias_is(kind: str) -> None:
    """Inputs are sums of each other, so that weights can make up for those that go."""
    text = "m " + BIASES[kind].replace("{", "{ k = Constant<value_int=1>()  u = CumSum(x, k) ", 1)
    weights = {"w": random(16, 8), "v": random(16, 8, seed=1), "b": random(8, seed=2)}
    weights |= {"c": random(5, 1, seed=3), "s": np.array(3, np.float32)}
    read = {
        name: weights[name] for name in weights if f" {name})" in text or f" {name}," in text or f"({name})" in text
    }
    model = model_of(text, **read)
    error = OutputError(model.copy(), samples_of(model))
    plain, fitted = model.copy(), model.copy()
    run(plain, ratio=0.5, scope="layer", criterion="l1", reconstruct=False)
    report = run(fitted, ratio=0.5, scope="layer")
    assert report.metrics["fitted"] == report.changed == 1 + ("v" in read)
    assert error(fitted) < 0.5 * error(plain)


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_the_unit_of_the_inputs_changes_nothing(scale: float) -> None:
    case = problem(96, 160, Unstructured())
    other = SparseProblem(case.target, case.moment * scale, Unstructured())
    assert np.allclose(other.fit(0.5), case.fit(0.5), rtol=1e-4, atol=1e-6)


def test_inputs_that_are_always_zero_do_not_damp_the_others() -> None:
    small = problem(8, 24, Unstructured()).moment[0] * 1e-6
    alone, padded = damped(small), np.zeros((32, 32))
    padded[:24, :24] = small
    assert np.allclose(damped(padded)[:24, :24], alone)
    assert (np.diag(damped(padded))[24:] > 0).all()
    assert np.array_equal(damped(np.zeros((2, 3, 3))), np.broadcast_to(1.01 * np.eye(3), (2, 3, 3)))


@pytest.mark.parametrize("pattern", ["unstructured", "2of4", "block"])
@pytest.mark.parametrize("criterion", get_args(Criterion))
@pytest.mark.parametrize("reconstruct", [True, False])
def test_every_criterion_goes_with_every_pattern(pattern: str, criterion: Any, reconstruct: bool) -> None:
    if criterion == "variance" and pattern != "block":
        pytest.skip("of groups only")
    model = two()
    report = run(model, ratio=0.5, pattern=pattern, criterion=criterion, reconstruct=reconstruct, scope="layer")
    assert report.metrics["sparsity"] == 0.5


def test_criteria_are_listed_with_their_sources() -> None:
    listed = Prune.parts()
    assert {name.removeprefix("criterion=") for name in listed} == {*get_args(Criterion)} - {"auto"}
    assert all(re.search(r"arXiv:\d{4}\.\d{5}|19\d\d|20\d\d|control", text) for text in listed.values())


def test_samples_that_are_not_finite_are_left_out() -> None:
    model = two()
    good = list(samples_of(model, 8))
    spoilt = [*good, dict(good[0], x=np.full_like(good[0]["x"], np.nan))]
    found = []
    for feeds in (good, spoilt):
        fitted, target = model.copy(), get_target("cpu")
        samples = open_samples(lambda feeds=feeds: feeds, model.interface)
        context = Context(target, Evaluator(model.copy(), target, samples=samples), samples)
        report = Prune(ratio=0.5, scope="layer").run(fitted, context)
        found.append(values(fitted, "a"))
    assert "1 of the samples are not used: they give values that are not finite" in report.notes
    assert np.array_equal(found[0], found[1])


@pytest.mark.parametrize("opset", [7, 8, 9, 11])
def test_old_opsets_are_fitted(opset: int) -> None:
    text = """m (float[1,8,9,9] x) => (float[1,4] y) {
        h = Conv(x, w)  g = GlobalAveragePool(h)  f = Flatten(g)  y = Gemm(f, v, b)
    }"""
    proto = model_of(text, w=random(8, 8, 3, 3), v=random(8, 4), b=random(4)).to_proto()
    proto.opset_import[0].version, proto.ir_version = opset, 3 if opset < 9 else 4
    if opset < 9:
        proto.graph.input.extend(
            onnx.helper.make_tensor_value_info(item.name, item.data_type, item.dims) for item in proto.graph.initializer
        )
    model = Model.from_proto(proto)
    assert run(model, ratio=0.5).metrics["fitted"] == 2


def test_every_weight_that_changes_counts() -> None:
    model = two()
    before = {constant.name: constant.values for constant in constants(model.graph)}
    report = run(model, ratio=0.02, scope="global")
    assert report.changed == sum(not np.array_equal(values(model, name), before[name]) for name in ("a", "c"))


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"threshold": 0.1, "ratio": 0.5}, "exclude each other"),
        ({"block": "8x1"}, "block is the size of the blocks of pattern=block"),
    ],
)
def test_options_that_would_be_ignored_are_refused(options: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        Prune(**options)


@pytest.mark.parametrize("options", [{}, {"ratio": 0.3}, {"ratio": 0.5, "pattern": "2of4"}, {"threshold": 0.1}])
def test_weights_without_elements_are_left_alone(options: dict[str, Any]) -> None:
    text = "m (float[N,16] x) => (float[N,8] y, float[N,0] z) { y = MatMul(x, w)  z = MatMul(x, e) }"
    model = model_of(text, w=random(16, 8), e=np.zeros((16, 0), np.float32))
    report = run(model, **options)
    assert report.skipped == (Skip("e", "it has no elements"),)


@pytest.mark.parametrize("pattern", [NofM(2, 4), NofM(1, 4), NofM(4, 8)])
def test_removal_one_by_one_keeps_to_the_groups_and_loses_less(pattern: NofM) -> None:
    cases = [problem(16, 48, pattern, seed=seed) for seed in range(4)]
    greedy = [case.fit(0.5) for case in cases]
    columns = [sparsegpt(case.target[0], inverse_factor(case.moment[0]), pattern, 0.5) for case in cases]
    for found in greedy:
        assert ((found.reshape(-1, pattern.among) != 0).sum(axis=1) == pattern.keeps).all()
    fitted = [case._refitted(start[None], start[None] != 0) for case, start in zip(cases, columns, strict=True)]
    losses = [sum(case.loss(found) for case, found in zip(cases, each, strict=True)) for each in (greedy, fitted)]
    assert losses[0] < 0.97 * losses[1]


@pytest.mark.parametrize(("few", "helps"), [(False, True), (True, False)])
def test_moments_are_trusted_as_far_as_unseen_samples_bear_it(few: bool, helps: bool) -> None:
    """With 200 positions of 16 correlated inputs the fit helps; three positions tell nothing of those not seen."""
    rng = np.random.default_rng(3)
    mixing = rng.normal(size=(16, 4))

    def seen(count: int, spread: float) -> Evidence:
        x = rng.normal(size=(count, 4)) @ mixing.T + spread * rng.normal(size=(count, 16))
        return Evidence((x.T @ x / count)[None], np.zeros((1, 8, 16)), count)

    fitted, unseen = (seen(3, 1e-3), seen(2000, 20.0)) if few else (seen(200, 0.1), seen(200, 0.1))
    present = rng.normal(size=(1, 8, 16))
    problem = judged_problem(present, fitted, fitted, unseen, Unstructured(), 0.5)
    off = problem.moment[0] - np.diag(np.diag(problem.moment[0]))
    trust = np.abs(off).max() / np.abs(fitted.second[0] - np.diag(np.diag(fitted.second[0]))).max()
    assert (trust > 0.5) == helps
