"""What became of conversions: models whose optimized graph is known, and one for every rule that can fail."""

from __future__ import annotations

from dataclasses import replace

import jsonschema
import numpy as np
import onnx
import pytest

from graphopt.api import compress
from graphopt.model import Model
from graphopt.observe import Observer
from graphopt.passes.quant.accounting.accounting import Conversion, account, audit, summary
from graphopt.passes.quant.nodes.units import find_units
from graphopt.passes.quant.numbers.calibrate import calibrate
from graphopt.passes.quant.search.plans import Plan
from graphopt.passes.quant.search.workshop import Workshop
from graphopt.report import schema
from graphopt.samples import open_samples
from graphopt.shapes import infer_shapes
from graphopt.targets import Kernel, get_target
from tests.helpers import parse

SCALE = "<float xs = {0.05}, uint8 xz = {128}, float ys = {0.1}, uint8 yz = {120}, int8 wz = {0}, float ws = {0.02}"


def quantized(
    body: str, inputs: str = "float[1, 8, 6, 6] x", output: str = "float[1, 8, 6, 6] y", more: str = ""
) -> Model:
    """Return a model with some scales and zero points at hand, in opset 17."""
    proto = parse(
        f'<ir_version: 8, opset_import: ["" : 17]>\ng ({inputs}) => ({output})\n{SCALE}{more}>\n{{\n{body}\n}}'
    )
    for name, shape in (("w", (8, 8, 3, 3)), ("v", (8, 16, 3, 3)), ("m", (6, 6))):
        values = np.random.default_rng(0).integers(-64, 64, shape).astype(np.int8)
        proto.graph.initializer.append(onnx.numpy_helper.from_array(values, name))
    for name, size in (("w8", 8), ("m6", 6)):
        proto.graph.initializer.append(onnx.numpy_helper.from_array(np.full(size, 0.02, np.float32), f"{name}s"))
        proto.graph.initializer.append(onnx.numpy_helper.from_array(np.zeros(size, np.int8), f"{name}z"))
    for index, node in enumerate(proto.graph.node):
        node.name = node.name or f"{node.output[0]}/{index}"
    return Model.from_proto(proto)


def found(model: Model) -> dict[str, Conversion]:
    """Return what became of each conversion, by the name of what it writes."""
    return {item.node.partition("/")[0]: item for item in account(model, get_target("cpu-avx2"))}


ENTRY = "xq = QuantizeLinear(x, xs, xz)\nxd = DequantizeLinear(xq, xs, xz)"
WEIGHT = "wd = DequantizeLinear<axis = 0>(w, w8s, w8z)"


def test_a_convolution_takes_in_all_its_conversions() -> None:
    items = found(
        quantized(
            f"{ENTRY}\n{WEIGHT}\nc = Conv<pads = [1, 1, 1, 1]>(xd, wd)\n"
            "cq = QuantizeLinear(c, ys, yz)\ny = DequantizeLinear(cq, ys, yz)"
        )
    )
    assert {name: item.became for name, item in items.items()} == {
        "xq": "border",
        "xd": "kernel",
        "wd": "kernel",
        "cq": "kernel",
        "y": "border",
    }
    assert "an input of the model" in items["xq"].detail
    assert "an output of the model" in items["y"].detail
    assert "QLinearConv" in items["wd"].detail


def test_what_only_moves_integers_takes_their_conversions_away() -> None:
    items = found(
        quantized(
            f"{ENTRY}\nt = Transpose<perm = [0, 1, 3, 2]>(xd)\nq = QuantizeLinear(t, xs, xz)\n"
            "d = DequantizeLinear(q, xs, xz)\ny = Relu(d)"
        )
    )
    assert items["xd"].became == items["q"].became == "moved"
    assert "Transpose" in items["q"].detail
    assert items["d"].became == "border"
    assert "Relu" in items["d"].detail


def test_a_requantization_is_inside() -> None:
    items = found(
        quantized(
            f"{ENTRY}\n{WEIGHT}\nc = Conv<pads = [1, 1, 1, 1]>(xd, wd)\n"
            "q = QuantizeLinear(c, xs, xz)\nd = DequantizeLinear(q, xs, xz)\nr = Relu(d)\n"
            "rq = QuantizeLinear(r, ys, zero)\nrd = DequantizeLinear(rq, ys, zero)\ny = Tanh(rd)",
            more=", uint8 zero = {0}",
        )
    )
    assert items["d"].became == items["rq"].became == "left"
    assert "straight back" in items["d"].detail
    assert items["xd"].became == items["q"].became == "kernel"


