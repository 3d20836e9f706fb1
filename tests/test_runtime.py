"""Sessions, comparing outputs, paired timing."""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, parser

from graphopt.errors import ModelError
from graphopt.model import Model
from graphopt.runtime import session as session_module
from graphopt.runtime import timing
from graphopt.runtime.compare import ANYTHING, Distance, difference, leaves, sums
from graphopt.runtime.messages import one_line
from graphopt.runtime.session import available_providers, op_counts, open_session, optimized_model
from graphopt.runtime.timing import (
    Ratio,
    median_interval,
    paired_ratio,
    quickest_ratio,
    reopened_ratio,
    successive_ratio,
)

LINEAR = """g (float[N, 2] x) => (float[N, 3] y)
<float[2, 3] w = {1, 2, 3, 4, 5, 6}> { h = MatMul(x, w) y = Relu(h) }"""
X = np.array([[1, 1]], np.float32)


def parse(text: str) -> onnx.ModelProto:
    return parser.parse_model('<ir_version: 10, opset_import: ["": 21]> ' + text)


def constant(shape: tuple[int, ...], value: float = 0.5) -> onnx.TensorProto:
    return onnx.numpy_helper.from_array(np.full(shape, value, np.float32), "w")


# --- sessions ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["proto", "model", "path"])
@pytest.mark.parametrize("optimize", [True, False])
def test_opens_what_it_is_given(kind: str, optimize: bool, tmp_path: Path) -> None:
    proto = parse(LINEAR)
    path = tmp_path / "m.onnx"
    path.write_bytes(proto.SerializeToString())
    model: Any = {"proto": proto, "model": Model.from_proto(proto), "path": path}[kind]
    with open_session(model, optimize=optimize) as session:
        assert (session.inputs, session.outputs) == (("x",), ("y",))
        np.testing.assert_array_equal(session.run({"x": X})["y"], [[5, 7, 9]])


@pytest.mark.parametrize("kind", ["proto", "model"])
def test_large_models_go_through_a_folder_that_closing_removes(
    kind: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(session_module, "_IN_MEMORY", 1000)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    proto = parse("g (float[N, 64] x) => (float[N, 64] y) { y = MatMul(x, w) }")
    proto.graph.initializer.append(constant((64, 64)))
    session = open_session(proto if kind == "proto" else Model.from_proto(proto))
    written = sorted(file.name for file in tmp_path.rglob("*") if file.is_file())
    assert len(written) == 2, "the weights must lie beside the model, to be mapped"
    np.testing.assert_allclose(session.run({"x": np.ones((1, 64), np.float32)})["y"], 32)
    session.close()
    session.close()
    assert not list(tmp_path.iterdir())
    with pytest.raises(RuntimeError, match="closed"):
        session.run({"x": X})


def test_a_failed_opening_leaves_no_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(session_module, "_IN_MEMORY", 0)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with pytest.raises(ModelError):
        open_session(parse("g (float[N, 2] x) => (float[N, 2] y) { y = Foo(x) }"))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("g (float[N] x) => (float[N] y) { y = Foo(x) }", "No Op registered for Foo"),
        ("g (float[N] x) => (float[N] y) { y = Relu(z) }", "'z' is not a graph input"),
        ("g (float[N] x) => (int64[N] y) { y = Relu(x) }", "does not match expected type"),
    ],
)
def test_models_that_do_not_open_are_refused_in_one_line(
    text: str, found: str, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ModelError, match=found) as caught:
        open_session(parse(text))
    message = str(caught.value)
    assert message.startswith("ONNX Runtime does not take the model: ")
    assert "\n" not in message
    assert "ONNXRuntimeError" not in message
    assert "onnxruntime_src" not in message
    assert capfd.readouterr() == ("", "")


def test_unreadable_files_are_refused(tmp_path: Path) -> None:
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"not a model")
    with pytest.raises(ModelError, match="Protobuf"):
        open_session(broken)
    with pytest.raises(ModelError, match=r"absent\.onnx"):
        open_session(tmp_path / "absent.onnx")


