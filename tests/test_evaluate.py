"""Loss against the original, sameness, latency."""

from __future__ import annotations

import sys
import types
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from onnx import numpy_helper, parser

from graphopt import evaluate
from graphopt.errors import ModelError, SampleError, UnjudgedError, UsageError
from graphopt.evaluate import Drop, Evaluator, Sameness, answers, sameness
from graphopt.evaluate.agreement import Agreement, Loss
from graphopt.evaluate.classes import Scores, class_scores
from graphopt.evaluate.loss import agreement_drop, metric_drop
from graphopt.evaluate.noise import Noise, nudged_model
from graphopt.evaluate.statistics import ratio, ratio_interval, share_interval, wilson
from graphopt.ir.graph import constants
from graphopt.model import Model
from graphopt.runtime import timing
from graphopt.runtime.session import Session, open_session
from tests.test_runtime import Clock

NAN, INF = float("nan"), float("inf")


def build(text: str, opset: int = 21, **weights: Any) -> Model:
    proto = parser.parse_model(f'<ir_version: 10, opset_import: ["": {opset}]> {text}')
    proto.graph.initializer.extend(numpy_helper.from_array(np.asarray(w), name) for name, w in weights.items())
    return Model.from_proto(proto)


@dataclass(frozen=True)
class FakeTarget:
    runs_here: bool = True
    provider: str = "CPUExecutionProvider"
    name: str = "cpu"


class FakeSamples:
    """Samples in a list, as `graphopt.samples.Samples` has them."""

    def __init__(self, feeds: list[dict[str, Any]], is_random: bool = False) -> None:
        self.feeds, self.is_random, self.source, self.taken = feeds, is_random, "list", 0

    def __len__(self) -> int:
        return len(self.feeds)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return iter(self.feeds)

    def take(self, count: int) -> FakeSamples:
        self.taken = count
        return FakeSamples(self.feeds[:count], self.is_random)


def normal(count: int, width: int = 8, seed: int = 0) -> list[dict[str, Any]]:
    rng = np.random.default_rng(seed)
    return [{"x": rng.standard_normal((1, width)).astype(np.float32)} for _ in range(count)]


def evaluator(model: Model, samples: Any = None, **options: Any) -> Evaluator:
    target: Any = FakeTarget(**options.pop("target", {}))
    return Evaluator(model, target, samples=samples, **options)


# --- class scores -----------------------------------------------------------------------------------------------------

LAST, MATRIX = Scores(), Scores(matrix_only=True)


@pytest.mark.parametrize(
    ("opset", "body", "found"),
    [
        (21, "y = Softmax(x)", LAST),
        (21, "y = LogSoftmax<axis = 1>(x)", Scores(1)),
        (11, "y = Softmax(x)", Scores(1, merged=True)),
        (21, "a = Softmax<axis = 1>(x) y = Transpose<perm = [0, 2, 1]>(a)", Scores(2)),
        (21, "a = Softmax<axis = 1>(x) b = Identity(a) y = Cast<to = 10>(b)", Scores(1)),
        (21, "a = Softmax<axis = 1>(x) y = Reshape(a, s)", LAST),
        (21, "e = Exp(x) s = ReduceSum(e, k) y = Div(e, s)", LAST),
        (21, "e = Exp(x) s = ReduceSum(e, k) t = Expand(s, s1) y = Div(e, t)", LAST),
        (21, "e = Exp(x) f = Exp(e) s = ReduceSum(f, k) y = Div(e, s)", None),
        (21, "y = Gemm(x, w)", MATRIX),
        (21, "a = MatMul(x, w) y = Add(a, w)", MATRIX),
        (21, "a = Conv(x, w) b = GlobalAveragePool(a) y = Flatten(b)", MATRIX),
        (21, "a = MatMul(x, w) y = Relu(a)", None),
        (21, "a = MatMul(x, w) b = MatMul(x, w) y = Add(a, b)", None),
        (21, "a = MatMul(x, w) n = ReduceL2(a, k) y = Div(a, n)", None),  # a normalized embedding
        (21, "a = MatMul(x, w) y = Sigmoid(a)", None),
    ],
)
def test_class_scores_are_told_by_what_makes_them(opset: int, body: str, found: Scores | None) -> None:
    model = build(f"g (float[n, a, b] x) => (float[n, a, b] y) {{ {body} }}", opset, w=np.ones((2, 2), np.float32))
    assert class_scores(model).get("y") == found


