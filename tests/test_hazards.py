"""Models on which ONNX Runtime aborts are refused before it sees them; their neighbours are not."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from graphopt.errors import ModelError
from graphopt.model import Model
from graphopt.runtime.profile import node_times
from graphopt.runtime.session import open_session, optimized_model
from graphopt.runtime.trace import trace
from tests.helpers import parse, write

IF = """y = If(c) <then_branch = t () => (float p) { p = ReduceSum <keepdims = 0> (%s) },
                  else_branch = e () => (float o) { o = ReduceMax <keepdims = 0> (%s) }>"""
LOOP = """y = Loop(n, c, x) <body = step (int64 i, bool on, float[2, 4] state) => (bool still, float[2, 4] next)
          { still = Identity(on) next = Add(state, r) }>"""
HEAD = "q = QuantizeLinear(x, s, z) d = DequantizeLinear(q, s, z) "


def build(nodes: str, output: str = "float y") -> Model:
    return Model.from_proto(
        parse(
            f"""<ir_version: 10, opset_import: ["" : 13]>
            agraph (float[2, 4] x, bool c, int64 n) => ({output})
            <float s = {{0.1}}, uint8 z = {{128}}, int64[2] shape = {{2, 4}},
             int64[1] one = {{1}}, int64[1] two = {{2}}>
            {{ {nodes} }}"""
        )
    )


CRASHES = {
    "reshape": HEAD + "r = Reshape(d, shape) " + IF % ("r", "r"),
    "transpose": HEAD + "r = Transpose <perm = [0, 1]> (d) " + IF % ("r", "r"),
    "slice": HEAD + "r = Slice(d, one, two) " + IF % ("r", "r"),
    "a chain": HEAD + "e = Unsqueeze(d, one) r = Squeeze(e, one) " + IF % ("r", "r"),
    "one branch": HEAD + "r = Reshape(d, shape) " + IF % ("x", "r"),
}
FINE = {
    "read directly": HEAD + IF % ("d", "d"),
    "computed on": HEAD + "m = Reshape(d, shape) r = Relu(m) " + IF % ("r", "r"),
    "never quantized": "r = Reshape(x, shape) " + IF % ("r", "r"),
    "quantized behind": "r = Reshape(x, shape) q = QuantizeLinear(r, s, z) d = DequantizeLinear(q, s, z) "
    + IF % ("r", "d"),
}


@pytest.mark.parametrize("name", CRASHES)
def test_refused(name: str, tmp_path: Path) -> None:
    model = build(CRASHES[name])
    for source in (model, model.to_proto(), write(model.to_proto(), tmp_path / "m.onnx")):
        with pytest.raises(ModelError, match=r"ONNX Runtime would crash: 'r' only moves .* 'y' \(If\)"):
            open_session(source)
    with pytest.raises(ModelError, match="would crash"):
        optimized_model(model)
    with pytest.raises(ModelError, match="would crash"):
        node_times(model, [])
    with pytest.raises(ModelError, match="would crash"):
        trace(model, {})


def test_loops_too() -> None:
    with pytest.raises(ModelError, match=r"would crash: 'r' .* 'y' \(Loop\)"):
        open_session(build(HEAD + "r = Reshape(d, shape) " + LOOP, "float[2, 4] y"))


@pytest.mark.parametrize("name", CRASHES)
def test_without_optimizations_it_runs(name: str) -> None:
    open_session(build(CRASHES[name]), optimize=False).close()


@pytest.mark.parametrize("name", FINE)
def test_neighbours_are_opened(name: str) -> None:
    """In a process of its own, which may crash."""
    code = f"""
from graphopt.runtime.session import open_session
from tests.test_hazards import FINE, build
open_session(build(FINE[{name!r}])).close()
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(__file__).parents[1])
    assert run.returncode == 0, run.stderr
