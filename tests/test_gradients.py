"""Gradients that a graph computes agree with differences of what it gives."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_graphsurgeon as gs
import pytest

from graphopt.errors import ModelError
from graphopt.gradients import add_gradients
from graphopt.gradients.tape import Tape
from graphopt.ir.graph import constants
from graphopt.model import Model
from graphopt.runtime.session import open_session
from graphopt.samples import Feeds, random_samples
from graphopt.shapes import infer_shapes, shapes_for
from tests.test_prune import model_of, random

STEP = 2e-3
CASES: dict[str, tuple[str, str, str, dict[str, tuple[int, ...]]]] = {
    "pointwise": ("float[1,4,5,5] x", "float[1,6,5,5] y", "y = Conv(x, w, b)", {"w": (6, 4, 1, 1), "b": (6,)}),
    "kernel": ("float[2,3,7,6] x", "float[2,4,7,6] y", "y = Conv<pads=[1,1,1,1]>(x, w)", {"w": (4, 3, 3, 3)}),
    "strided": (
        "float[1,3,8,7] x",
        "float[1,4,4,4] y",
        "y = Conv<pads=[1,1,1,1], strides=[2,2]>(x, w, b)",
        {"w": (4, 3, 3, 3), "b": (4,)},
    ),
    "dilated": ("float[1,3,9] x", "float[1,4,7] y", "y = Conv<pads=[1,1], dilations=[2]>(x, w)", {"w": (4, 3, 3)}),
    "depthwise": (
        "float[2,4,7,7] x",
        "float[2,4,7,7] y",
        "y = Conv<pads=[2,2,2,2], group=4>(x, w, b)",
        {"w": (4, 1, 5, 5), "b": (4,)},
    ),
    "depthwise strided": (
        "float[2,4,8,8] x",
        "float[2,4,4,4] y",
        "y = Conv<pads=[0,0,1,1], strides=[2,2], group=4>(x, w)",
        {"w": (4, 1, 3, 3)},
    ),
    "gemm": ("float[3,5] x", "float[3,4] y", "y = Gemm<transB=1>(x, w, b)", {"w": (4, 5), "b": (4,)}),
    "gemm as stored": ("float[3,5] x", "float[3,4] y", "y = Gemm(x, w)", {"w": (5, 4)}),
    "product": ("float[2,3,5] x", "float[2,3,4] y", "y = MatMul(x, w)", {"w": (5, 4)}),
    "added": ("float[2,3,5] x", "float[2,3,5] y", "y = Add(x, w)", {"w": (3, 1)}),
    "subtracted": ("float[2,3,5] x", "float[2,3,5] y", "y = Sub(x, w)", {"w": (5,)}),
    "multiplied": ("float[2,3,5] x", "float[2,3,5] y", "y = Mul(x, w)", {"w": (1, 3, 1)}),
    "normalized": ("float[3,6] x", "float[3,6] y", "y = LayerNormalization(x, w, b)", {"w": (6,), "b": (6,)}),
}
# Each function is read behind a product, so that its own slope counts.
FUNCTIONS = {
    "Relu": "y = Relu(a)",
    "Clip": "y = Clip(a, low, high)",
    "Sigmoid": "y = Sigmoid(a)",
    "HardSigmoid": "y = HardSigmoid(a)",
    "HardSwish": "y = HardSwish(a)",
    "Tanh": "y = Tanh(a)",
    "Erf": "y = Erf(a)",
    "Gelu": "y = Gelu(a)",
    "Gelu by tanh": 'y = Gelu<approximate="tanh">(a)',
    "Slice": "b = Tanh(a)  c = Slice(b, one_axis, six, one_axis)  d = MatMul(c, v3)  y = Add(d, a)",
    "Exp": "y = Exp(a)",
    "Neg": "y = Neg(a)",
    "Sqrt": "e = Exp(a)  y = Sqrt(e)",
    "Reciprocal": "e = Exp(a)  y = Reciprocal(e)",
    "Div": "e = Exp(a)  y = Div(a, e)",
    "Pow": "y = Pow(a, two)",
    "Softmax": "y = Softmax(a)",
    "Reshape": "b = Reshape(a, six)  c = Tanh(b)  y = Reshape(c, back)",
    "Transpose": "b = Transpose(a)  c = Softmax(b)  y = Transpose(c)",
    "Concat": "b = Tanh(a)  c = Concat<axis=1>(b, a, x)  y = MatMul(c, v)",
    "Gather": "b = Reshape(a, planes)  c = Gather(b, zero)  d = Gather<axis=0>(b, one)  e = Mul(c, d)  y = Add(e, a)",
    "ReduceMean": "b = ReduceMean<keepdims=0>(a, one_axis)  c = Tanh(b)  d = Unsqueeze(c, one_axis)  y = Mul(a, d)",
    "ReduceSum": "b = ReduceSum(a, one_axis)  y = Mul(a, b)",
    "MaxPool": "b = Reshape(a, p)  c = MaxPool<kernel_shape=[3], strides=[3]>(b)  d = Squeeze(c, i)  y = Mul(a, d)",
    "ReduceMax": "b = ReduceMax(a, one_axis)  y = Mul(a, b)",
    "ReduceL2": "b = ReduceL2<keepdims=0>(a, one_axis)  c = Unsqueeze(b, one_axis)  y = Mul(a, c)",
    "Max": "b = Max(a, low)  y = Min(b, high)",
    "residual": "b = Tanh(a)  c = MatMul(b, v2)  y = Add(c, a)",
    "two products": "b = Transpose(a)  c = MatMul(a, b)  y = MatMul(c, a)",
}
HELD = {
    "low": np.array(-0.5, np.float32),
    "high": np.array(0.5, np.float32),
    "two": np.array(2, np.float32),
    "six": np.array([6]),
    "back": np.array([2, 3]),
    "planes": np.array([2, 1, 3]),
    "p": np.array([2, 1, 3]),
    "i": np.array([1]),
    "zero": np.array(0),
    "one": np.array(1),
    "one_axis": np.array([1]),
    "v": random(11, 3, seed=7),
    "v3": random(2, 3, seed=10),
    "v2": random(3, 3, seed=8),
}


def check(model: Model, names: tuple[str, ...]) -> None:
    """Compare the gradients of ``sum r y`` with differences; r is the first output, held fixed."""
    infer_shapes(model)
    feeds = next(iter(random_samples(model.interface, count=1)))
    with open_session(model) as session:
        aim = session.run(feeds)["y"]
    weights = [item for item in constants(model.graph) if item.name in names]
    probe = model.copy()
    held = [item for item in constants(probe.graph) if item.name in names]
    tape = Tape(probe.graph, shapes_for(probe, feeds))
    found = add_gradients(tape, [(probe.graph.outputs[0], tape.const(aim))], held)
    assert set(found.of) == set(names)
    probe.graph.outputs = list(found.of.values())
    for tensor in probe.graph.outputs:
        tensor.dtype = np.float32
    with open_session(probe) as session:
        gradients: Mapping[str, np.ndarray] = session.run(feeds)
    rng = np.random.default_rng(3)
    for weight in weights:
        way = rng.standard_normal(weight.shape).astype(np.float32)
        wanted = _slope(model, weight, way, aim, feeds)
        gradient = gradients[found.of[weight.name].name]
        assert gradient.shape == tuple(weight.shape)
        assert np.vdot(gradient, way) == pytest.approx(wanted, rel=2e-2, abs=2e-2 * float(np.abs(gradient).max()))


def _slope(model: Model, weight: gs.Constant, way: np.ndarray, aim: np.ndarray, feeds: Feeds) -> float:
    values, ends = weight.values, []
    for sign in (1, -1):
        weight.values = values + np.float32(sign * STEP) * way
        with open_session(model) as session:
            ends.append(float(np.vdot(session.run(feeds)["y"].astype(np.float64), aim)))
    weight.values = values
    return (ends[0] - ends[1]) / (2 * STEP)


@pytest.mark.parametrize("case", CASES)
def test_gradients_of_linear_operators(case: str) -> None:
    """Of weights and biases, with strides, pads, dilations, groups and broadcasting."""
    given, gives, body, shapes = CASES[case]
    weights = {name: random(*shape, seed=seed) for seed, (name, shape) in enumerate(shapes.items())}
    check(model_of(f"m ({given}) => ({gives}) {{ {body} }}", **weights), tuple(shapes))
    # behind another layer, so that the way through the operator counts as well
    size = int(given.split("[")[1].split(",")[-1].split("]")[0])
    inner = body.replace("x", "s")
    text = f"m ({given}) => ({gives}) {{ s = MatMul(x, before)  {inner} }}"
    check(model_of(text, **weights, before=random(size, size, seed=9)), ("before", *shapes))


@pytest.mark.parametrize("function", FUNCTIONS)
def test_gradients_through_functions(function: str) -> None:
    """Of what lies before them."""
    body = FUNCTIONS[function]
    held = {name: value for name, value in HELD.items() if name in body.replace(",", " ").replace(")", " ").split()}
    w = 0.4 * random(5, 3, seed=1)
    check(model_of(f"m (float[2,5] x) => (float[2,3] y) {{ a = MatMul(x, w)  {body} }}", w=w, **held), ("w",))


MEANS = "AveragePool<kernel_shape=[3,2], strides=[3,2]>"
PADDED = "AveragePool<kernel_shape=[3,3], strides=[2,2], pads=[1,1,0,1], count_include_pad=1>"
DOUBLED = 'Resize<mode="nearest", coordinate_transformation_mode="asymmetric", nearest_mode="floor">'
ROUNDED = 'Resize<mode="nearest", coordinate_transformation_mode="half_pixel">'


@pytest.mark.parametrize(
    ("operator", "size", "known"),
    [
        (f"{MEANS}(a)", (2, 3), True),  # one column is read by no window
        (f"{PADDED}(a)", (3, 4), True),
        (f"{DOUBLED}(a, , twice)", (14, 21), True),
        (f"{ROUNDED}(a, , twice)", (14, 21), True),
        ("AveragePool<kernel_shape=[3,3], pads=[1,1,1,1]>(a)", (7, 7), False),
        ("AveragePool<kernel_shape=[3,2], strides=[3,2], ceil_mode=1>(a)", (3, 4), False),
        ('AveragePool<kernel_shape=[2,2], auto_pad="SAME_UPPER">(a)', (7, 7), False),
        (f"{DOUBLED}(a, , half)", (3, 7), False),
        ('Resize<mode="linear">(a, , twice)', (14, 21), False),
        ('Resize<mode="nearest", nearest_mode="floor">(a, , twice)', (14, 21), False),
    ],
)
def test_gradients_through_pictures_of_other_sizes(operator: str, size: tuple[int, int], known: bool) -> None:
    """Means of windows and repeated positions; what no rule tells is named."""
    text = f"""m (float[2,3,7,7] x) => (float[2,4,{size[0]},{size[1]}] y) {{
        a = Conv(x, w)  b = {operator}  c = Tanh(b)  y = Conv(c, v)
    }}"""
    scales = {"twice": np.array([1, 1, 2, 3], np.float32), "half": np.array([1, 1, 0.5, 1], np.float32)}
    held = {name: value for name, value in scales.items() if name in operator}
    model = model_of(text, w=random(3, 3, 1, 1), v=random(4, 3, 1, 1, seed=1), **held)
    if known:
        check(model, ("w", "v"))
        return
    infer_shapes(model)
    tape = Tape(model.graph, shapes_for(model, {"x": random(2, 3, 7, 7)}))
    output = model.graph.outputs[0]
    found = add_gradients(tape, [(output, output)], [item for item in constants(model.graph) if item.name in "wv"])
    assert set(found.of) == {"v"}
    assert found.stops


def test_nothing_is_said_of_what_lies_before_an_unknown_operator() -> None:
    """The other way to the outputs would tell half of the truth."""
    text = "m (float[2,5] x) => (float[2,3] y) { a = MatMul(x, w)  b = Ceil(a)  c = Mul(a, b)  y = MatMul(c, v2) }"
    model = model_of(text, w=random(5, 3), v2=random(3, 3))
    infer_shapes(model)
    feeds = next(iter(random_samples(model.interface, count=1)))
    tape = Tape(model.graph, shapes_for(model, feeds))
    output = model.graph.outputs[0]
    weights = [item for item in constants(model.graph) if item.name in ("w", "v2")]
    found = add_gradients(tape, [(output, tape.const(np.ones((2, 3), np.float32)))], weights)
    assert set(found.of) == {"v2"}
    assert len(found.stops) == 2  # the operator, and what leads to it


def test_a_shape_that_nothing_tells_is_said() -> None:
    model = model_of("m (float[2,5] x) => (float[2,3] y) { y = MatMul(x, w) }", w=random(5, 3))
    with pytest.raises(ModelError, match="the shape of 'y'"):
        Tape(model.graph, {}).shape(model.graph.outputs[0])


@pytest.mark.parametrize("opset", [13, 14, 18, 20])
def test_opsets(opset: int) -> None:
    """Attributes that came later are not written."""
    text = f"""<ir_version: 8, opset_import: ["" : {opset}]> m (float[2,4,5,5] x) => (float[2,6] y) {{
        a = Conv(x, w, b)  m = GlobalAveragePool(a)  c = Flatten(m)  d = Add(c, e)  y = Relu(d)
    }}"""
    check(model_of(text, w=random(6, 4, 1, 1), b=random(6), e=random(6, seed=1)), ("w", "b", "e"))


def test_sizes_may_differ_from_sample_to_sample() -> None:
    """Shapes are looked at on one sample only."""
    text = """m (float[1,4,H,W] x) => (float[1,4,I,J] y) {
        a = Conv<group = 4, pads = [1,1,1,1], strides = [2,2]>(x, w)  b = HardSwish(a)  c = Conv(b, v)
        d = GlobalAveragePool(c)  y = Mul(c, d)
    }"""
    model = model_of(text, w=random(4, 1, 3, 3), v=random(4, 4, 1, 1, seed=1))
    infer_shapes(model)
    output, feeds = model.graph.outputs[0], {"x": random(1, 4, 9, 12)}
    tape = Tape(model.graph, shapes_for(model, feeds))
    weights = [item for item in constants(model.graph) if item.name in ("w", "v")]
    found = add_gradients(tape, [(output, output)], weights)
    model.graph.outputs = list(found.of.values())
    for tensor in model.graph.outputs:
        tensor.dtype = np.float32
    with open_session(model) as session:
        for shape in ((9, 12), (6, 5), (17, 3)):
            gradients = list(session.run({"x": random(1, 4, *shape)}).values())
            assert sorted(item.shape for item in gradients) == [(4, 1, 3, 3), (4, 4, 1, 1)]
            assert all(np.isfinite(item).all() and item.any() for item in gradients)
