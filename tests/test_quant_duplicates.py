"""Equal integers are stored once, whoever reads them."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from graphopt.ir.graph import constants
from graphopt.model import Model
from graphopt.passes.quant.writing.duplicates import share_integers
from graphopt.runtime.session import open_session
from tests.helpers import parse

BODIES = """<ir_version: 8, opset_import: ["" : 17]> g (uint8[n, 64] x, bool c) => (int32[n, 32] y, int32[n, 32] z)
{
  y = MatMulInteger(x, a)
  z = If(c) <then_branch = t () => (int32[n, 32] p) { p = MatMulInteger(x, b) },
             else_branch = e () => (int32[n, 32] q) { q = MatMulInteger(x, d) }>
}"""


def build(text: str = BODIES, shape: tuple[int, ...] = (64, 32), kind: type = np.int8) -> Model:
    proto = parse(text)
    values = np.random.default_rng(0).integers(-100, 100, shape)
    for name, stored in (("a", values), ("b", values), ("d", values + 1)):
        proto.graph.initializer.append(onnx.numpy_helper.from_array(stored.astype(kind), name))
    return Model.from_proto(proto)


def test_a_body_reads_the_integers_of_the_graph_around_it() -> None:
    model = build()
    result = model.copy()
    assert share_integers(result) == 1
    assert sorted(constant.name for constant in constants(result.graph)) == ["a", "d"]
    for branch in (True, False):
        feeds = {"x": np.arange(128, dtype=np.uint8).reshape(2, 64), "c": np.array(branch)}
        with open_session(model) as before, open_session(result) as after:
            wanted, found = before.run(feeds), after.run(feeds)
        assert all(np.array_equal(wanted[name], found[name]) for name in wanted)


@pytest.mark.parametrize(
    "model",
    [
        build(shape=(64, 2), text=BODIES.replace("32", "2")),  # too small
        build(
            '<ir_version: 8, opset_import: ["" : 17]> g (int8[64, 32] x) => (int8[64, 32] y, int8[64, 32] b)'
            "{ s = Add(x, a) r = Add(s, b) y = Add(r, d) }"
        ),  # a graph output
    ],
    ids=["small", "output"],
)
def test_others_stay(model: Model) -> None:
    assert share_integers(model) == 0