@pytest.mark.parametrize(
    "body, rule",
    [
        (
            "t = Transpose<perm = [0, 1, 3, 2]>(xd)\nq = QuantizeLinear(t, ys, yz)\nd = DequantizeLinear(q, ys, yz)\n"
            "y = Relu(d)",
            "different scales",
        ),
        (
            "t = Sigmoid(xd)\nq = QuantizeLinear(t, ys, iz)\nd = DequantizeLinear(q, ys, iz)\n"
            "e = DequantizeLinear(q, ys, iz)\ny = Sub(d, e)",
            "different integer types",
        ),
        (
            "t = Sigmoid(xd)\nq = QuantizeLinear(t, ys, yz)\nr = QuantizeLinear(t, xs, xz)\n"
            "d = DequantizeLinear(q, ys, yz)\ne = DequantizeLinear(r, xs, xz)\ny = Sub(d, e)",
            "several readers",
        ),
        (
            "t = Add(xd, ws)\nq = QuantizeLinear(t, ys, yz)\nd = DequantizeLinear(q, ys, yz)\ny = Relu(d)",
            "its constant 'ws' is not quantized",
        ),
        (
            "y = Sigmoid(xd)\nq = QuantizeLinear(y, ys, yz)\nd = DequantizeLinear(q, ys, yz)\nother = Relu(d)",
            "also an output of the model",
        ),
    ],
)
def test_what_does_not_fuse_is_left_with_its_rule(body: str, rule: str) -> None:
    output = "float[1, 8, 6, 6] y" + (", float[1, 8, 6, 6] other" if "other" in body else "")
    items = found(quantized(f"{ENTRY}\n{body}", output=output, more=", int8 iz = {0}"))
    left = [item for item in items.values() if item.became == "left"]
    assert left, items
    assert all(rule in item.detail for item in left)


def test_a_float_node_between_integers_that_has_no_kernel_is_a_border() -> None:
    items = found(quantized(f"{ENTRY}\nt = Tanh(xd)\nq = QuantizeLinear(t, ys, yz)\nd = DequantizeLinear(q, ys, yz)\n"
                            "y = Relu(d)"))  # fmt: skip
    assert items["xd"].became == items["q"].became == "border"


def test_one_with_float_and_integer_readers_is_a_border() -> None:
    items = found(
        quantized(
            f"{ENTRY}\n{WEIGHT}\nc = Conv<pads = [1, 1, 1, 1]>(xd, wd)\ncq = QuantizeLinear(c, ys, yz)\n"
            "cd = DequantizeLinear(cq, ys, yz)\nt = Tanh(xd)\ny = Add(cd, t)"
        )
    )
    assert items["xd"].became == "border"
    assert "Tanh" in items["xd"].detail


def test_ranges_found_at_run_time() -> None:
    weight = np.random.default_rng(0).normal(size=(512, 64)).astype(np.float32)
    proto = parse("g (float[N, 512] x) => (float[N, 64] y) { y = MatMul(x, w) }")
    proto.graph.initializer.append(onnx.numpy_helper.from_array(weight, "w"))
    model = compress(Model.from_proto(proto), "quant:mode=dynamic", benchmark=False).model
    (item,) = account(model, get_target("cpu-avx2"))
    assert (item.op, item.became) == ("DynamicQuantizeLinear", "kernel")
    assert "DynamicQuantizeMatMul" in item.detail


def test_inside_a_body() -> None:
    proto = parse(
        "g (bool c, float[4, 4] x) => (float[4, 4] y) <float s = {0.1}, uint8 z = {0}> {\n"
        "y = If (c) <then_branch = t () => (float[4, 4] a) { q = QuantizeLinear(x, s, z)\n"
        "a = DequantizeLinear(q, s, z) }, else_branch = e () => (float[4, 4] b) { b = Relu(x) }>\n}"
    )
    assert len(account(Model.from_proto(proto), get_target("cpu-avx2"))) == 2


def test_a_float_model_has_nothing_to_account_for() -> None:
    model = Model.from_proto(parse("g (float[2] x) => (float[2] y) { y = Relu(x) }"))
    assert account(model, get_target("cpu-avx2")) == ()
    assert summary(()) == "no QuantizeLinear or DequantizeLinear"


def test_counts() -> None:
    items = [Conversion("a", "QuantizeLinear", "kernel", ""), Conversion("b", "DequantizeLinear", "border", "")] * 2
    assert "of 4 " in summary(items)
    assert "2 part of an integer kernel, 2 at a border" in summary(items)


