"""Equalization: outputs that stay the same to the last bit, ranges that become alike, what is left alone and why."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from graphopt.base import PassReport
from graphopt.context import Context
from graphopt.evaluate import Evaluator
from graphopt.ir.graph import Constant
from graphopt.model import Model
from graphopt.passes.equalize import Equalize
from graphopt.passes.equalize.bounds import channel_bounds
from graphopt.passes.equalize.ends import along, in_groups
from graphopt.passes.equalize.scales import exponents
from graphopt.passes.equalize.spaces import find_spaces
from graphopt.samples import Samples, open_samples
from graphopt.shapes import infer_shapes
from graphopt.targets import get_target
from tests.helpers import outputs_of, parse, random_feeds

BLOCK = """
agraph (float[N, 3, 6, 6] x, float[8, 3, 3, 3] a, float[8] ab, float[8, 1, 3, 3] d, float[8] db, float[4, 8, 1, 1] p,
        float[4] pb, float[8, 4, 1, 1] e, float[8] eb, float[4, 8, 1, 1] q, float[6, 4, 1, 1] h)
  => (float[N, C, H, W] y) {
  a1 = Conv<pads = [1, 1, 1, 1]>(x, a, ab)
  a2 = Relu(a1)
  d1 = Conv<group = 8, pads = [1, 1, 1, 1]>(a2, d, db)
  d2 = LeakyRelu(d1)
  stream = Conv(d2, p, pb)
  e1 = Conv(stream, e, eb)
  e2 = Relu(e1)
  q1 = Conv(e2, q)
  sum = Add(stream, q1)
  pooled = MaxPool<kernel_shape = [2, 2]>(sum)
  y = Conv(pooled, h)
}
"""  # a -> d, d -> p, e -> q, and the stream: p and q -> e and h

ATTENTION = """
agraph (float[N, T, 8] x, float[8] g, float[8] b, float[8, 8] q, float[8, 8] k, float[8, 8] v, float[8] vb,
        float[8, 8] o)
  => (float[N, T, C] y)