def test_logits_are_class_scores_at_every_position() -> None:
    model = build("g (float[n, a, b] x) => (float[n, a, b] logits) { logits = MatMul(x, w) }", w=np.ones((2, 2)))
    assert class_scores(model) == {"logits": LAST}
    model = build("g (float[n, a, b] x) => (float[n, a, b] Logits_0) { Logits_0 = Tanh(x) }")
    assert class_scores(model) == {"Logits_0": LAST}


@pytest.mark.parametrize(
    ("scores", "shape", "rows"),
    [
        (LAST, (4, 5), (4, 5)),
        (LAST, (2, 3, 5), (6, 5)),
        (Scores(1), (2, 5, 3), (6, 5)),
        (Scores(1, merged=True), (2, 5, 1, 1), (2, 5)),
        (MATRIX, (4, 5), (4, 5)),
        (MATRIX, (4, 5, 6), None),
        (LAST, (4, 1), None),
        (LAST, (5,), None),
        (Scores(3), (4, 5), None),
        (LAST, (0, 5), None),
    ],
)
def test_rows_of_scores(scores: Scores, shape: tuple[int, ...], rows: tuple[int, int] | None) -> None:
    found = scores.rows(np.zeros(shape))
    assert (None if found is None else found.shape) == rows


# --- statistics -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("hits", "trials", "low", "high"),  # from R: prop.test(hits, trials, correct = FALSE)
    [(0, 64, 0.0, 0.05662), (1, 64, 0.002760, 0.08334), (10, 100, 0.05523, 0.17437), (5, 5, 0.56552, 1.0)],
)
def test_wilson(hits: int, trials: int, low: float, high: float) -> None:
    assert wilson(hits / trials, trials) == pytest.approx((low, high), abs=2e-5)


def test_counts_that_cluster_in_samples_are_less_certain() -> None:
    """Eight wrong positions spread over samples are eight findings; eight in one sample are little more than one."""
    trials = np.full(20, 100)
    spread, cluster = np.zeros(20, int), np.zeros(20, int)
    spread[:8], cluster[0] = 1, 8
    low_spread, high_spread = share_interval(spread, trials)
    low_cluster, high_cluster = share_interval(cluster, trials)
    assert (low_spread, high_spread) == pytest.approx(wilson(0.004, 2000))
    assert low_cluster < low_spread
    assert high_cluster > 1.5 * high_spread


def test_the_bootstrap_covers_the_truth_and_is_repeatable() -> None:
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(60):
        energy = rng.uniform(1, 2, 40)
        error = energy * rng.gamma(2, 0.005, 40)
        low, high = ratio_interval(error, energy, 0)
        covered += low <= 0.01 <= high
    assert 50 <= covered <= 60
    assert ratio_interval(error, energy, 1) == ratio_interval(error, energy, 1)
    assert ratio_interval(error[:1], energy[:1], 0) == (0, 1)


@pytest.mark.parametrize(
    ("numerator", "denominator", "found"), [(0, 0, 0), (1, 0, 1), (3, 2, 1), (1, 4, 0.25), (0, 5, 0)]
)
def test_ratios_are_fractions(numerator: float, denominator: float, found: float) -> None:
    assert ratio(numerator, denominator) == found


# --- agreement --------------------------------------------------------------------------------------------------------


def losses(pairs: list[tuple[Any, Any]], scores: Scores | None = None) -> dict[str, Loss]:
    agreement = Agreement({"y": scores} if scores else {})
    for before, after in pairs:
        agreement.add({"y": before}, {"y": after})
    return {loss.name: loss for loss in agreement.losses()}


def f32(*values: float) -> np.ndarray:
    return np.array(values, np.float32)


@pytest.mark.parametrize(
    ("pairs", "loss"),
    [
        ([(f32(3, 4), f32(3, 4))], 0),
        ([(f32(3, 4), f32(3, 3.5))], 0.01),
        ([(f32(3, 4), f32(3, 3.5)), (f32(5, 5), f32(5, 5))], 0.25 / 75),  # over all samples, not a mean of ratios
        ([(f32(1), f32(100))], 1),
        ([(f32(0, 0), f32(0, 0))], 0),
        ([(f32(0, 0), f32(0, 1e-6))], 1),
        ([(f32(1, 2), f32(1, NAN)), (f32(9, 9), f32(9, 9))], 1),
        ([(f32(1, 2), f32(1, INF))], 1),
        ([(f32(1, 2), np.array([1, 2], np.float64))], 1),
        ([(f32(1, 2), f32(1, 2, 3))], 1),
        ([(f32(1, 2), f32(1, 2)), (f32(1, 2), f32(1))], 0.5),
        ([(None, None)], 0),
        ([(None, f32(1))], 1),
        ([([f32(3, 4), f32(5)], [f32(3, 4)])], 0.5),
        ([([f32(3, 4)], [f32(3, 4), f32(5)])], 1),
        ([([{"a": 3.0, "b": 4.0}], [{"a": 3.0, "b": 3.5}])], 0.01),
        ([(np.array([3 + 4j]), np.array([3 + 3.5j]))], 0.01),
    ],
)
def test_squared_error_of_floats(pairs: list[tuple[Any, Any]], loss: float) -> None:
    found = losses(pairs)["y"]
    assert found.value == pytest.approx(loss)
    assert not found.counted
    assert 0 <= found.low <= found.high <= 1