NETWORK = """
<ir_version: 8, opset_import: ["" : 17]>
g (float[1, 16, 12, 12] x) => (float[1, 16, 12, 12] y)
{
  [first] a = Conv <pads = [1, 1, 1, 1]> (x, w)
  [between] b = Tanh(a)
  [second] y = Conv <pads = [1, 1, 1, 1]> (b, v)
}
"""


def network() -> Model:
    """Return two convolutions with a Tanh between them."""
    proto = onnx.parser.parse_model(NETWORK)
    rng = np.random.default_rng(0)
    for name in ("w", "v"):
        proto.graph.initializer.append(
            onnx.numpy_helper.from_array((rng.normal(size=(16, 16, 3, 3)) / 12).astype(np.float32), name)
        )
    return Model.from_proto(proto)


def data() -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(1)
    return [{"x": rng.normal(size=(1, 16, 12, 12)).astype(np.float32)} for _ in range(3)]


def test_what_does_not_fuse_is_taken_back() -> None:
    """The table is made to promise a kernel that ONNX Runtime does not have."""
    model, real = network(), get_target("cpu-avx2")
    promised = Kernel("Tanh", "static", "com.microsoft.QLinearTanh", conditions=("same-type",))
    target = replace(real, kernels=(*real.kernels, promised))
    infer_shapes(model)
    units, _ = find_units(model.graph, target, model.opset)
    calibration = calibrate(model, units, Observer(open_samples(data(), model.interface)))
    workshop = Workshop(model, target, units, (), calibration)
    found = workshop.make(Plan("static int8", frozenset(unit.position for unit in units), frozenset(), "minmax"))
    assert found.unfused == {1: "no rule of ONNX Runtime's takes it"}
    assert found.plan.static == {0, 2}
    assert found.audit.kernels["QLinearConv"] == 2
    assert {item.became for item in account(found.model, real)} == {"kernel", "border"}


def test_what_ends_at_a_border_that_the_runtime_carries_a_transpose_across_is_known() -> None:
    model = quantized(
        f"{ENTRY}\n{WEIGHT}\nc = Conv<pads = [1, 1, 1, 1]>(xd, wd)\ncq = QuantizeLinear(c, ys, yz)\n"
        "cd = DequantizeLinear(cq, ys, yz)\np = MaxPool<kernel_shape = [1, 1]>(x)\nt = Concat<axis = 1>(p, cd)\n"
        "tq = QuantizeLinear(t, ys, yz)\ntd = DequantizeLinear(tq, ys, yz)\n"
        f"vd = DequantizeLinear<axis = 0>(v, w8s, w8z)\nh = Conv<pads = [1, 1, 1, 1]>(td, vd)\n"
        "hq = QuantizeLinear(h, ys, yz)\ny = DequantizeLinear(hq, ys, yz)"
    )
    items = audit(model, ["c/3"], get_target("cpu"))
    assert items.inside
    assert not items.unfused
    assert "Transpose" in items.beside["c/3"]


def test_the_report_tells_what_became_of_each_conversion() -> None:
    result = compress(network(), "quant:mode=static", data=data(), max_drop=0.5, benchmark=False)
    encoded = result.report.to_json()
    jsonschema.validate(encoded, schema())
    fates = encoded["steps"][-1]["fates"]
    written = [node.name for node in result.model.graph.nodes if node.op in ("QuantizeLinear", "DequantizeLinear")]
    assert sorted(fate["where"] for fate in fates) == sorted(written)
    assert any(fate["what"] == "part of an integer kernel: QLinearConv 'second'" for fate in fates)


def test_scales_that_the_runtime_writes_beside_the_graph() -> None:
    model = quantized(
        "g = Gather(table, ids)\nd = DequantizeLinear<axis = 1>(g, scales, zeros)\nt = Transpose<perm = [1, 0]>(d)\n"
        "tq = QuantizeLinear(t, ys, yz)\ny = DequantizeLinear(tq, ys, yz)",
        inputs="int64[3] ids",
        output="float[512, 3] y",
    ).to_proto()
    scales = np.linspace(0.01, 0.02, 512, dtype=np.float32)
    for name, values in (
        ("table", np.ones((4, 512), np.uint8)),
        ("scales", scales),
        ("zeros", np.zeros(512, np.uint8)),
    ):
        model.graph.initializer.append(onnx.numpy_helper.from_array(values, name))
    assert found(Model.from_proto(model))