<int64[4] split = {0, 0, 2, 4}, int64[3] join = {0, 0, 8}>
{
  n = LayerNormalization(x, g, b)
  qq = MatMul(n, q)
  kk = MatMul(n, k)
  vp = MatMul(n, v)
  vv = Add(vp, vb)
  q4 = Reshape(qq, split)
  k4 = Reshape(kk, split)
  v4 = Reshape(vv, split)
  qt = Transpose<perm = [0, 2, 1, 3]>(q4)
  kt = Transpose<perm = [0, 2, 3, 1]>(k4)
  vt = Transpose<perm = [0, 2, 1, 3]>(v4)
  s = MatMul(qt, kt)
  w = Softmax(s)
  c = MatMul(w, vt)
  ct = Transpose<perm = [0, 2, 1, 3]>(c)
  cj = Reshape(ct, join)
  y = MatMul(cj, o)
}
"""  # the scale and bias of the norm -> q, k and v; v -> o

PAIR = """agraph (float[N, 4] x, float[4, 6] a, float[6, 5] c) => (float[N, 5] y)
{ h = MatMul(x, a) y = MatMul(h, c) }"""


def weighted(source: str, *, seed: int = 0, dtype: type = np.float32) -> onnx.ModelProto:
    """Return a model whose inputs but for x are weights, with channels of very different ranges."""
    proto = parse(source)
    rng = np.random.default_rng(seed)
    kept = [item for item in proto.graph.input if item.name == "x" or not item.type.tensor_type.shape.dim]
    for item in proto.graph.input:
        if item in kept:
            continue
        shape = [size.dim_value for size in item.type.tensor_type.shape.dim]
        values = rng.standard_normal(shape) * np.exp2(rng.uniform(-4, 4, shape[:1] + [1] * (len(shape) - 1)))
        proto.graph.initializer.append(numpy_helper.from_array(values.astype(dtype), item.name))
    del proto.graph.input[:]
    proto.graph.input.extend(kept)
    return proto


def equalized(
    proto: onnx.ModelProto, samples: Samples | None = None, **options: object
) -> tuple[onnx.ModelProto, PassReport]:
    """Return the model after the pass, and its report."""
    model = Model.from_proto(proto)
    infer_shapes(model)
    target = get_target("cpu-avx2")
    context = Context(target, Evaluator(model, target, samples=samples), samples)
    report = Equalize(**options).run(model, context)  # type: ignore[arg-type]
    return model.to_proto(), report


def weights_of(proto: onnx.ModelProto) -> dict[str, np.ndarray]:
    """Return the initializers by name."""
    return {item.name: numpy_helper.to_array(item) for item in proto.graph.initializer}


def assert_same_bits(before: onnx.ModelProto, after: onnx.ModelProto) -> None:
    """Fail unless both give exactly the same; the values are such that no product is subnormal."""
    feeds = random_feeds(before, seed=1, sizes={"N": 2, "T": 3})
    wanted, found = outputs_of(before, feeds), outputs_of(after, feeds)
    for name, value in wanted.items():
        assert np.isfinite(value).all()
        assert value.any()
        np.testing.assert_array_equal(found[name], value)


def reach(values: np.ndarray, axis: int) -> np.ndarray:
    """Return the largest magnitude of each slice of an axis."""
    return np.asarray(np.abs(np.moveaxis(values, axis, 0)).reshape(values.shape[axis], -1).max(axis=1))


@pytest.mark.parametrize(
    ("source", "spaces"),
    [
        pytest.param(BLOCK, 4, id="convolutions and a residual stream"),
        pytest.param(ATTENTION, 2, id="norm and attention"),
        pytest.param(
            """agraph (float[N, 4] x, float[6, 4] a, float[6] b, float[6, 5] c) => (float[N, C] y)
            { h = Gemm<transB = 1>(x, a, b) r = Relu(h) y = Gemm(r, c) }""",
            1,
            id="Gemm of either orientation",
        ),
        pytest.param(
            """agraph (float[N, 4, 5, 5] x, float[4, 3, 2, 2] a, float[6] b, float[6, 2, 1, 1] c)
              => (float[N, C, H, W] y)
            { h = ConvTranspose<group = 2>(x, a, b) r = Relu(h) y = ConvTranspose<group = 3>(r, c) }""",
            1,
            id="ConvTranspose in groups",
        ),
        pytest.param(
            """agraph (float[N, 4, 5, 5] x, float[6, 2, 2, 2] a, float[6] b, float[4, 3, 1, 1] c)
              => (float[N, C, H, W] y)
            { h = Conv<group = 2>(x, a, b) r = Relu(h) y = Conv<group = 2>(r, c) }""",
            1,
            id="Conv in groups",
        ),
        pytest.param(
            """agraph (float[N, T, 4] x, float[4, 6] g, float[4, 6] u, float[6, 4] d) => (float[N, C, H] y)
            { a = MatMul(x, g) s = Sigmoid(a) z = Mul(a, s) b = MatMul(x, u) m = Mul(z, b) y = MatMul(m, d) }""",
            1,
            id="gated MLP: only the product's linear side is scaled",
        ),
        pytest.param(
            """agraph (float[N, T, 4] x, float[4] g, float[4] b, float[4, 5] m) => (float[N, C, H] y)
            { n = Tanh(x) s = Mul(n, g) t = Add(s, b) y = MatMul(t, m) }""",
            1,
            id="scale and bias of a norm in pieces",
        ),
        pytest.param(
            """agraph (float[N, 4, 5, 5] x, float[6, 4, 3, 3] a, float[6, 5] c) => (float[N, C] y)
            { h = Conv(x, a) r = GlobalAveragePool(h) f = Flatten(r) y = Gemm(f, c) }""",
            1,
            id="pool and Flatten",
        ),
        pytest.param(
            """agraph (float[N, 4, 5, 5] x, float[6] s, float[6] b, float[6] m, float[6, 4, 3, 3] a,
              float[2, 6, 1, 1] c) => (float[N, C, H, W] y) <float[6] v = {1, 2, 3, 4, 5, 6}>
            { h = Conv(x, a) n = BatchNormalization(h, s, b, m, v) r = Relu(n) y = Conv(r, c) }""",
            1,
            id="BatchNormalization makes channels and does not pass them on",
        ),
        pytest.param(
            """agraph (float[N, 4, 5, 5] x, float[6, 4, 3, 3] a, float[6, 1, 1] slope, float[5, 6] c) => (float[N, C] y)
            <int64[2] over = {2, 3}>
            { h = Conv(x, a) r = PRelu(h, slope) m = ReduceMean<keepdims = 0>(r, over) t = Transpose(c)
              y = MatMul(m, t) }""",
            0,
            id="a weight behind a Transpose is not known",
        ),
        pytest.param(
            """agraph (float[N, 4, 5, 5] x, float[6, 4, 3, 3] a, float[6, 1, 1] slope, float[6, 5] c) => (float[N, C] y)
            <int64[2] over = {2, 3}>
            { h = Conv(x, a) r = PRelu(h, slope) m = ReduceMean<keepdims = 0>(r, over) y = MatMul(m, c) }""",
            1,
            id="PRelu and a mean over positions",
        ),
    ],
)
def test_outputs_keep_every_bit(source: str, spaces: int) -> None:
    before = weighted(source)
    after, report = equalized(before)
    assert report.changed == spaces
    assert (weights_of(before).keys() == weights_of(after).keys()) or not spaces
    if spaces:
        assert_same_bits(before, after)
    assert equalized(after)[1].changed == 0


def test_cle_makes_both_sides_reach_alike() -> None:
    before = weighted(BLOCK)
    found = weights_of(equalized(before)[0])
    first, last = reach(found["e"], 0), reach(found["q"], 1)
    assert (np.abs(np.log2(first / last)) <= 1).all()  # powers of two: a factor of two from equal at the most
    unequal = weights_of(before)
    assert (np.abs(np.log2(reach(unequal["e"], 0) / reach(unequal["q"], 1))) > 2).any()


def test_a_residual_stream_is_scaled_as_one() -> None:
    before = weighted(BLOCK)
    first, last = weights_of(before), weights_of(equalized(before)[0])
    # Both that write to it are divided by what both that read it are multiplied with. Other spaces scale the rows of e
    # and the columns of p and q, as wholes.
    written = [np.log2(reach(last[name], 0) / reach(first[name], 0)) for name in ("pb", "h")]
    assert written[0].any()
    read = np.log2(reach(last["h"], 1) / reach(first["h"], 1))
    np.testing.assert_array_equal(read, -written[0])


def test_smooth_evens_out_activations() -> None:
    source = """agraph (float[N, 6] x, float[6] g, float[6] b, float[6, 5] m) => (float[N, C] y)
    { n = LayerNormalization(x, g, b) y = MatMul(n, m) }"""
    before = weighted(source)
    outlier = np.array([1, 1, 64, 1, 1, 1], np.float32)
    for item in before.graph.initializer:
        values = {"g": outlier, "b": np.zeros(6, np.float32), "m": np.ones((6, 5), np.float32)}[item.name]
        item.CopyFrom(numpy_helper.from_array(values, item.name))
    drawn = np.random.default_rng(0).standard_normal((16, 2, 6)).astype(np.float32)
    samples = open_samples({"x": drawn}, Model.from_proto(before).interface)
    after, report = equalized(before, samples)
    assert report.changed == 1
    found = weights_of(after)
    moved = found["m"][2, 0] / found["m"][0, 0]
    assert moved in (4, 8, 16)  # about the square root of 64 goes to the weight
    assert found["g"][2] / found["g"][0] == 64 / moved
    assert_same_bits(before, after)
    assert equalized(after, samples)[1].changed == 0
    whole, _ = equalized(before, samples, share=0.999)
    assert weights_of(whole)["g"][2] / weights_of(whole)["g"][0] in (0.5, 1, 2)


UNCHANGED = {
    "graph output": """agraph (float[N, 4] x, float[4, 6] a, float[6, 5] c) => (float[N, 6] h, float[N, 5] y)
        { h = MatMul(x, a) r = Relu(h) y = MatMul(r, c) }""",
    "Clip reads it, which may act on every channel": """agraph (float[N, 4] x, float[4, 6] a, float[6, 5] c)
        => (float[N, 5] y)
        <float low = {0}, float high = {6}>
        { h = MatMul(x, a) r = Clip(h, low, high) y = MatMul(r, c) z = MatMul(h, c) }""",
    "something else uses a too": """agraph (float[N, 4] x, float[4, 4] a, float[4, 5] c) => (float[N, 5] y)
        { g = MatMul(x, a) t = Tanh(g) h = MatMul(t, a) r = Relu(h) y = MatMul(r, c) }""",
    "something else uses c too": """agraph (float[N, 4] x, float[4, 6] a, float[6, 5] c)
        => (float[N, 5] y, float[5, 6] t)
        { h = MatMul(x, a) r = Relu(h) y = MatMul(r, c) t = Transpose(c) }""",
    "a body reads it": """agraph (float[N, 4] x, float[4, 6] a, float[6, 5] c) => (float[N, 5] y, float[N, 6] z)
        <bool yes = {1}>
        { h = MatMul(x, a) r = Relu(h) y = MatMul(r, c)
          z = If(yes) <then_branch = g () => (float[N, 6] p) { p = Neg(r) },
                       else_branch = k () => (float[N, 6] q) { q = Abs(r) }> }""",
    "its channels are not those that the weight reads": """agraph (float[N, 6, 4] x, float[4, 6] a, float[5, 6, 1] c)
        => (float[N, 5, 6] y) { h = MatMul(x, a) y = Conv(h, c) }""",
    "MaxPool reads it": """agraph (float[N, 6, 4] x, float[4, 6] a, float[3, 5] c,
        float[6, 5] d) => (float[N, 6, 5] y, float[N, 6, 5] z)
        { h = MatMul(x, a) p = MaxPool<kernel_shape = [2], strides = [2]>(h) y = MatMul(p, c) z = MatMul(h, d) }""",
    "Softmax reads it": """agraph (float[N, 4] x, float[4, 6] a, float[6, 5] c) => (float[N, 5] y, float[N, 6] z)
        { h = MatMul(x, a) y = MatMul(h, c) z = Softmax(h) }""",
    "Add reads it": """agraph (float[N, 6] x, float[6, 6] a, float[6, 5] c) => (float[N, 5] y)
        { h = MatMul(x, a) s = Add(h, x) y = MatMul(s, c) z = MatMul(h, c) }""",
}


CLIPPED = """
agraph (float[N, 2, 4, 4] x, float[4, 2, 1, 1] a, float[4, 1, 1, 1] d, float[4] b, float[3, 4, 1, 1] c)
  => (float[N, 3, 4, 4] y) <float low = {0}, float high = {6}>
{ h = Conv(x, a) r = Clip(h, low, high) e = Conv<group = 4>(r, d, b) s = Clip(e, low, high) y = Conv(s, c) }
"""


def clipped(d: list[float], c: list[float]) -> onnx.ModelProto:
    """Return a model with a depthwise layer between two Clips, whose inputs are large enough for the first to act."""
    proto = weighted(CLIPPED)
    wanted = {"a": np.full((4, 2, 1, 1), 100), "d": np.reshape(d, (4, 1, 1, 1)), "b": np.zeros(4)}
    wanted["c"] = np.tile(np.reshape(c, (1, 4, 1, 1)), (3, 1, 1, 1))
    for item in proto.graph.initializer:
        if item.name in wanted:
            item.CopyFrom(numpy_helper.from_array(wanted[item.name].astype(np.float32), item.name))
    return proto


def test_a_clip_lets_channels_pass_that_never_reach_its_end() -> None:
    before = clipped([0.01, 0.4, 1.5, -1], [16, 16, 16, 16])
    after, report = equalized(before)
    assert report.changed == 1
    assert_same_bits(before, after)
    grown = weights_of(after)["d"].ravel() / weights_of(before)["d"].ravel()
    # 0.01 and 16 meet at 0.4. 0.4 would grow more than once, but 2.4 twice doubled exceeds 6. What may exceed 6 as it
    # is stays. The last is never above 0.
    np.testing.assert_array_equal(grown, [32, 2, 1, 4])
    assert equalized(after)[1].changed == 0


def test_bounds_are_those_of_the_worst_inputs() -> None:
    model = Model.from_proto(clipped([1, 0.5, -2, 0], [1, 1, 1, 1]))
    infer_shapes(model)
    names = {id(tensor): tensor.name for node in model.graph.nodes for tensor in node.outputs}
    found = {names[key]: value for key, value in channel_bounds(model.graph).items()}
    assert found.keys() == {"r", "e", "s", "y"}  # nothing is known of h: x may be anything
    np.testing.assert_allclose(found["e"], [[0, 0, -12, 0], [6, 3, 0, 0]], atol=1e-3)
    np.testing.assert_allclose(found["s"], [[0, 0, 0, 0], [6, 3, 0, 0]], atol=1e-3)
    np.testing.assert_allclose(found["y"], [[0] * 3, [9] * 3], atol=1e-3)


@pytest.mark.parametrize("reason", UNCHANGED)
def test_what_cannot_be_scaled_stays_and_is_told(reason: str) -> None:
    before = weighted(UNCHANGED[reason])
    after, report = equalized(before)
    assert report.changed == 0
    assert weights_of(after).keys() == weights_of(before).keys()
    for name, values in weights_of(before).items():
        np.testing.assert_array_equal(weights_of(after)[name], values)
    assert any(reason in skip.reason for skip in report.skipped), report.skipped


def test_a_weight_that_a_caller_may_override_stays() -> None:
    before = weighted(
        "agraph (float[N, 4] x, float[4, 6] a, float[6, 5] c) => (float[N, 5] y) { h = MatMul(x, a) y = MatMul(h, c) }"
    )
    assert equalized(before)[1].changed == 1
    before.graph.input.append(onnx.helper.make_tensor_value_info("c", onnx.TensorProto.FLOAT, [6, 5]))
    assert equalized(before)[1].changed == 0


def test_a_branch_of_a_function_stays() -> None:
    before = weighted(
        "agraph (float[N, 4] x, float[4, 6] a, float[6, 5] c) => (float[N, 5] y) { h = MatMul(x, a) y = MatMul(h, c) }"
    )
    before.graph.node[1].op_type, before.graph.node[1].domain = "Product", "local"
    before.opset_import.append(onnx.helper.make_opsetid("local", 1))
    inner = [onnx.helper.make_node("MatMul", ["p", "q"], ["r"])]
    opset = [onnx.helper.make_opsetid("", before.opset_import[0].version)]
    before.functions.append(onnx.helper.make_function("local", "Product", ["p", "q"], ["r"], inner, opset))
    assert equalized(before)[1].changed == 0


def test_half_precision_loses_nothing() -> None:
    before = weighted(PAIR.replace("float[", "float16["), dtype=np.float16)
    after, report = equalized(before)
    assert report.changed == 1
    assert_same_bits(before, after)
    # A channel that would leave the range of half precision stays.
    weights = {"a": np.ones((4, 6), np.float16), "c": np.ones((6, 5), np.float16)}
    weights["a"][:, 2], weights["c"][2] = 60000, 2.0**-24
    weights["a"][:, 3] = 16
    for item in before.graph.initializer:
        item.CopyFrom(numpy_helper.from_array(weights[item.name], item.name))
    found = weights_of(equalized(before)[0])
    assert found["a"][0, 2] < 60000
    np.testing.assert_array_equal(found["a"][:, 3], 4)
    weights["a"][0, 2] = 2.0**-24  # has no bits to lose
    for item in before.graph.initializer:
        item.CopyFrom(numpy_helper.from_array(weights[item.name], item.name))
    found = weights_of(equalized(before)[0])
    np.testing.assert_array_equal(found["a"][:, 2], weights["a"][:, 2])


def test_channels_of_zeros_stay() -> None:
    found = exponents([np.array([0.0, 4.0, 8.0])], [np.array([1.0, 0.0, 0.125])])
    np.testing.assert_array_equal(found, [0, 0, 3])


def test_exponents_settle_at_once() -> None:
    rng = np.random.default_rng(0)
    before, behind = [np.exp(rng.normal(0, 3, 64)) for _ in range(2)], [np.exp(rng.normal(0, 3, 64))]
    for share in (0.3, 0.5, 0.8):
        found = exponents(before, behind, share)
        again = exponents(
            [np.ldexp(item, -found) for item in before], [np.ldexp(item, found) for item in behind], share
        )
        assert found.any()
        assert not again.any()


def test_tensors_without_elements() -> None:
    source = (
        "agraph (float[0, 4] x, float[4, 6] a, float[6, 5] c) => (float[0, 5] y) { h = MatMul(x, a) y = MatMul(h, c) }"
    )
    assert equalized(weighted(source))[1].changed == 1
    empty = weighted(source.replace("6]", "0]").replace("[6", "[0"))
    assert equalized(empty)[1].changed == 0


def test_samples_decide_only_where_a_scale_makes_the_channels() -> None:
    for source, decides in ((PAIR, False), (ATTENTION, True)):
        before = weighted(source)
        interface = Model.from_proto(before).interface
        shape = (4, 2, 3, 8) if decides else (4, 2, 4)
        samples = open_samples({"x": np.random.default_rng(0).standard_normal(shape).astype(np.float32)}, interface)
        assert (equalized(before, samples)[0] != equalized(before, method="cle")[0]) is decides


def test_smooth_without_samples_says_so() -> None:
    _, report = equalized(weighted(BLOCK), method="smooth")
    assert report.changed == 0
    assert "needs samples" in report.notes[0]


def test_samples_that_are_not_finite_are_left_out() -> None:
    before = weighted(
        "agraph (float[N, 4] x, float[4, 6] a, float[6, 5] c) => (float[N, 5] y) { h = MatMul(x, a) y = MatMul(h, c) }"
    )
    interface = Model.from_proto(before).interface
    drawn = np.random.default_rng(0).standard_normal((4, 2, 4)).astype(np.float32)
    broken = np.concatenate([drawn, np.full((1, 2, 4), np.nan, np.float32)])
    first, second = (
        equalized(before, open_samples({"x": item}, interface), method="smooth")[0] for item in (drawn, broken)
    )
    assert first == second


def test_an_end_counts_channels_where_they_lie() -> None:
    values = np.arange(24, dtype=np.float32).reshape(6, 2, 2)
    end = in_groups(Constant("w", values), 3)  # two rows a group, each reading two channels of its own
    np.testing.assert_array_equal(end.extent(), [5, 7, 13, 15, 21, 23])
    scaled = end.scaled(np.arange(6))
    np.testing.assert_array_equal(scaled[4:, 1], values[4:, 1] * 32)
    np.testing.assert_array_equal(along(Constant("w", values), -1).extent(), [22, 23])


@pytest.mark.parametrize("share", [0, 1, -0.5])
def test_a_share_is_between_zero_and_one(share: float) -> None:
    with pytest.raises(ValueError, match="between 0 and 1"):
        Equalize(share=share)


def test_spaces_name_what_they_are() -> None:
    model = Model.from_proto(weighted(BLOCK))
    infer_shapes(model)
    spaces, _ = find_spaces(model)
    assert [(space.name, len(space.makers), len(space.readers)) for space in spaces] == [
        ("a1", 2, 1),
        ("d1", 2, 1),
        ("stream", 3, 2),
        ("e1", 2, 1),
    ]