def test_a_provider_that_is_not_installed_is_named_with_those_that_are() -> None:
    with pytest.raises(ModelError, match=r"no NopeExecutionProvider; it has .*CPUExecutionProvider"):
        open_session(parse(LINEAR), provider="NopeExecutionProvider")
    assert "CPUExecutionProvider" in available_providers()


@pytest.mark.parametrize(
    ("feeds", "message"),
    [
        ({}, "input 'x' is not fed; the model needs x"),
        ({"x": X, "z": X}, "the model has no input 'z'; it has x"),
        ({"x": X[:, :1]}, "input 'x' has shape [1, 1]; the model takes [N, 2]"),
        ({"x": X[0]}, "input 'x' has shape [2]; the model takes [N, 2]"),
        ({"x": X.astype(np.float64)}, "Unexpected input data type"),
        ({"x": np.array([["a", "b"]])}, "input data type"),
    ],
)
def test_feeds_that_do_not_fit_are_refused_in_one_line(
    feeds: dict[str, Any], message: str, capfd: pytest.CaptureFixture[str]
) -> None:
    with open_session(parse(LINEAR)) as session, pytest.raises(ModelError) as caught:
        session.run(feeds)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")


def test_a_node_that_fails_is_named(capfd: pytest.CaptureFixture[str]) -> None:
    proto = parse("g (float[N, M] x) => (float[N, 3] y) <float[2, 3] w = {1, 2, 3, 4, 5, 6}> { [mm] y = MatMul(x, w) }")
    with open_session(proto) as session, pytest.raises(ModelError, match=r"node 'mm' \(MatMul\): .*dimension mismatch"):
        session.run({"x": np.ones((1, 5), np.float32)})
    assert capfd.readouterr() == ("", "")


def test_runs_only_the_outputs_that_are_wanted_in_their_order() -> None:
    with open_session(parse("g (float[2] x) => (float[2] a, float[2] b) { a = Neg(x) b = Abs(x) }")) as session:
        assert list(session.run({"x": X[0]})) == ["a", "b"]
        assert list(session.run({"x": X[0]}, ["b", "a"])) == ["b", "a"]
        with pytest.raises(ModelError, match="nope"):
            session.run({"x": X[0]}, ["nope"])


def test_a_default_may_be_overridden_or_left() -> None:
    proto = parse("g (float[2] x, float[2] b) => (float[2] y) <float[2] b = {1, 2}> { y = Add(x, b) }")
    with open_session(proto) as session:
        assert session.inputs == ("x",)
        np.testing.assert_array_equal(session.run({"x": X[0]})["y"], [2, 3])
        np.testing.assert_array_equal(session.run({"x": X[0], "b": X[0]})["y"], [2, 2])


@pytest.mark.parametrize("dtype", [ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn, ml_dtypes.int4, ml_dtypes.uint4])
def test_element_types_that_the_runtime_does_not_give_to_numpy(dtype: type) -> None:
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    proto = parse(f"g (float[3] x) => (int4[3] y, float[3] z) {{ y = Cast<to: int = {kind}>(x) z = Neg(x) }}")
    proto.graph.output[0].type.tensor_type.elem_type = kind
    with open_session(proto) as session:
        outputs = session.run({"x": np.array([0, 1, 3], np.float32)})
    assert outputs["y"].dtype == np.dtype(dtype)
    np.testing.assert_array_equal(outputs["y"].astype(np.float32), [0, 1, 3])
    np.testing.assert_array_equal(outputs["z"], [0, -1, -3])


def test_feeds_bfloat16() -> None:
    proto = parse("g (bfloat16[3] x, int64[1] n) => (float[3] y, int64[1] m) { y = Cast<to: int = 1>(x) m = Neg(n) }")
    with open_session(proto) as session:
        outputs = session.run({"x": np.array([1, 2.5, -3], ml_dtypes.bfloat16), "n": np.array([4])})
        np.testing.assert_array_equal(outputs["y"], [1, 2.5, -3])
        assert outputs["m"] == [-4]
        with pytest.raises(ModelError, match="list cannot be fed"):
            session.run({"x": [1], "n": np.array([4])})