@pytest.mark.parametrize(
    ("before", "after", "loss"),
    [
        ([1, 2, 3, 4], [1, 2, 3, 4], 0),
        ([1, 2, 3, 4], [1, 2, 3, 5], 0.25),
        ([True, False], [True, True], 0.5),
        (["a", "b"], ["a", "c"], 0.5),
        ([1, 2], [1, 2, 3], 1),
    ],
)
def test_share_of_changed_elements(before: list[Any], after: list[Any], loss: float) -> None:
    found = losses([(np.array(before), np.array(after))])
    assert list(found) == ["y"]
    assert found["y"].value == loss
    assert found["y"].counted


def test_infinities_of_the_original_are_counted_apart() -> None:
    found = losses([(f32(1, -INF, -INF, NAN), f32(1, -INF, -1e9, NAN))])
    assert found["y"].value == 0
    assert found["y NaN and infinities"].value == pytest.approx(1 / 3)


def test_top_1_of_class_scores() -> None:
    before = np.array([[1, 2, 3], [3, 2, 1], [1, 1, 0], [0, 5, 0]], np.float32)
    after = np.array([[1, 2, 2.9], [2, 2.1, 1], [0.9, 1, 0], [0, 5, 0]], np.float32)  # the third row is a tie before
    found = losses([(before, after)], LAST)
    assert found["y top-1"].value == 0.25
    assert found["y top-1"].counted
    assert 0 < found["y"].value < 0.05


def test_scores_of_nan_have_no_best_class() -> None:
    """Neither do they count as agreement, nor is there anything to judge where all are NaN."""
    gone = np.full((1, 3), np.nan, np.float32)
    agreement = Agreement({"y": LAST})
    agreement.add({"y": gone}, {"y": gone})
    assert not agreement.compared
    agreement.add(
        {"y": np.array([[0.0, 1.0, -np.inf]], np.float32)}, {"y": np.array([[1.0, 0.0, -np.inf]], np.float32)}
    )
    assert agreement.compared
    assert {loss.name: loss.value for loss in agreement.losses()}["y top-1"] == 1


def test_the_worst_output_decides() -> None:
    agreement = Agreement({})
    agreement.add({"a": f32(1, 1), "b": f32(1, 1)}, {"a": f32(1, 1), "b": f32(1, 0.5)})
    drop = agreement_drop(agreement.losses(), 1, False)
    assert list(drop.details) == ["b", "a"]
    assert drop.value == pytest.approx(0.125)
    assert drop.details["b"] == pytest.approx(0.875)


# --- the limit --------------------------------------------------------------------------------------------------------


def flips(wrong: int, total: int) -> Drop:
    right, swapped = np.array([[0.0, 1.0]]), np.array([[1.0, 0.0]])
    agreement = Agreement({"y": LAST})
    for index in range(total):
        agreement.add({"y": right}, {"y": swapped if index < wrong else right})
    found = [loss for loss in agreement.losses() if loss.name == "y top-1"]
    return agreement_drop(found, total, False)


@pytest.mark.parametrize(
    ("wrong", "total", "within"), [(0, 64, True), (1, 64, True), (4, 64, False), (1000, 2000, False)]
)
def test_counts_fail_only_where_they_prove_more_than_the_limit(wrong: int, total: int, within: bool) -> None:
    drop = flips(wrong, total)
    assert drop.value == wrong / total
    assert drop.within(0.01) == within


@pytest.mark.parametrize(
    ("measure", "samples", "random", "words"),
    [
        ("agreement", 6, False, "agreement on 6 samples"),
        ("agreement", 1, False, "agreement on 1 sample"),
        ("agreement", 8, True, "agreement on 8 random inputs"),
        ("metric", 0, False, "judged by the metric"),
    ],
)
def test_a_drop_says_what_it_was_judged_by(measure: str, samples: int, random: bool, words: str) -> None:
    assert Drop(0.0, 0.0, 0.0, measure, {}, samples, random).describe() == words


