"""Parameters are what weights are decoded to, each once, however they are stored."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import helper, numpy_helper

from graphopt.cost import figures, node_costs
from graphopt.model import Model
from graphopt.shapes import infer_shapes
from tests.helpers import parse


def model_of(nodes: str, weights: dict[str, np.ndarray]) -> Model:
    """Return a model with input x [N, 4] and output y."""
    proto = parse(f'<ir_version: 10, opset_import: ["": 21, "com.microsoft": 1]> g (float[N,4] x) => (y) {{ {nodes} }}')
    proto.graph.initializer.extend(numpy_helper.from_array(values, name) for name, values in weights.items())
    model = Model.from_proto(proto)
    infer_shapes(model)
    return model


CODES: dict[str, np.ndarray] = {
    "codes": np.zeros(8, np.uint8),  # two to a byte: 16 weights
    "bytes": np.zeros((256, 2), np.uint8),
    "levels": np.zeros(16, np.float32),
    "shape": np.array([4, 4], np.int64),
}
DECODE = """i = Cast<to = 6>(codes) pairs = Gather(bytes, i) j = Cast<to = 6>(pairs) flat = Gather(levels, j)
            w = Reshape(flat, shape)"""


@pytest.mark.parametrize(
    "use",
    [
        "y = MatMul(x, w)",
        "a = MatMul(x, w) t = Transpose(w) y = MatMul(a, t)",
        "a = MatMul(x, w) y = MatMul(a, w)",
    ],
    ids=["read once", "tied", "shared"],
)
def test_packed_codes_count_as_what_they_are_decoded_to(use: str) -> None:
    model = model_of(f"{DECODE} {use}", CODES)
    assert figures(model).parameters == 16 == sum(cost.parameters for cost in node_costs(model))


def test_a_table_that_several_codes_share_counts_for_none_of_them() -> None:
    """The table is larger than either of the weights, which have different sizes."""
    other = """k = Cast<to = 6>(more) pairs2 = Gather(bytes, k) l = Cast<to = 6>(pairs2) flat2 = Gather(levels, l)
               v = Reshape(flat2, shape2)"""
    weights = {**CODES, "more": np.zeros(16, np.uint8), "shape2": np.array([4, 8], np.int64)}
    model = model_of(f"{DECODE} {other} a = MatMul(x, w) y = MatMul(a, v)", weights)
    assert figures(model).parameters == 16 + 32


def test_a_table_that_is_also_read_as_it_is_counts_for_that() -> None:
    model = model_of(f"{DECODE} a = MatMul(x, w) y = Mul(a, levels)", {**CODES, "levels": np.ones(4, np.float32)})
    assert figures(model).parameters == 16 + 4


@pytest.mark.parametrize(
    ("nodes", "weights", "count"),
    [
        (
            "w = DequantizeLinear(q, s) y = MatMul(x, w)",
            {"q": np.zeros((4, 8), np.int8), "s": np.ones((), np.float32)},
            32,
        ),
        ("big = ConstantOfShape(s) y = Add(big, x)", {"s": np.array([1000, 4], np.int64)}, 2),
        ("big = Expand(b, s) y = Add(x, big)", {"b": np.ones((), np.float32), "s": np.array([100, 4], np.int64)}, 3),
        (
            "c = Expand(b, s) d = Cast<to = 1>(c) y = Add(x, d)",
            {"b": np.ones((), np.uint8), "s": np.array([100, 4])},
            3,
        ),
        ("w = Tile(v, n) y = MatMul(x, w)", {"v": np.zeros((4, 4), np.float32), "n": np.array([1, 3])}, 18),
        ("t = Transpose(w) a = MatMul(x, w) y = MatMul(a, t)", {"w": np.zeros((4, 8), np.float32)}, 32),
        ("b = Cast<to = 2>(x) y = Concat<axis = 0>(b, w)", {"w": np.zeros((2, 4), np.uint8)}, 8),
    ],
    ids=["int8", "formula", "expanded", "formula of bytes", "tiled floats", "tied", "bytes that are read as they are"],
)
def test_what_is_not_packed_counts_as_stored(nodes: str, weights: dict[str, np.ndarray], count: int) -> None:
    assert figures(model_of(nodes, weights)).parameters == count


def test_codes_that_a_kernel_reads_count_as_its_weights() -> None:
    model = model_of("y = Neg(x)", {})
    proto = model.to_proto()
    product = helper.make_node(
        "MatMulNBits", ["x", "codes", "scales"], ["y"], domain="com.microsoft", K=32, N=8, bits=4, block_size=32
    )
    proto.graph.node[0].CopyFrom(product)
    proto.graph.initializer.append(numpy_helper.from_array(np.zeros((8, 1, 16), np.uint8), "codes"))
    proto.graph.initializer.append(numpy_helper.from_array(np.zeros(8, np.float32), "scales"))
    assert figures(Model.from_proto(proto)).parameters == 32 * 8 + 8