def test_outputs_that_are_no_tensors() -> None:
    proto = parse("g (float[4] x) => (seq(float[M]) parts) { parts = SplitToSequence(x) }")
    with open_session(proto) as session:
        parts = session.run({"x": np.arange(4, dtype=np.float32)})["parts"]
    assert isinstance(parts, list)
    assert len(parts) == 4


@pytest.mark.parametrize("kind", [TensorProto.FLOAT, TensorProto.BFLOAT16])
def test_an_optional_output_may_have_no_value(kind: int) -> None:
    none = helper.make_tensor_type_proto(TensorProto.FLOAT, [2])
    graph = helper.make_graph(
        [helper.make_node("Optional", [], ["o"], type=none), helper.make_node("Cast", ["x"], ["y"], to=kind)],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2])],
        [
            helper.make_value_info("o", helper.make_optional_type_proto(none)),
            helper.make_tensor_value_info("y", kind, [2]),
        ],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    with open_session(proto) as session:
        outputs = session.run({"x": X[0]})
    assert outputs["o"] is None
    np.testing.assert_array_equal(outputs["y"].astype(np.float32), X[0])


def test_the_optimized_graph_is_the_one_that_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = "g (float[N, 64] x) => (float[N, 64] y) { a = MatMul(x, w) b = Identity(a) y = Identity(b) }"
    proto = parse(text)
    proto.graph.initializer.append(constant((64, 64)))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    for limit in (0, 2**24):
        monkeypatch.setattr(session_module, "_IN_MEMORY", limit)
        assert op_counts(optimized_model(proto)) == {"MatMul": 1}
        assert op_counts(optimized_model(Model.from_proto(proto))) == {"MatMul": 1}
    assert not list(tmp_path.iterdir())


def test_operators_are_counted_in_bodies_and_with_their_domain() -> None:
    proto = parse(
        """g (bool c, float[2] x) => (float[2] y) { z = Relu(x) y = If (c) <
        then_branch = t () => (float[2] p) { p = Relu(z) },
        else_branch = e () => (float[2] q) { q = Abs(z) }> }"""
    )
    proto.graph.node.append(helper.make_node("Gelu", ["y"], ["w"], domain="com.microsoft"))
    assert op_counts(proto) == {"Relu": 2, "If": 1, "Abs": 1, "com.microsoft:Gelu": 1}


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (
            "[ONNXRuntimeError] : 1 : FAIL : Non-zero status code returned while running MatMul node. Name:'m' Status "
            "Message: /onnxruntime_src/include/onnxruntime/core/framework/op_kernel_context.h:45 const T* onnxruntime::"
            "OpKernelContext::Input(int) const [with T = onnxruntime::Tensor] Missing Input: x\n",
            "node 'm' (MatMul): Missing Input: x",
        ),
        (
            "[ONNXRuntimeError] : 1 : FAIL : /onnxruntime_src/onnxruntime/core/graph/model.cc:256 onnxruntime::Model::"
            "Model(onnx::ModelProto&&, const std::unordered_map<std::basic_string<char>, int>&) Unsupported model IR "
            "version: 99, max supported IR version: 14\n",
            "Unsupported model IR version: 99, max supported IR version: 14",
        ),
        (
            "/onnxruntime_src/onnxruntime/python/x.cc:291 onnxruntime::python::f(pybind11::module&)::<lambda(pybind11::"
            "array&, int32_t)> Items size in the incoming array: 8 specified by onnxtype: 32\n",
            "Items size in the incoming array: 8 specified by onnxtype: 32",
        ),
        ("[ONNXRuntimeError] : 1 : FAIL : Exception during loading: no\n such\n type", "no such type"),
        ("plain", "plain"),
        ("x" * 1000, "x" * 297 + "..."),
    ],
)
def test_messages_keep_their_operative_part(text: str, line: str) -> None:
    assert one_line(Exception(text)) == line


# --- comparing --------------------------------------------------------------------------------------------------------

F32, F16, BF16, F64 = np.dtype(np.float32), np.dtype(np.float16), np.dtype(ml_dtypes.bfloat16), np.dtype(np.float64)