@pytest.mark.parametrize(
    ("value", "limit", "words"),
    [
        (0.05, 0.01, "5.00%, more than the limit of 1.00%"),
        (0.0100004, 0.01, "1.00004%, more than the limit of 1.00000%"),
        (1e-7, 0.0, "0.00001%, more than the limit of 0.00000%"),
    ],
)
def test_a_loss_is_told_apart_from_its_limit(value: float, limit: float, words: str) -> None:
    assert Drop(value, value, value, "agreement", {}, 6, False).compare(limit) == words


def test_continuous_losses_fail_by_their_value() -> None:
    loss = Loss("y", 0.0101, 0.001, 0.1, counted=False)
    assert not agreement_drop([loss], 64, False).within(0.01)
    assert agreement_drop([loss], 64, False).within(0.0101)


def test_a_lenient_count_does_not_hide_a_continuous_loss() -> None:
    count, energy = Loss("n", 0.03, 0.001, 0.1, counted=True), Loss("y", 0.02, 0.01, 0.03, counted=False)
    drop = agreement_drop([count, energy], 64, False)
    assert drop.value == 0.03
    assert not drop.within(0.01)


@pytest.mark.parametrize(
    ("before", "after", "value"),
    [(0.8, 0.76, 0.05), (0.8, 0.84, -0.05), (-2.0, -2.1, 0.05), (0, 0, 0), (0, -1, 1), (0, 1, 0), (0.5, NAN, 1)],
)
def test_a_metric_drops_relative_to_the_original(before: float, after: float, value: float) -> None:
    drop = metric_drop(before, after)
    assert (drop.value, drop.low, drop.high) == pytest.approx((value, value, value))
    assert drop.measure == "metric"
    assert drop.within(0.05 + 1e-9) == (value <= 0.05 + 1e-9)


# --- the evaluator: loss ----------------------------------------------------------------------------------------------

WEIGHTS = np.random.default_rng(7).standard_normal((8, 4)).astype(np.float32)
CLASSIFIER = "g (float[n, 8] x) => (float[n, 4] y) { y = MatMul(x, w) }"


def classifier(noise: float = 0) -> Model:
    moved = WEIGHTS + noise * np.random.default_rng(8).standard_normal(WEIGHTS.shape)
    return build(CLASSIFIER, w=moved.astype(np.float32))


def test_drop_measures_agreement_on_the_samples() -> None:
    feeds = normal(50)
    drop = evaluator(classifier(), FakeSamples(feeds, is_random=True)).drop(classifier(0.1))
    assert drop is not None
    before = np.concatenate([sample["x"] @ WEIGHTS for sample in feeds])
    moved = WEIGHTS + 0.1 * np.random.default_rng(8).standard_normal(WEIGHTS.shape)
    after = np.concatenate([sample["x"] @ moved.astype(np.float32) for sample in feeds])
    energy = float(((before - after) ** 2).sum() / (before**2).sum())
    top = float((before.argmax(1) != after.argmax(1)).mean())
    assert drop.details == pytest.approx({"y": 1 - energy, "y top-1": 1 - top})
    assert drop.value == pytest.approx(max(energy, top))
    assert drop.low < drop.value < drop.high
    assert (drop.measure, drop.samples, drop.random) == ("agreement", 50, True)


def test_drop_of_the_original_itself_is_none() -> None:
    drop = evaluator(classifier(), FakeSamples(normal(3))).drop(classifier())
    assert drop is not None
    assert drop.value == 0
    assert drop.within(0)


def test_nothing_to_judge_on() -> None:
    assert evaluator(classifier()).drop(classifier()) is None
    assert evaluator(classifier(), FakeSamples([])).drop(classifier()) is None


LOOKUP = "g (int64[n] x) => (float[n, 3] y) { y = Gather(w, x) }"


def test_a_sample_that_the_original_does_not_run_on_is_named() -> None:
    model = build(LOOKUP, w=WEIGHTS)
    good, bad = ({"x": np.array([index])} for index in (0, 99))
    with pytest.raises(SampleError, match=r"^sample 2 of 'list': ONNX Runtime cannot run the model: .*Gather.*99"):
        evaluator(model, FakeSamples([good, good, bad])).drop(model)
    evaluator(model, FakeSamples([good, bad])).open_original()
    with pytest.raises(SampleError, match=r"^sample 0 of 'list': "):
        evaluator(model, FakeSamples([bad, good])).open_original()
    with pytest.raises(SampleError, match=r"^the model does not run on random inputs: .*; give samples of its own$"):
        evaluator(model, FakeSamples([bad], is_random=True)).open_original()


