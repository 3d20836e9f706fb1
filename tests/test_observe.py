"""Observations: equal to what numpy finds in the activations, in every dialect, and additive."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, parser

from graphopt.errors import ModelError
from graphopt.model import Model
from graphopt.observe import ChannelMean, ChannelRange, Histogram, Observations, Observer, Range, SecondMoment
from graphopt.observe.sums import Counts
from graphopt.runtime.session import Session
from graphopt.samples import Samples, open_samples

F32 = np.float32
BIG = 40_000  # elements; more than a histogram looks at
NET = """
<ir_version: 8, opset_import: ["" : %d]>
net (float[n, 3, h, w] x) => (float[n, 4, h, w] y)
<float[4, 3, 1, 1] k = {1, -2, 3, 0, 1, 0, -1, 1, 2, 0.5, 0.5, -0.5}, float[4] b = {0, 1, -1, 0.5}>
{
   c = Conv(x, k, b)
   r = Relu(c)
   y = Add(r, c)
}
"""
EVERY = (Range(), Histogram(), ChannelMean(1), ChannelMean(-1), SecondMoment(), ChannelRange(-1))
STATISTICS = (Range(), Histogram(), ChannelMean(1), SecondMoment(), ChannelRange(1))
Feeds = Mapping[str, np.ndarray]


def model_of(text: str) -> Model:
    return Model.from_proto(parser.parse_model(text))


def net(opset: int = 17) -> Model:
    return model_of(NET % opset)


def images(*shapes: tuple[int, ...], seed: int = 0) -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(seed)
    return [{"x": rng.normal(number, 2, shape).astype(F32)} for number, shape in enumerate(shapes)]


SHAPES = ((1, 3, 2, 5), (2, 3, 7, 5), (1, 3, 1, 5))


def observer(model: Model, feeds: Sequence[Feeds] | Callable[[], Any]) -> Observer:
    return Observer(open_samples(feeds, model.interface))


def activations(model: Model, feeds: Sequence[Feeds], *names: str) -> list[list[np.ndarray]]:
    """Return, by tensor, its values in each sample, from a session without optimizations."""
    proto = model.to_proto()
    known = {info.name for info in (*proto.graph.output, *proto.graph.input)}
    proto.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names if name not in known)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    outputs = [name for name in names if name not in feeds[0]]
    runs = [dict(zip(outputs, session.run(outputs, dict(item)), strict=True)) | dict(item) for item in feeds]
    return [[run[name].astype(np.float64) for run in runs] for name in names]


def assert_matches(found: Observations, tensor: str, values: list[np.ndarray], axis: int = 1) -> None:
    """Compare all of `STATISTICS` with those of the finite values; rows with others do not count as rows."""
    flat = np.concatenate([item.ravel() for item in values])
    finite = flat[np.isfinite(flat)]
    assert found.shape(tensor) == values[0].shape
    assert found.elements(tensor) == flat.size
    assert found.nonfinite(tensor) == flat.size - finite.size
    np.testing.assert_allclose(found.range(tensor), (finite.min(), finite.max()), rtol=1e-6)
    counts, edges = found.histogram(tensor)
    np.testing.assert_allclose(counts, np.histogram(finite, edges)[0], rtol=1e-9)
    assert counts.sum() == pytest.approx(finite.size)
    assert edges[0] <= finite.min()
    assert finite.max() < edges[-1]
    channels = [np.moveaxis(item, axis, 0).reshape(item.shape[axis], -1) for item in values]
    mean = np.nanmean(np.where(np.isfinite(together := np.concatenate(channels, axis=1)), together, np.nan), axis=1)
    np.testing.assert_allclose(found.mean(tensor, axis), mean, rtol=1e-5, atol=1e-6)
    if (tensor, ChannelRange(axis)) in found.sums:
        masked = np.ma.masked_invalid(together)
        for end, wanted in zip(
            found.channel_range(tensor, axis), (masked.min(axis=1), masked.max(axis=1)), strict=True
        ):
            np.testing.assert_allclose(end, wanted.filled(np.nan), rtol=1e-6)
    rows = np.concatenate([item.reshape(-1, item.shape[-1]) for item in values])
    rows = rows[np.isfinite(rows).all(axis=1)]
    np.testing.assert_allclose(found.second_moment(tensor), rows.T @ rows / len(rows), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("opset", [7, 8, 9, 10, 11, 12, 13, 17, 18, 20, 21])
def test_statistics_are_those_of_the_activations(opset: int) -> None:
    model, feeds = net(opset), images(*SHAPES)
    before = model.fingerprint()
    found = observer(model, feeds).observe(model, dict.fromkeys("xcry", STATISTICS))
    assert model.fingerprint() == before
    assert found.samples == 3
    for name, values in zip("xcry", activations(model, feeds, *"xcry"), strict=True):
        if opset >= 10:
            assert_matches(found, name, values)
            continue
        counts, _ = found.histogram(name)  # old Slice has no steps: elements count almost equally often, not exactly
        assert counts.sum() == pytest.approx(sum(item.size for item in values))
        flat = np.concatenate([item.ravel() for item in values])
        np.testing.assert_allclose(found.range(name), (flat.min(), flat.max()), rtol=1e-6)


def test_requests_of_several_axes() -> None:
    model, feeds = net(), images(*SHAPES)
    found = observer(model, feeds).observe(model, {"c": [ChannelMean(1), ChannelMean(-1), ChannelMean(3)], "y": []})
    (values,) = activations(model, feeds, "c")
    wanted = np.concatenate([item.reshape(-1, 5) for item in values]).mean(axis=0)
    for axis in (-1, 3):
        np.testing.assert_allclose(found.mean("c", axis), wanted, rtol=1e-5)
    assert found.mean("c", 1).shape == (4,)
    with pytest.raises(KeyError, match="ChannelMean of tensor 'c' was observed in several forms"):
        found.mean("c")
    with pytest.raises(KeyError, match="Histogram of tensor 'c' was not observed"):
        found.histogram("c")
    with pytest.raises(KeyError, match=r"SecondMoment\(\) of tensor 'y' was not observed"):
        found.second_moment("y")
    with pytest.raises(KeyError, match="tensor 'r' was not observed"):
        found.shape("r")
    assert found.range("y")[0] < found.range("y")[1]


def test_channels_count_by_their_elements() -> None:
    model = model_of('<ir_version: 8, opset_import: ["" : 17]> g (float[n, 2] x) => (float[n, 2] y) { y = Neg(x) }')
    feeds = [{"x": np.array([[1, 2]], F32)}, {"x": np.array([[5, 0]] * 3, F32)}]
    found = observer(model, feeds).observe(model, {"y": [ChannelMean(-1)]})
    np.testing.assert_array_equal(found.mean("y"), [-4, -0.5])


def test_axes_that_do_not_do() -> None:
    model, feeds = net(), images((1, 3, 2, 5), (1, 3, 3, 5))
    with pytest.raises(ValueError, match="tensor 'c' has no axis 4; it has 4 axes"):
        observer(model, feeds).observe(model, {"c": [ChannelMean(4)]})
    with pytest.raises(ValueError, match=r"ChannelMean\(axis=2\) of tensor 'c' has shape \[3\] after \[2\] in another"):
        observer(model, feeds).observe(model, {"c": [ChannelMean(2)]})
    scalar = model_of('<ir_version: 8, opset_import: ["" : 17]> g (float x) => (float y) { y = Neg(x) }')
    with pytest.raises(ValueError, match="tensor 'y' has no axis -1; it has 0 axes"):
        observer(scalar, [{"x": np.array(1, F32)}]).observe(scalar, {"y": [SecondMoment()]})
    found = observer(scalar, [{"x": np.array(1, F32)}]).observe(scalar, {"y": [Histogram()]})
    assert found.range("y") == (-1, -1)
    assert found.histogram("y")[0].tolist() == [1]


@pytest.mark.parametrize("name", ["FLOAT16", "DOUBLE", "BFLOAT16", "INT32", "INT64", "UINT8", "INT8"])
def test_other_types_are_read_as_float(name: str) -> None:
    kind = getattr(TensorProto, name)
    dtype = helper.tensor_dtype_to_np_dtype(kind)
    graph = helper.make_graph(
        [helper.make_node("Identity", ["x"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", kind, ["n", 3])],
        [helper.make_tensor_value_info("y", kind, ["n", 3])],
    )
    model = Model.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))
    feeds = [{"x": np.array([[0, 1, 2], [3, 50, 5]]).astype(dtype)}, {"x": np.array([[7, 7, 0]]).astype(dtype)}]
    assert observer(model, feeds).observable(model) == {"x", "y"}
    found = observer(model, feeds).observe(model, {"x": STATISTICS, "y": STATISTICS})
    assert_matches(found, "y", [item["x"].astype(np.float64) for item in feeds])


TYPES = """
<ir_version: 8, opset_import: ["" : 17]>
types (float[2, 2] x, string[n] s, bool c, float[2, 2] d) => (float[2, 2] y, bool[2, 2] b)
<float[2, 2] d = {1, 2, 3, 4}, float[2, 2] k = {1, 2, 3, 4}>
{
   k2 = Constant<value = float[2, 2] {1, 1, 1, 1}>()
   z = Mul(x, k)
   w = Add(z, d)
   b = Less(x, k2)
   q = SequenceConstruct(x, z)
   y = If (c) <
      then_branch = t () => (float[2, 2] ty) { inner = Neg(w)
      ty = Neg(inner) },
      else_branch = e () => (float[2, 2] ey) { ey = Neg(x) }
   >
}
"""


def test_what_can_be_observed() -> None:
    model = model_of(TYPES)
    feeds = [{"x": np.eye(2, dtype=F32), "s": np.array(["a"], object), "c": np.array(flag)} for flag in (True, False)]
    samples = open_samples(feeds, model.interface, optional=frozenset({"d"}))
    watcher = Observer(samples)
    assert watcher.observable(model) >= {"x", "z", "w", "y"}
    assert not watcher.observable(model) & {"s", "c", "d", "k", "b", "q", "inner", "ty", "ey"}
    for name in ("k", "inner", "s", "nowhere"):
        with pytest.raises(KeyError, match=f"tensor '{name}' cannot be observed"):
            watcher.observe(model, {"x": [], name: [Range()]})
    found = watcher.observe(model, {"w": [], "y": []})
    assert found.range("w") == (2, 8)
    assert found.range("y") == (-1, 8)


def test_a_tensor_of_unknown_rank() -> None:
    proto = parser.parse_model("""
        <ir_version: 8, opset_import: ["" : 17]>
        g (float[n] x, int64[m] s) => (float y) { z = Reshape(x, s)
        y = Neg(z) }
    """)
    proto.graph.output[0].type.tensor_type.ClearField("shape")
    model = Model.from_proto(proto)
    feeds = [{"x": np.arange(12, dtype=F32), "s": np.array(shape)} for shape in ((3, 2, 2), (1, 6, 2))]
    found = observer(model, feeds).observe(model, {"z": [*STATISTICS[:2], ChannelMean(-1), SecondMoment()]})
    assert_matches(found, "z", activations(model, feeds, "z")[0], axis=-1)


def test_vectors_are_their_own_channels() -> None:
    model = model_of('<ir_version: 8, opset_import: ["" : 11]> g (float[3] x) => (float[3] y) { y = Neg(x) }')
    feeds = [{"x": np.array(values, F32)} for values in ((1, 2, 3), (3, 2, -1))]
    found = observer(model, feeds).observe(model, {"y": [ChannelMean(0), Histogram(), SecondMoment()]})
    assert_matches(found, "y", [-item["x"].astype(np.float64) for item in feeds], axis=0)


def test_opset_of_a_model_without_standard_operators() -> None:
    node = helper.make_node("Gelu", ["x"], ["y"], domain="com.microsoft")
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n"]) for name in "xy"]
    imports = [helper.make_opsetid("com.microsoft", 1)]
    proto = helper.make_model(helper.make_graph([node], "g", ends[:1], ends[1:]), opset_imports=imports, ir_version=8)
    model = Model.from_proto(proto)
    found = observer(model, [{"x": np.array([0, 1], F32)}]).observe(model, {"y": [Histogram()]})
    assert found.range("y") == pytest.approx((0, 0.8413447))


BAD = [np.nan, np.inf, -np.inf]


@pytest.mark.parametrize("bad", [[np.nan], [np.inf], [-np.inf], BAD])
@pytest.mark.parametrize("opset", [10, 13, 18])
def test_nan_and_infinity_are_counted_and_left_out(bad: list[float], opset: int) -> None:
    model, feeds = net(opset), images(*SHAPES)
    for number, value in enumerate(bad):
        feeds[1]["x"][number % 2, 0, 3, number + 1] = value
    found = observer(model, feeds).observe(model, {"x": STATISTICS, "c": STATISTICS})
    assert found.nonfinite("x") == len(bad)
    with np.errstate(invalid="ignore"):
        for name, values in zip("xc", activations(model, feeds, *"xc"), strict=True):
            assert_matches(found, name, values)


def test_nan_anywhere_is_noticed() -> None:
    """The reductions of ONNX Runtime pass over NaN, or forget what came before it, depending on its place."""
    model = model_of('<ir_version: 8, opset_import: ["" : 17]> g (float[n] x) => (float[n] y) { y = Neg(x) }')
    for place in (0, 1, 7, 8, 500, 998, 999):
        values = np.linspace(-1, 1, 1000, dtype=F32)
        values[place] = np.nan
        found = observer(model, [{"x": values}]).observe(model, {"y": []})
        assert found.nonfinite("y") == 1
        assert found.range("y") == (float(-np.nanmax(values)), float(-np.nanmin(values)))


def test_sums_that_overflow_are_not_infinite_values() -> None:
    model = model_of('<ir_version: 8, opset_import: ["" : 17]> g (float[n] x) => (float[n] y) { y = Neg(x) }')
    found = observer(model, [{"x": np.full(4, 3e38, F32)}]).observe(model, {"y": [Histogram()]})
    assert found.nonfinite("y") == 0
    assert found.range("y") == (float(-F32(3e38)), float(-F32(3e38)))
    assert found.histogram("y")[0].tolist() == [4]


def test_tensors_without_one_finite_value() -> None:
    for opset in (8, 17):
        model, feeds = net(opset), images((1, 3, 2, 2))
        feeds[0]["x"][:] = np.nan
        found = observer(model, feeds).observe(model, {"c": STATISTICS})
        assert np.isnan(found.range("c")).all()
        assert found.histogram("c")[0].size == 0
        assert np.isnan(found.mean("c")).all()
        assert np.isnan(found.second_moment("c")).all()


def test_old_models_leave_out_whole_samples() -> None:
    feeds = images(*SHAPES)
    feeds[1]["x"][0, 0, 0, 0] = np.nan
    found = observer(net(8), feeds).observe(net(8), {"x": STATISTICS})
    whole = [feeds[0]["x"], feeds[2]["x"]]
    assert found.range("x") == (min(map(np.min, whole)), max(map(np.max, whole)))
    assert found.nonfinite("x") == feeds[1]["x"].size
    assert found.elements("x") == sum(item["x"].size for item in feeds)
    assert np.isfinite(found.mean("x")).all()


@pytest.mark.parametrize("opset", [9, 10, 13, 18])
def test_empty_activations(opset: int) -> None:
    model = model_of(
        f'<ir_version: 8, opset_import: ["" : {opset}]> g (float[n, k] x) => (float[n, k] y) {{ y = Neg(x) }}'
    )
    empty = [{"x": np.zeros(shape, F32)} for shape in ((0, 3), (0, 3))]
    found = observer(model, empty).observe(model, {"y": STATISTICS})
    assert np.isnan(found.range("y")).all()
    assert found.histogram("y")[0].size == 0
    assert np.isnan(found.mean("y")).all()
    assert found.shape("y") == (0, 3)
    some = [empty[0], {"x": np.array([[1, 2, 3]], F32)}, {"x": np.zeros((2, 0), F32)}]
    found = observer(model, some).observe(model, {"y": STATISTICS})
    assert found.range("y") == (-3, -1)
    np.testing.assert_array_equal(found.mean("y"), [-1, -2, -3])
    np.testing.assert_array_equal(found.second_moment("y"), np.outer([1, 2, 3], [1, 2, 3]))


@pytest.mark.parametrize("opset", [9, 17])
def test_large_tensors_are_looked_at_in_places(opset: int) -> None:
    model = model_of(f'<ir_version: 8, opset_import: ["" : {opset}]> g (float[n] x) => (float[n] y) {{ y = Neg(x) }}')
    values = np.random.default_rng(0).normal(size=BIG).astype(F32)
    found = observer(model, [{"x": values}]).observe(model, {"y": [Histogram(bins=64)]})
    assert found.range("y") == (-values.max(), -values.min())  # exact all the same
    counts, edges = found.histogram("y")
    assert counts.sum() == pytest.approx(BIG)
    assert counts.size <= 64
    exact = np.histogram(-values, edges)[0]
    assert np.abs(np.cumsum(counts) - np.cumsum(exact)).max() < 0.02 * BIG


def test_activations_stay_in_the_runtime(monkeypatch: pytest.MonkeyPatch) -> None:
    model, feeds = net(), images((1, 3, 100, 200))
    sizes: list[int] = []
    run = Session.run

    def measured(session: Session, *args: Any) -> dict[str, Any]:
        results = run(session, *args)
        sizes.extend(value.size for value in results.values())
        return results

    monkeypatch.setattr(Session, "run", measured)
    observer(model, feeds).observe(model, {name: [Histogram(), ChannelMean()] for name in "xcry"})
    assert len(sizes) == 4 * 6
    assert max(sizes) < 20_000 < 100 * 200 * 3


class Counted:
    """Feeds that count how often they are read."""

    def __init__(self, feeds: Sequence[Feeds]) -> None:
        self.feeds = feeds
        self.passes = 0

    def __len__(self) -> int:
        return len(self.feeds)

    def __iter__(self) -> Iterator[Feeds]:
        self.passes += 1
        return iter(self.feeds)


def counted(model: Model, feeds: Sequence[Feeds]) -> tuple[Observer, Callable[[], int]]:
    """Return an observer, and a function that tells how often it has read the samples since it was last asked."""
    source = Counted(feeds)
    samples = open_samples(source, model.interface)
    source.passes = 0

    def passes() -> int:
        count, source.passes = source.passes, 0
        return count

    return Observer(samples), passes


def test_nothing_is_run_twice() -> None:
    model, feeds = net(), images(*SHAPES)
    watcher, passes = counted(model, feeds)
    first = watcher.observe(model, {"c": STATISTICS, "x": [Range()]})
    assert passes() == 1
    second = watcher.observe(model.copy(), {"x": [], "c": [SecondMoment(), Range()]})
    assert passes() == 0
    assert first.range("x") == second.range("x")
    np.testing.assert_array_equal(first.second_moment("c"), second.second_moment("c"))
    third = watcher.observe(model, {"c": [Histogram(16), Histogram()], "r": []})
    assert passes() == 1
    assert third.range("c") == first.range("c")
    watcher.observe(model, {})
    assert passes() == 0


def test_one_run_serves_all() -> None:
    watcher, passes = counted(net(), images(*SHAPES))
    watcher.observe(net(), dict.fromkeys("xcry", STATISTICS))
    assert passes() == 1


def test_the_last_four_models_are_remembered() -> None:
    models = [net(opset) for opset in (13, 14, 15, 16, 17)]
    watcher, passes = counted(models[0], images(*SHAPES))
    for model in models[:4]:
        watcher.observe(model, {"c": []})
    assert passes() == 4
    watcher.observe(models[0], {"c": []})
    assert passes() == 0
    watcher.observe(models[4], {"c": []})  # the second is the one that was not used for longest
    watcher.observe(models[0], {"c": []})
    assert passes() == 1
    watcher.observe(models[1], {"c": []})
    assert passes() == 1


def test_names_of_probes_do_not_clash() -> None:
    model, feeds = net(), images(*SHAPES)
    for number, node in enumerate(model.graph.nodes[:2]):
        node.outputs[0].name = f"graphopt_probe_{number + 4}"
    names = [node.outputs[0].name for node in model.graph.nodes[:2]]
    found = observer(model, feeds).observe(model, {name: [] for name in names})
    for name, other in zip(names, "cr", strict=True):
        assert found.range(name) == observer(net(), feeds).observe(net(), {other: []}).range(other)


def test_a_failing_model_is_told() -> None:
    model = model_of(
        '<ir_version: 8, opset_import: ["" : 17]> g (float[n] x, int64[m] s) => (float[a, b] y) '
        "{ z = Abs(x)\ny = Reshape(z, s) }"
    )
    feeds = [{"x": np.zeros(4, F32), "s": np.array([3, 3])}]
    with pytest.raises(ModelError, match="Reshape"):
        observer(model, feeds).observe(model, {"y": []})
    assert observer(model, feeds).observe(model, {"z": []}).range("z") == (0, 0)  # what is not asked for is not run


sizes = st.tuples(st.integers(0, 2), st.just(3), st.integers(1, 4), st.just(5))


@given(st.lists(sizes, min_size=1, max_size=3), st.lists(sizes, min_size=1, max_size=3), st.booleans())
def test_observations_of_parts_add_up(first: list[Any], second: list[Any], bad: bool) -> None:
    feeds = images(*first, *second)
    if bad and feeds[-1]["x"].size:
        feeds[-1]["x"].flat[0] = np.nan
    model = net()

    def found(part: list[dict[str, np.ndarray]]) -> Observations:
        return observer(model, part).observe(model, dict.fromkeys("xr", EVERY))

    left, right = found(feeds[: len(first)]), found(feeds[len(first) :])
    merged, whole = left.merge(right), found(feeds)
    assert merged.samples == whole.samples
    for name in "xr":
        np.testing.assert_equal(merged.range(name), whole.range(name))
        assert merged.shape(name) == whole.shape(name)
        assert merged.elements(name) == whole.elements(name)
        assert merged.nonfinite(name) == whole.nonfinite(name)
        for one, other in zip(merged.histogram(name), whole.histogram(name), strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-12)
        for axis in (1, -1):
            np.testing.assert_allclose(merged.mean(name, axis), whole.mean(name, axis), rtol=1e-9)
        np.testing.assert_array_equal(merged.channel_range(name, -1), whole.channel_range(name, -1))
        np.testing.assert_allclose(merged.second_moment(name), whole.second_moment(name), rtol=1e-9)
    before = left.second_moment("x")
    left.merge(right)
    np.testing.assert_array_equal(left.second_moment("x"), before)  # merging leaves its parts alone


def test_different_observations_do_not_add_up() -> None:
    watcher = observer(net(), images(*SHAPES))
    one, other = (watcher.observe(net(), {"c": statistics}) for statistics in ([], [Histogram()]))
    with pytest.raises(ValueError, match=r"only one of the observations has Histogram\(bins=2048\) of tensor 'c'"):
        one.merge(other)


def test_what_lies_just_below_zero_is_below_zero() -> None:
    counts = Counts(2)
    counts.add(np.array([2.0**90, -(2.0**-60), -0.0], F32), 1)
    np.testing.assert_array_equal(counts.counts, [1, 2])


floats = st.floats(-(2.0**99), 2.0**99, width=32).map(lambda value: 0.0 if abs(value) < 2.0**-99 else value)


@given(st.lists(st.lists(floats, min_size=1, max_size=20), min_size=1, max_size=5), st.sampled_from([2, 16, 2048]))
def test_histograms_do_not_depend_on_the_order(batches: list[list[float]], bins: int) -> None:
    def counted(parts: list[list[float]]) -> Counts:
        counts = Counts(bins)
        for part in parts:
            counts.add(np.array(part, F32), 1)
        return counts

    flat = [value for batch in batches for value in batch]
    whole = counted([flat])
    width = np.diff(whole.edges())
    assert 1 <= whole.counts.size <= bins
    np.testing.assert_array_equal(whole.counts, np.histogram(np.array(flat, F32).astype(np.float64), whole.edges())[0])
    exact = math.frexp(max(map(abs, flat)))[1] - 24
    if whole.exponent > max(exact, -126):  # half as wide bins would not do
        ends = [math.floor(value / (width[0] / 2)) for value in (min(flat), max(flat))]
        assert ends[1] - ends[0] >= bins
    for other in (counted(batches), counted(batches[::-1]), counted(batches[:1]).merge(counted(batches[1:]))):
        assert (other.exponent, other.first) == (whole.exponent, whole.first)
        np.testing.assert_array_equal(other.counts, whole.counts)


def test_the_narrowest_bins_that_do() -> None:
    counts = Counts(2)
    counts.add(np.array([0, 1, 2], F32), 1)
    assert counts.edges().tolist() == [0, 2, 4]
    assert counts.counts.tolist() == [2, 1]


def test_bins_are_checked() -> None:
    for bins in (0, 1, 7, -2):
        with pytest.raises(ValueError, match=f"bins must be an even number of 2 or more, not {bins}"):
            Histogram(bins)


def test_progress_is_told() -> None:
    told: list[tuple[str, int | None]] = []

    class Noted:
        def track(self, items: Samples, what: str, total: int | None = None) -> Iterator[Any]:
            told.append((what, total))
            yield from items

    model, feeds = net(), images(*SHAPES)
    Observer(open_samples(feeds, model.interface), progress=Noted()).observe(model, {"c": []})  # type: ignore[arg-type]
    assert told == [("observe", 3)]