def noisy(dtype: np.dtype, relative: float) -> tuple[np.ndarray, np.ndarray]:
    """Return values of about 1 and the same with an error of the relative L2 norm `relative`."""
    rng = np.random.default_rng(0)
    values = rng.standard_normal(10_000)
    return values.astype(dtype), (values + relative * rng.standard_normal(10_000)).astype(dtype)


@pytest.mark.parametrize(
    ("dtype", "relative", "same"),
    [
        (F32, 2.3e-6, True),  # the most that was measured on real models
        (F32, 1e-5, True),
        (F32, 1e-4, False),
        (F64, 1e-14, True),
        (F64, 1e-9, False),
        (F16, 3e-4, True),
        (F16, 1e-2, False),
        (BF16, 3e-3, True),
        (BF16, 5e-2, False),
    ],
)
def test_floats_may_be_reassociated_but_not_changed(dtype: np.dtype, relative: float, same: bool) -> None:
    before, after = noisy(dtype, relative)
    found = difference({"y": before}, {"y": after})
    assert (found is None) == same, found


def test_one_wrong_element_of_many_is_found() -> None:
    before = np.ones(1_000_000, np.float32)
    after = before.copy()
    after[777] = 1.001  # 1e-6 in the L2 norm
    assert "largest element" in (difference({"y": before}, {"y": after}) or "")


NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("before", "after", "found"),
    [
        ([1, NAN], [1, NAN], None),
        ([1, INF, -INF], [1, INF, -INF], None),
        ([1, INF], [1, -INF], "NaN or infinite"),
        ([1, NAN], [1, 2], "1 of 2 elements"),
        ([1, 2], [NAN, 2], "1 of 2 elements"),
        ([NAN, 1], [NAN, 1.1], "L2"),
        ([0, 0], [1e-7, 0], None),
        ([0, 0], [1e-3, 0], "L2"),
        ([1e-30, 0], [1.1e-30, 0], "L2"),
        ([], [], None),
    ],
)
def test_special_values(before: list[float], after: list[float], found: str | None) -> None:
    line = difference({"y": np.array(before, np.float32)}, {"y": np.array(after, np.float32)})
    assert line is None if found is None else found in (line or "")


@pytest.mark.parametrize(
    ("before", "after", "found"),
    [
        (np.ones(2, np.float32), np.ones(2, np.float64), "type from float32 to float64"),
        (np.ones((1, 2)), np.ones((2, 1)), "shape from [1, 2] to [2, 1]"),
        (np.array([1, 2]), np.array([1, 3]), "1 of 2 elements"),
        (np.array([True]), np.array([False]), "1 of 1 elements"),
        (np.array(["a", "b"], object), np.array(["a", "c"], object), "1 of 2 elements"),
        (np.array([1, 2], ml_dtypes.int4), np.array([1, 3], ml_dtypes.int4), "1 of 2 elements"),
        (np.array([1 + 1j]), np.array([1 + 2j]), "L2"),
        ([np.ones(2), np.ones(3)], [np.ones(2)], "'y[1]' is missing"),
        ([np.ones(2)], [np.ones(2), np.ones(3)], "'y[1]' was not there"),
        ([{"a": 1.0, "b": 2.0}], [{"a": 1.0, "b": 2.5}], "'y[0][b]'"),
        ({1: "x"}, {1: "y"}, "'y[1]'"),
        (None, np.ones(1), "only after"),
        (np.ones(1), None, "only before"),
    ],
)
def test_everything_that_is_no_float_is_exact(before: Any, after: Any, found: str) -> None:
    assert found in (difference({"y": before}, {"y": after}) or "")
    assert difference({"y": before}, {"y": before}) is None
    assert difference({"y": after}, {"y": after}) is None


def test_a_missing_output_is_named() -> None:
    assert difference({"a": X, "b": X}, {"a": X}) == "output 'b' is missing"


def test_noise_widens_the_tolerance_of_its_part_only() -> None:
    before, after = noisy(F32, 1e-3)
    assert difference({"y": before}, {"y": after}, {"y": Distance(2e-4, 2e-3)}) is None
    assert difference({"y": before}, {"y": after}, {"y": Distance(5e-5, 5e-4)})
    assert difference({"y": before}, {"y": after}, {"z": ANYTHING})
    assert difference({"y": before}, {"y": after}, {"y": ANYTHING}) is None