def test_agreement_with_random_outputs_tells_nothing() -> None:
    model = build("g (float[n, 999] x) => (float[n, 999] y) { p = Sigmoid(x) y = Bernoulli(p) }")
    judge = evaluator(model, FakeSamples(normal(2, 999)))
    for _ in range(2):
        with pytest.raises(UnjudgedError, match="every time it runs"):
            judge.drop(model)
    drop = evaluator(model, FakeSamples(normal(2, 999)), metric=lambda run: 1.0).drop(model)
    assert drop is not None
    assert drop.value == 0


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[Session]:
    """The session of every run so far."""
    log: list[Session] = []
    original = Session.run

    def run(self: Session, *args: Any) -> Any:
        log.append(self)
        return original(self, *args)

    monkeypatch.setattr(Session, "run", run)
    return log


@pytest.mark.parametrize(("limit", "expected"), [(2**26, 10 + 2 + 10 + 10), (100, 4 * 10 + 2)])
def test_small_outputs_of_the_original_are_computed_once(
    limit: int, expected: int, runs: list[Session], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(answers, "_CACHED", limit)
    judge = evaluator(classifier(), FakeSamples(normal(10)))
    first, second = judge.drop(classifier(0.1)), judge.drop(classifier(0.1))
    assert first == second
    assert len(runs) == expected
    judge.close()
    assert judge.drop(classifier(0.1)) == first


def test_large_outputs_are_kept_in_a_file(runs: list[Session], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answers, "_IN_MEMORY", 100)
    judge = evaluator(classifier(), FakeSamples(normal(10)))
    first = judge.drop(classifier(0.1))
    assert [judge.drop(classifier(0.1)) for _ in range(2)] == [first, first]
    assert len(runs) == 10 + 2 + 3 * 10


def test_the_model_that_was_judged_last_is_known_again(runs: list[Session]) -> None:
    judge = evaluator(classifier(), FakeSamples(normal(10)))
    model, other = classifier(0.1), classifier(0.2)
    first = judge.drop(model)
    count = len(runs)
    assert judge.drop(model.copy()) == first
    assert len(runs) == count
    assert judge.drop(other) != first
    assert len(runs) > count
    assert judge.drop(model) == first
    next(iter(constants(model.graph))).values = 2 * WEIGHTS
    assert judge.drop(model) != first, "an edited model is another one"


def test_a_candidate_that_fails_leaves_the_evaluator_usable() -> None:
    judge = evaluator(classifier(), FakeSamples(normal(4)))
    broken = build("g (float[n, m] x) => (float[n, 4] y) { y = MatMul(x, w) }", w=np.ones((5, 4), np.float32))
    with pytest.raises(ModelError, match="dimension"):
        judge.drop(broken)
    drop = judge.drop(classifier())
    assert drop is not None
    assert (drop.value, drop.samples) == (0, 4)


def test_the_metric_decides_and_that_of_the_original_is_measured_once(runs: list[Session]) -> None:
    feeds = normal(1)[0]

    def metric(run: Callable[..., dict[str, Any]]) -> float:
        return float(-np.abs(run(feeds)["y"]).sum())

    judge = evaluator(classifier(), FakeSamples(normal(9)), metric=metric)
    drop = judge.drop(classifier(0.1))
    assert drop is not None
    assert drop.measure == "metric"
    assert drop.details["before"] == judge.metric_of_original() == pytest.approx(-np.abs(feeds["x"] @ WEIGHTS).sum())
    assert drop.value == pytest.approx((drop.details["before"] - drop.details["after"]) / -drop.details["before"])
    judge.drop(classifier())
    assert len(runs) == 3


def fails(run: Callable[..., Any]) -> float:
    raise KeyError("labels")


@pytest.mark.parametrize(
    ("metric", "message"),
    [
        (fails, r"the metric 'fails' failed: KeyError: 'labels'"),
        (lambda run: None, "must return a number, not NoneType"),
        (lambda run: NAN, "of the original model is nan"),
        (lambda run: INF, "of the original model is inf"),
    ],
)
def test_metrics_that_are_no_numbers_are_the_users_error(metric: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        evaluator(classifier(), metric=metric).drop(classifier())


def test_a_model_that_fails_inside_the_metric_is_not_the_metrics_fault() -> None:
    judge = evaluator(classifier(), metric=lambda run: run({"x": np.ones((1, 3), np.float32)})["y"].sum())
    with pytest.raises(ModelError, match="takes"):
        judge.metric_of_original()


def test_no_metric_has_no_value() -> None:
    with pytest.raises(UsageError, match="no metric"):
        evaluator(classifier()).metric_of_original()


# --- the evaluator: sameness ------------------------------------------------------------------------------------------

CONV = """g (float[n, 3, 9, 9] x) => (float[n, 4, 9, 9] y)
{ c = Conv<pads = [1, 1, 1, 1]>(x, w) y = BatchNormalization<epsilon: float = 0.001>(c, s, b, m, v) }"""


def conv_model(folded_epsilon: float | None = None) -> Model:
    """Return a Conv with BatchNormalization, or with it folded using some epsilon."""
    rng = np.random.default_rng(3)
    w = rng.standard_normal((4, 3, 3, 3)).astype(np.float32)
    s, b, m = rng.standard_normal((3, 4)).astype(np.float32)
    v = rng.uniform(0.5, 2, 4).astype(np.float32)
    if folded_epsilon is None:
        return build(CONV, w=w, s=s, b=b, m=m, v=v)
    scale = s / np.sqrt(v + np.float32(folded_epsilon))
    text = "g (float[n, 3, 9, 9] x) => (float[n, 4, 9, 9] y) { y = Conv<pads = [1, 1, 1, 1]>(x, w, b) }"
    return build(text, w=w * scale[:, None, None, None], b=b - m * scale)


def images(count: int) -> FakeSamples:
    rng = np.random.default_rng(4)
    return FakeSamples([{"x": rng.standard_normal((1, 3, 9, 9)).astype(np.float32)} for _ in range(count)])


def test_a_folded_batch_normalization_is_the_same() -> None:
    same = evaluator(conv_model(), images(6)).mismatch(conv_model(), conv_model(folded_epsilon=1e-3))
    assert same == Sameness(True, "", 4, random=False)
    assert same.describe() == "outputs equal on 4 samples"


def test_a_batch_normalization_folded_with_another_epsilon_is_not() -> None:
    same = evaluator(conv_model(), images(6)).mismatch(conv_model(), conv_model(folded_epsilon=1e-5))
    assert same.equal is False
    assert "'y'" in same.detail
    assert "L2" in same.detail
    assert same.describe().startswith("outputs differ; output 'y'")


@pytest.fixture
def random_samples(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What `random_samples` gives, for the test to fill; an exception is raised instead."""
    held: list[Any] = []

    def draw(interface: Any, *, seed: int, count: int, optional: frozenset[str], **sizes: int) -> FakeSamples:
        for item in held:
            if isinstance(item, Exception):
                raise item
        return FakeSamples(held[:count], is_random=True)

    module: Any = types.ModuleType("graphopt.samples")
    module.random_samples = draw
    monkeypatch.setitem(sys.modules, "graphopt.samples", module)
    return held


def test_without_samples_it_is_compared_on_random_inputs(random_samples: list[Any]) -> None:
    random_samples.extend(normal(5))
    assert evaluator(classifier()).mismatch(classifier(), classifier()) == Sameness(True, "", 2, random=True)
    assert evaluator(classifier()).mismatch(classifier(), classifier(0.01)).equal is False


def test_random_inputs_that_do_not_run_prove_nothing(random_samples: list[Any]) -> None:
    random_samples.extend([{"x": np.ones((1, 3), np.float32)}])
    same = evaluator(classifier()).mismatch(classifier(), classifier(0.01))
    assert same.equal is None
    assert same.describe().startswith("not verified: the model does not run on random inputs: input 'x' has shape")


def test_noise_that_was_found_on_earlier_inputs_comes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    model, (feeds,) = classifier(), normal(1)
    with open_session(model, optimize=False) as session:
        expected = session.run(feeds)
    noise = Noise(model, 1)
    found = list(noise.levels(feeds, expected))
    assert found[0] != found[-1]
    noise.close()
    monkeypatch.setattr(noise, "_run_optimized", lambda *_: pytest.fail("nothing needs to run"))
    assert next(noise.levels(feeds, expected)) == found[-1]


def test_samples_that_do_not_run_are_an_error() -> None:
    wrong = FakeSamples([{"x": np.ones((1, 3), np.float32)}])
    with pytest.raises(ModelError, match="shape"):
        evaluator(classifier(), wrong).mismatch(classifier(), classifier())


def test_no_random_inputs_can_be_made(random_samples: list[Any]) -> None:
    random_samples.append(SampleError("input 'x' is a sequence"))
    same = evaluator(classifier()).mismatch(classifier(), classifier())
    assert same.equal is None
    assert "input 'x' is a sequence" in same.describe()
    assert evaluator(classifier()).latency(classifier(), classifier()) is None


def test_a_model_that_differs_from_itself_cannot_be_verified() -> None:
    model = build("g (float[n, 999] x) => (float[n, 999] y) { p = Sigmoid(x) r = Bernoulli(p) y = Add(x, r) }")
    other = build("g (float[n, 999] x) => (float[n, 999] y) { p = Sigmoid(x) r = Bernoulli(p) y = Sub(x, r) }")
    same = evaluator(model, FakeSamples(normal(2, 999))).mismatch(model, other)
    assert same.equal is None
    assert "every time it runs" in same.detail


def test_a_model_that_does_not_open_before_cannot_be_verified() -> None:
    model = build("g (float[n, 8] x) => (float[n, 8] y) { y = Foo(x) }")
    same = evaluator(model, FakeSamples(normal(2))).mismatch(model, classifier())
    assert same.equal is None
    assert "does not run before the pass" in same.detail


def test_a_result_that_does_not_open_is_an_error() -> None:
    broken = build("g (float[n, 8] x) => (float[n, 8] y) { y = Foo(x) }")
    with pytest.raises(ModelError, match="Foo"):
        evaluator(classifier(), FakeSamples(normal(2))).mismatch(classifier(), broken)


def test_a_result_that_fails_where_the_model_ran_differs() -> None:
    broken = build("g (float[n, m] x) => (float[n, 4] y) { y = MatMul(x, w) }", w=np.ones((5, 4), np.float32))
    same = evaluator(classifier(), FakeSamples(normal(2))).mismatch(classifier(), broken)
    assert same.equal is False
    assert "fails where the model ran before" in same.detail


CANCELLING = """g (float[n, 8] x) => (float[n, 8] y, float[n, 8] z)
{ a = MatMul(x, v) b = MatMul(x, w) y = Sub(a, b) z = Neg(x) }"""


def cancelling(size: float, error: float = 0, text: str = CANCELLING) -> Model:
    """Return a model whose y is of size 1, a difference of numbers of a given size; `error` moves the first of them."""
    rng = np.random.default_rng(5)
    v, difference, wrong = rng.standard_normal((3, 8, 8))
    return build(text, v=(size * v + error * wrong).astype(np.float32), w=(size * v - difference).astype(np.float32))


def test_a_model_that_amplifies_rounding_is_judged_by_its_own_noise() -> None:
    """Cancellation of numbers of 3000 leaves four digits of y; a rewrite may change the last, not the second."""
    judge = evaluator(cancelling(3000), FakeSamples(normal(3)))
    assert judge.mismatch(cancelling(3000), cancelling(3000, 3e-4)) == Sameness(True, "", 3, random=False)
    assert judge.mismatch(cancelling(3000), cancelling(3000, 3e-2)).equal is False
    assert judge.mismatch(cancelling(1), cancelling(1, 3e-4)).equal is False, "without noise it is an error"


def test_outputs_that_rounding_alone_changes_are_left_out_and_said_so() -> None:
    judge = evaluator(cancelling(1e6), FakeSamples(normal(3)))
    same = judge.mismatch(cancelling(1e6), cancelling(1e6, 0.5))
    assert same.equal is True
    assert same.describe() == "outputs equal on 3 samples; not compared, for rounding alone changes it: y"
    assert judge.mismatch(cancelling(1e6), cancelling(1e6, 0.5, CANCELLING.replace("Neg", "Abs"))).equal is False
    alone = CANCELLING.replace(", float[n, 8] z", "").replace(" z = Neg(x)", "")
    same = judge.mismatch(cancelling(1e6, text=alone), cancelling(1e6, 0.5, alone))
    assert same.describe() == "not verified: rounding alone changes every output of this model"


def test_nudging_leaves_what_decides_about_shapes_or_signs() -> None:
    text = """g (float[1, 3, 9, 9] x) => (float[1, 4, a, b] y)
    { c = Conv(x, w) h = Mul(c, half) p = Pow(h, both) q = Add(p, both) r = Resize(q, , s) y = Add(r, vector) }"""
    weights: dict[str, Any] = {
        "w": np.ones((4, 3, 3, 3), np.float32),
        "half": np.float32(0.5),
        "both": np.full((4, 1, 1), 2, np.float32),
        "s": f32(1, 1, 2, 2),
        "vector": np.full((4, 1, 1), 3, np.float32),
    }
    nudged = nudged_model(build(text, **weights), np.random.default_rng(0))
    values = {constant.name: constant.values for constant in constants(nudged.graph)}
    assert {name for name in weights if np.any(values[name] != weights[name])} == {"w", "vector"}
    np.testing.assert_allclose(values["w"], 1, rtol=2.4e-7)


def test_files_are_compared_as_they_are_not_as_the_runtime_rewrites_them(monkeypatch: pytest.MonkeyPatch) -> None:
    optimized: list[bool] = []

    def open_and_note(model: Model, *, threads: int, optimize: bool = True) -> Session:
        optimized.append(optimize)
        return open_session(model, threads=threads, optimize=optimize)

    monkeypatch.setattr(sameness, "open_session", open_and_note)
    assert evaluator(classifier(), FakeSamples(normal(1))).mismatch(classifier(), classifier()).equal is True
    assert optimized == [False, False]


# --- the evaluator: latency -------------------------------------------------------------------------------------------


def test_latency_is_measured_where_the_target_is_here() -> None:
    samples = FakeSamples(normal(20))
    ratio = evaluator(classifier(), samples).latency(classifier(), classifier(), seconds=0.1)
    assert ratio is not None
    assert 0 < ratio.low <= ratio.median <= ratio.high
    assert samples.taken == 8
    assert evaluator(classifier(), samples, target={"runs_here": False}).latency(classifier(), classifier()) is None


def test_latency_on_random_inputs_uses_those_that_run(random_samples: list[Any]) -> None:
    random_samples.extend([{"x": np.ones((1, 3), np.float32)}, *normal(1)])
    assert evaluator(classifier()).latency(classifier(), classifier(), seconds=0.05) is not None
    assert evaluator(classifier()).race(classifier(), classifier()) is not None
    random_samples.pop()
    assert evaluator(classifier()).latency(classifier(), classifier()) is None
    assert evaluator(classifier()).race(classifier(), classifier()) is None


def test_large_models_are_timed_one_after_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("graphopt.evaluate._LARGE", 0)
    ratio = evaluator(classifier(), FakeSamples(normal(2))).latency(classifier(), classifier(), seconds=0.1)
    assert ratio is not None
    assert ratio.pairs == 5


def test_candidates_race_where_the_target_is_here() -> None:
    judge = evaluator(classifier(), FakeSamples(normal(20)))
    ratio = judge.race(classifier(), classifier())
    assert ratio is not None
    assert 0 < ratio.low < ratio.median < ratio.high
    assert (
        evaluator(classifier(), FakeSamples(normal(2)), target={"runs_here": False}).race(*[classifier()] * 2) is None
    )


class Ticking:
    """Stands in for a session of a model: only its runs move the clock, so that a busy machine changes nothing."""

    def __init__(self, clock: Clock, model: Model) -> None:
        self._clock, self._cost = clock, model.node_count * 1e-3

    def run(self, feeds: dict[str, Any]) -> None:
        self._clock.now += self._cost

    def __enter__(self) -> Ticking:
        return self

    def __exit__(self, *_: object) -> None:
        pass


def test_latency_is_that_of_the_second_model_over_that_of_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr(timing, "time", clock)
    monkeypatch.setattr(evaluate, "open_session", lambda model, **options: Ticking(clock, model))
    one = build("g (float[n, 8] x) => (float[n, 8] y) { y = Relu(x) }")
    three = build("g (float[n, 8] x) => (float[n, 8] y) { a = Relu(x) b = Relu(a) y = Relu(b) }")
    judge = evaluator(one, FakeSamples(normal(2)))
    slower, faster = judge.latency(one, three), judge.latency(three, one)
    assert slower is not None
    assert faster is not None
    assert slower.median == pytest.approx(3)
    assert faster.median == pytest.approx(1 / 3)
    assert slower.slower
    assert not faster.slower


def test_a_target_that_is_not_installed_is_judged_on_the_cpu() -> None:
    judge = evaluator(classifier(), FakeSamples(normal(2)), target={"provider": "NopeExecutionProvider"})
    assert judge.drop(classifier()) is not None


def test_protos_are_left_as_they_are() -> None:
    model = classifier()
    before = model.to_proto()
    evaluator(model, FakeSamples(normal(2))).drop(model)
    assert model.to_proto() == before
