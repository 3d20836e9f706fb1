"""Convolutions over a few frames as matrix products: the same sums, and only where they are."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from graphopt.ir.graph import walk_nodes
from graphopt.model import Model
from graphopt.passes.quant.writing.frames import as_products
from graphopt.runtime.session import open_session
from graphopt.shapes import infer_shapes
from tests.helpers import parse

RNG = np.random.default_rng(3)
STFT = "y = Conv<kernel_shape=[64], strides=[32]>(x, w)"


def build(
    nodes: str = STFT,
    length: int | str = 160,
    weight: tuple[int, ...] = (20, 1, 64),
    channels: int = 1,
    opset: int = 17,
) -> Model:
    proto = parse(f"""<ir_version: 8, opset_import: ["" : {opset}]> g (float[n, {channels}, {length}] x, bool c)
        => (float[n, 20, m] y) {{ {nodes} }}""")
    for name, shape in (("w", weight), ("v", weight), ("b", (20,))):
        values = RNG.normal(size=shape).astype(np.float32)
        proto.graph.initializer.append(onnx.numpy_helper.from_array(values, name))
    model = Model.from_proto(proto)
    infer_shapes(model)
    return model


def operators(model: Model) -> list[str]:
    return [node.op for node in walk_nodes(model.graph)]


@pytest.mark.parametrize(
    ("nodes", "weight", "made"),
    [
        (STFT, (20, 1, 64), ["Reshape", "Gather", "Reshape", "MatMul", "Transpose"]),
        (STFT.replace("w)", "w, b)"), (20, 1, 64), ["Reshape", "Gather", "Reshape", "MatMul", "Add", "Transpose"]),
        ("y = Conv<strides=[32]>(x, w)", (20, 1, 32), ["Reshape", "MatMul", "Transpose"]),
        ("y = Conv<kernel_shape=[64], strides=[32], pads=[0, 0], dilations=[1], group=1>(x, w)", (20, 1, 64), None),
        ("y = If(c) <then_branch = t () => (float[n, 20, m] p) { p = Conv<strides=[32]>(x, w) },"
         " else_branch = e () => (float[n, 20, m] q) { q = Conv<strides=[32]>(x, v) }>", (20, 1, 64), None),
    ],
)  # fmt: skip
def test_the_product_is_the_same_sum(nodes: str, weight: tuple[int, ...], made: list[str] | None) -> None:
    model = build(nodes, weight=weight)
    feeds = {"x": RNG.normal(size=(3, 1, 160)).astype(np.float32), "c": np.array(True)}
    framed = model.copy()
    assert as_products(framed, lambda node: False) == operators(model).count("Conv")
    assert made is None or operators(framed) == made
    with open_session(model) as before, open_session(framed) as after:
        taken = {name: feeds[name] for name in before.inputs}
        np.testing.assert_allclose(after.run(taken)["y"], before.run(taken)["y"], atol=1e-4)


@pytest.mark.parametrize("length", [64, 95, 96, 176])
def test_what_no_frame_covers_does_not_count(length: int) -> None:
    model = build(length=length)
    feeds = {"x": RNG.normal(size=(2, 1, length)).astype(np.float32)}
    framed = model.copy()
    assert as_products(framed, lambda node: False) == 1
    assert ("Slice" in operators(framed)) == bool(length % 32)
    with open_session(model) as before, open_session(framed) as after:
        taken = {**feeds, **{name: np.array(True) for name in before.inputs if name == "c"}}
        np.testing.assert_allclose(after.run(taken)["y"], before.run(taken)["y"], atol=1e-4)


@pytest.mark.parametrize(
    "model",
    [
        build(length="l"),  # not known
        build(length=330),  # nine frames
        build(length=32),  # none
        build(STFT.replace("64", "48"), weight=(20, 1, 48)),
        build(STFT.replace("strides", "pads=[32, 0], strides")),
        build(STFT.replace("strides", "dilations=[2], strides"), length=256),
        build(STFT.replace("strides", 'auto_pad="SAME_UPPER", strides')),
        build(weight=(20, 2, 64), channels=2),
        build(f"{STFT} z = Shape(w)"),
        build("u = Identity(w) y = Conv<strides=[32]>(x, u)"),
        build(opset=9),
    ],
    ids=lambda model: " ".join(operators(model)),
)
def test_others_are_left_alone(model: Model) -> None:
    before = operators(model)
    assert as_products(model, lambda node: False) == 0
    assert operators(model) == before


def test_excluded_ones_are_left_alone() -> None:
    assert as_products(build(), lambda node: node.op == "Conv") == 0