def test_leaves_of_nested_outputs() -> None:
    assert [name for name, _ in leaves({"a": [X, {"k": X}], "b": None})] == ["a[0]", "a[1][k]", "b"]


def test_sums_are_the_same_in_pieces() -> None:
    rng = np.random.default_rng(1)
    before, after = rng.standard_normal((2, 3, 700_000))
    total = sums(before, after)
    assert total.energy == pytest.approx(float((before**2).sum()))
    assert total.error == pytest.approx(float(((before - after) ** 2).sum()))
    assert total.peak_error == float(np.abs(before - after).max())


# --- timing -----------------------------------------------------------------------------------------------------------


Cost = Callable[[float, int], float]


class Clock:
    """A clock that sessions move."""

    def __init__(self) -> None:
        self.now = 0.0

    def perf_counter(self) -> float:
        return self.now

    def perf_counter_ns(self) -> int:
        return round(self.now * 1e9)


class Worker:
    """Stands in for a session: takes the time that a function of the wall clock and the feed says."""

    def __init__(
        self, clock: Clock, cost: Callable[[float, int], float], log: list[tuple[str, int]], name: str
    ) -> None:
        self._clock, self._cost, self._log, self._name = clock, cost, log, name
        self.closed = 0

    def run(self, feeds: Mapping[str, Any]) -> None:
        self._log.append((self._name, feeds["x"]))
        self._clock.now += self._cost(self._clock.now, feeds["x"])

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self.closed += 1


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(timing, "time", clock)
    return clock


def workers(clock: Clock, before: Cost, after: Cost) -> tuple[Any, Any, list[tuple[str, int]]]:
    log: list[tuple[str, int]] = []
    return Worker(clock, before, log, "A"), Worker(clock, after, log, "B"), log


FEEDS: list[Any] = [{"x": 0}, {"x": 1}, {"x": 2}]


def test_the_ratio_survives_a_drifting_clock(clock: Clock) -> None:
    """The machine becomes ten times slower during the measurement; a before-then-after timing would say 0.3 or 3."""
    a, b, _ = workers(clock, lambda now, _: 0.01 * (1 + 5 * now), lambda now, _: 0.008 * (1 + 5 * now))
    ratio = paired_ratio(a, b, FEEDS)
    assert ratio.median == pytest.approx(0.8, rel=0.06)
    assert ratio.low <= ratio.median <= ratio.high
    assert ratio.low > 0.7
    assert ratio.high < 0.9


def test_the_ratio_survives_interruptions(clock: Clock) -> None:
    hit = itertools.cycle([1, 1, 1, 1, 1, 1, 30])
    a, b, _ = workers(clock, lambda *_: 0.005 * next(hit), lambda *_: 0.006 * next(hit))
    assert paired_ratio(a, b, FEEDS).median == pytest.approx(1.2, rel=0.01)


@pytest.mark.parametrize("count", [2, 3])
def test_pairs_alternate_their_order_and_use_every_feed_in_both(clock: Clock, count: int) -> None:
    a, b, log = workers(clock, lambda *_: 0.01, lambda *_: 0.02)
    ratio = paired_ratio(a, b, FEEDS[:count], seconds=1.0)
    timed = log[-2 * ratio.pairs :]
    pairs = [(timed[i][0] + timed[i + 1][0], timed[i][1]) for i in range(0, len(timed), 2)]
    assert {order for order, _ in pairs[0::2]} == {"AB"}
    assert {order for order, _ in pairs[1::2]} == {"BA"}
    assert set(pairs) == {(order, feed) for order in ("AB", "BA") for feed in range(count)}
    assert (ratio.median, ratio.low, ratio.high) == pytest.approx((2, 2, 2))
    assert clock.now < 1.1


