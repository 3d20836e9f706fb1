"""What `graphopt inspect` tells: costs and times of nodes, looks of weights, sizes of inputs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from graphopt.cost import held_weights
from graphopt.errors import ModelError, UsageError
from graphopt.inspection import inspect_model
from graphopt.ir.graph import Constant
from graphopt.model import Model
from graphopt.runtime.trace import Execution, own_seconds, shapes_of_run, trace
from graphopt.samples.sized import sized
from graphopt.weightfacts import channel_axis, repeated_channels, weight_facts
from tests.helpers import parse
from tests.test_prune import model_of, random

CHAIN = """m (float[N,3,8,8] x) => (float[N,4,8,8] y) {
    c = Conv<pads=[1,1,1,1]>(x, w)  b = BatchNormalization(c, s, t, u, v)  y = Relu(b)
}"""
FOUR = {name: np.linspace(1, 2, 4).astype(np.float32) for name in "stuv"}
BRANCHES = """m (bool flag, float[N,4] x) => (float[N,4] y) {
    y = If(flag) <
        then_branch = a () => (float[N,4] p) { p = MatMul(x, w) },
        else_branch = b () => (float[N,4] q) { h = Tanh(x)  q = Add(h, x) }
    >
}"""


def saved(folder: Path, model: Model) -> Path:
    return Path(model.save(folder / "m.onnx").path)


def test_costs_and_looks_of_each_node(tmp_path: Path) -> None:
    weight = random(4, 3, 3, 3)
    weight[2] = weight[1]
    weight[3] = 0
    found = inspect_model(saved(tmp_path, model_of(CHAIN, w=weight, **FOUR)), ["N=2"])
    conv = found.nodes[0]
    assert (conv.op, conv.macs, conv.parameters, conv.nbytes) == ("Conv", 2 * 4 * 64 * 27, 108, 432)
    assert conv.weight is not None
    assert (conv.weight.zeros, conv.weight.channels, conv.weight.repeated) == (27, 4, 1)
    assert (conv.weight.low, conv.weight.high) == (weight.min(), weight.max())
    assert conv.weight.near_zero == np.count_nonzero(np.abs(weight) <= np.abs(weight).max() / 254)
    assert found.sizes == {"x": (2, 3, 8, 8)}
    assert found.total("macs") == found.figures.macs == conv.macs
    assert [node.op for node in found.largest("parameters")] == ["Conv", "BatchNormalization"]


def test_time_of_what_the_runtime_fuses_is_the_convolutions(tmp_path: Path) -> None:
    model = model_of(CHAIN, w=random(4, 3, 3, 3), **FOUR)
    found = inspect_model(saved(tmp_path, model))
    assert found.timing.seconds is not None
    assert [bool(node.seconds) for node in found.nodes] == [True, False, False]
    assert found.total("time") == pytest.approx(found.timing.seconds)
    assert all(node.name == "" for node in model.graph.nodes)  # marks are put on a copy


def test_time_of_bodies_is_not_their_node_s() -> None:
    model = model_of(BRANCHES, w=random(4, 4))

    def run(outer: float) -> list[Execution]:
        times = ((0, outer), (1, 2.0), (None, 0.5))
        return [Execution(node, "", seconds, (), ()) for node, seconds in times]

    own, added = own_seconds(model, [run(9.0), run(3.0), run(3.0), run(7.0)])
    assert own == [1.0, 2.0, 0.0, 0.0]  # the first run does not count
    assert added == 0.5


def test_shapes_of_a_run_reach_into_the_branch_that_ran() -> None:
    model = model_of(BRANCHES, w=random(4, 4))
    feeds = {"flag": np.array(False), "x": random(3, 4)}
    (executions,) = trace(model, feeds, optimize=False)
    assert shapes_of_run(model, executions) == {"y": (3, 4), "h": (3, 4), "q": (3, 4)}


def test_what_inference_cannot_tell_comes_from_a_run(tmp_path: Path) -> None:
    text = (
        "m (float[N,4] x) => (float[A,B] y) { n = NonZero(x)  r = Cast<to=1>(n)  t = Transpose(r)  y = MatMul(t, w) }"
    )
    path = saved(tmp_path, model_of(text, w=random(2, 3)))
    assert inspect_model(path, ["5,4"], run=False).nodes[-1].macs is None
    assert inspect_model(path, ["5,4"]).nodes[-1].macs == 20 * 2 * 3


def test_a_model_that_cannot_run_says_why(tmp_path: Path) -> None:
    proto = parse("m (float[N,4] x) => (float[N,4] y) { h = Relu(x)  y = my.domain.Odd(h) }")
    proto.opset_import.add(domain="my.domain", version=1)
    path = tmp_path / "m.onnx"
    onnx.save(proto, path)
    found = inspect_model(path)
    assert found.timing.seconds is None
    assert "Odd" in found.timing.reason
    assert found.operators == {"Relu": 1, "my.domain::Odd": 1}
    assert found.to_json()["timing"]["reason"] == found.timing.reason


def test_messages_name_the_nodes_as_the_model_does() -> None:
    model = model_of("m (float[N,4] x, int64[2] s) => (float[A,B] y) { y = Reshape(x, s) }")
    model.graph.nodes[0].name = "shaping"
    with pytest.raises(ModelError, match="shaping"):
        trace(model, {"x": random(3, 4), "s": np.array([5, 5])})


def test_constants_of_nodes_belong_to_who_reads_them() -> None:
    model = Model.from_proto(
        parse(
            """m (float[N,2] x) => (float[N,2] y, float[2] z) {
                w = Constant<value = float[2,2] {1, 2, 3, 4}>()  z = Constant<value = float[2] {1, 2}>()
                a = MatMul(x, w)  y = MatMul(a, w)
            }"""
        )
    )
    found = [(node.op, len(weights)) for node, weights in held_weights(model)]
    assert found == [("Constant", 0), ("Constant", 1), ("MatMul", 1), ("MatMul", 0)]
    node, (weight,) = list(held_weights(model))[2]
    assert channel_axis(node, weight) == 1


@pytest.mark.parametrize("dtype", [np.float16, np.float64, ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn])
def test_looks_of_float_types(dtype: Any) -> None:
    found = weight_facts(Constant("w", np.array([[0.0, -2.0], [1.0, 0.0]]).astype(dtype)), 0)
    assert found is not None
    assert (found.low, found.high, found.zeros, found.near_zero, found.repeated) == (-2, 1, 2, 2, 0)


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int64, np.bool_, ml_dtypes.int4])
def test_looks_of_integers(dtype: Any) -> None:
    found = weight_facts(Constant("w", np.array([[1, 0], [1, 0], [0, 0]]).astype(dtype)), 0)
    assert found is not None
    assert (found.low, found.high, found.zeros, found.near_zero, found.repeated) == (0, 1, 4, None, 1)


def test_looks_of_odd_weights() -> None:
    assert weight_facts(Constant("w", np.array(["a", "b"], object)), None) is None
    empty = weight_facts(Constant("w", np.zeros((0, 3), np.float32)), 1)
    assert empty is not None
    assert (empty.low, empty.zeros, empty.repeated) == (None, 0, 2)
    broken = weight_facts(Constant("w", np.array([np.nan, np.inf, 0], np.float32)), None)
    assert broken is not None
    assert (broken.low, broken.high, broken.zeros, broken.near_zero) == (None, None, 1, 1)


def test_repeated_channels_are_equal_in_every_bit() -> None:
    values = np.array([[0.0, 1.0], [-0.0, 1.0], [1.0, 0.0], [0.0, 1.0]], np.float32)
    assert repeated_channels(values, 0) == 1
    assert repeated_channels(values.T, 1) == 1
    assert repeated_channels(np.tile(random(5, 7), (3, 1)), 0) == 10


@pytest.mark.parametrize(
    ("texts", "shapes"),
    [
        (["N=2"], [(2, 3), (2, None)]),
        (["x=4,3", "y=4x7"], [(4, 3), (4, 7)]),
        ([], [("N", 3), ("N", None)]),
    ],
)
def test_sizes_of_inputs(texts: list[str], shapes: list[tuple[Any, ...]]) -> None:
    interface = model_of("m (float[N,3] x, float[N,?] y) => (float[N,3] z) { z = Mul(x, x) }").interface
    assert [spec.shape for spec in sized(interface, texts).inputs] == shapes


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("2,3", "does not say of which input"),
        ("x=2,4", "does not fit; the model takes \\[N, 3\\]"),
        ("x=2", "does not fit"),
        ("x=0,3", "is not like x=1,3,224,224"),
        ("x=a,3", "is not like"),
        ("M=2", "the model has inputs x, y and symbols N"),
        ("N=2,3", "the model has inputs"),
    ],
)
def test_sizes_that_do_not_fit(text: str, reason: str) -> None:
    interface = model_of("m (float[N,3] x, float[N,?] y) => (float[N,3] z) { z = Mul(x, x) }").interface
    with pytest.raises(UsageError, match=reason):
        sized(interface, [text])


def test_samples_may_be_given_instead_of_sizes(tmp_path: Path) -> None:
    path = saved(tmp_path, model_of(CHAIN, w=random(4, 3, 3, 3), **FOUR))
    np.savez(tmp_path / "s.npz", x=random(6, 3, 8, 8))
    assert inspect_model(path, data=str(tmp_path / "s.npz"), run=False).sizes["x"][1:] == (3, 8, 8)
    with pytest.raises(UsageError, match="exclude each other"):
        inspect_model(path, ["N=2"], data=str(tmp_path / "s.npz"))


def test_a_shared_weight_counts_where_it_is_used_first(tmp_path: Path) -> None:
    proto = parse("m (float[N,4] x) => (float[N,4] y) { h = MatMul(x, w)  y = MatMul(h, w) }")
    proto.graph.initializer.append(numpy_helper.from_array(random(4, 4), "w"))
    found = inspect_model(saved(tmp_path, Model.from_proto(proto)), run=False)
    assert [node.parameters for node in found.nodes] == [16, 0]
    assert len(found.weights) == 1