@pytest.mark.parametrize(("cost", "pairs"), [(10.0, 5), (0.4, 10), (1e-5, 1000)])
def test_slow_models_are_timed_often_enough_and_quick_ones_not_forever(clock: Clock, cost: float, pairs: int) -> None:
    a, b, _ = workers(clock, lambda *_: cost, lambda _, feed: cost * (0.9, 1.1)[feed])
    ratio = paired_ratio(a, b, FEEDS[:2], seconds=2.0)
    assert ratio.pairs == pairs
    assert ratio.median == pytest.approx(1, abs=0.11)


def test_timing_ends_once_the_interval_is_narrow_and_every_feed_was_seen_in_both_orders(clock: Clock) -> None:
    a, b, _ = workers(clock, lambda *_: 0.001, lambda *_: 0.0005)
    assert paired_ratio(a, b, FEEDS, seconds=2.0).pairs == 10
    assert paired_ratio(a, b, FEEDS * 4, seconds=2.0).pairs == 30
    noise = itertools.cycle([0.97, 1.03])
    a, b, _ = workers(clock, lambda *_: 0.001, lambda *_: 0.0005 * next(noise))
    assert paired_ratio(a, b, FEEDS, seconds=2.0).pairs > 100, "each feed has a ratio of its own in either order"
    assert paired_ratio(a, b, FEEDS, seconds=2.0, only_slower=True).pairs == 10


def test_whether_a_model_is_slower_is_told_by_fewer_openings(clock: Clock) -> None:
    opened: list[str] = []

    def open_worker(name: str, cost: float) -> Any:
        opened.append(name)
        return Worker(clock, lambda *_: cost, [], name)

    def timed(cost: float) -> Ratio:
        opened.clear()
        return reopened_ratio(lambda: open_worker("A", 0.01), lambda: open_worker("B", cost), FEEDS, only_slower=True)

    assert timed(0.005).median == pytest.approx(0.5)
    assert len(opened) == 4
    assert timed(0.0105).median == pytest.approx(1.05)
    assert len(opened) == 6, "by so little it may seem slower in one of them"


def test_a_race_ends_once_runs_get_no_quicker_and_goes_on_while_they_do(clock: Clock) -> None:
    a, b, _ = workers(clock, lambda *_: 0.004, lambda *_: 0.002)
    assert quickest_ratio(lambda: a, lambda: b, FEEDS, seconds=1.0).pairs == 3 * (5 + 5 + 6 + 6)
    a, b, _ = workers(clock, lambda now, _: 0.001 / (1 + now), lambda *_: 0.0005)
    assert quickest_ratio(lambda: a, lambda: b, FEEDS).pairs > 84


def test_quick_runs_are_timed_several_at_once(clock: Clock) -> None:
    a, b, log = workers(clock, lambda *_: 1e-4, lambda *_: 1e-4)
    paired_ratio(a, b, FEEDS[:1], seconds=0.01)
    orders = [len(list(group)) for _, group in itertools.groupby(log[4:], key=lambda run: run[0])]
    assert min(orders) >= 5


def test_timing_needs_a_feed(clock: Clock) -> None:
    a, b, _ = workers(clock, lambda *_: 1, lambda *_: 1)
    with pytest.raises(ValueError, match="at least one feed"):
        paired_ratio(a, b, [])


def test_reopening_shows_what_placement_does(clock: Clock) -> None:
    """Each opening of the second model runs at a speed of its own; the interval must span them."""
    opened: list[Worker] = []
    log: list[tuple[str, int]] = []
    speeds = iter([0.010, 0.011, 0.009])

    def open_worker(name: str, cost: float) -> Any:
        opened.append(Worker(clock, lambda *_: cost, log, name))
        return opened[-1]

    ratio = reopened_ratio(lambda: open_worker("A", 0.01), lambda: open_worker("B", next(speeds)), FEEDS)
    assert (ratio.median, ratio.low, ratio.high) == pytest.approx((1.0, 0.9, 1.1))
    assert not ratio.slower
    assert len(opened) == 6
    assert all(worker.closed == 1 for worker in opened)
    assert [worker._name for worker in opened] == ["A", "B", "B", "A", "A", "B"]


def test_large_models_are_never_open_together(clock: Clock) -> None:
    opened: list[Worker] = []
    costs = {"A": itertools.cycle([0.01]), "B": itertools.cycle([0.02, 0.021, 0.019, 0.03, 0.02])}

    def open_worker(name: str) -> Any:
        assert all(worker.closed for worker in opened)
        cost = next(costs[name])
        opened.append(Worker(clock, lambda *_: cost, [], name))
        return opened[-1]

    ratio = successive_ratio(lambda: open_worker("A"), lambda: open_worker("B"), FEEDS)
    assert (ratio.median, ratio.low, ratio.high) == pytest.approx((2.0, 1.9, 3.0))
    assert ratio.pairs == 5
    assert [worker._name for worker in opened] == ["A", "B", "B", "A", "A", "B", "B", "A", "A", "B"]
    with pytest.raises(ValueError, match="at least one feed"):
        successive_ratio(lambda: open_worker("A"), lambda: open_worker("B"), [])


def test_the_quickest_runs_count_whatever_breaks_into_others(clock: Clock) -> None:
    rng = np.random.default_rng(0)

    def hit() -> float:
        return float(rng.choice([1, 1, 1.5, 4, 30]))

    a, b, _ = workers(clock, lambda _, feed: (1 + feed) * 0.01 * hit(), lambda *_: 0.024 * hit())
    assert quickest_ratio(lambda: a, lambda: b, FEEDS, seconds=30.0).median == pytest.approx(3 * 24 / 60), (
        "the sum over the feeds"
    )


def test_slow_models_race_with_five_runs_of_each_feed(clock: Clock) -> None:
    a, b, log = workers(clock, lambda *_: 2.0, lambda *_: 1.0)
    ratio = quickest_ratio(lambda: a, lambda: b, FEEDS)
    assert (ratio.median, ratio.pairs, ratio.slower) == (0.5, 15, False)
    assert (a.closed, b.closed) == (1, 1)
    assert {name for name, _ in log[-30::2]} == {"A", "B"}, "who goes first alternates"
    with pytest.raises(ValueError, match="at least one feed"):
        quickest_ratio(lambda: a, lambda: b, [])


def test_quick_models_race_in_several_openings_of_which_the_luckiest_counts(clock: Clock) -> None:
    costs = itertools.cycle([0.0012, 0.001, 0.0011])
    log: list[tuple[str, int]] = []

    def opened(name: str) -> Any:
        cost = next(costs)
        return Worker(clock, lambda *_: cost, log, name)

    assert quickest_ratio(lambda: opened("A"), lambda: opened("B"), FEEDS).median == pytest.approx(1.0)


def test_slow_models_are_reopened_less_often(clock: Clock) -> None:
    names: list[str] = []

    def open_worker(name: str) -> Any:
        names.append(name)
        return Worker(clock, lambda *_: 5.0, [], name)

    assert reopened_ratio(lambda: open_worker("A"), lambda: open_worker("B"), FEEDS).pairs == 10
    assert len(names) == 4


def test_slower_needs_more_than_chance() -> None:
    assert Ratio(1.3, 1.2, 1.4, 10).slower
    assert not Ratio(1.02, 1.01, 1.03, 1000).slower
    assert not Ratio(1.3, 0.9, 1.5, 10).slower


@pytest.mark.parametrize(
    ("count", "ranks"),
    [(1, (1, 1)), (2, (1, 2)), (5, (1, 5)), (6, (1, 6)), (10, (2, 9)), (20, (6, 15)), (100, (40, 61))],
)
def test_the_interval_of_the_median_is_the_tabulated_one(count: int, ranks: tuple[int, int]) -> None:
    shuffled = np.random.default_rng(0).permutation(np.arange(1, count + 1))
    assert median_interval([float(value) for value in shuffled]) == ranks


@pytest.fixture(autouse=True)
def _collection_is_left_on() -> Iterator[None]:
    import gc

    yield
    assert gc.isenabled()


def test_real_sessions_are_timed() -> None:
    with open_session(parse(LINEAR)) as one, open_session(parse(LINEAR)) as other:
        ratio = paired_ratio(one, other, [{"x": X}], seconds=0.05)
    assert 0 < ratio.low <= ratio.median <= ratio.high
    assert ratio.pairs >= 10
