"""Equal weights are stored once: equal bits, in every scope, and nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from graphopt.base import PassReport
from graphopt.context import Context
from graphopt.ir.clean import clean
from graphopt.ir.graph import constants, payload, payload_bytes
from graphopt.model import Model
from graphopt.passes.share import Share
from graphopt.reader import load
from graphopt.runtime.session import op_counts, optimized_model
from graphopt.shapes import infer_shapes
from graphopt.spec import parse_pass
from tests.helpers import assert_same_outputs, outputs_of, parse, random_feeds
from tests.test_laws import apply, context_for, prepared

NO_CONTEXT = cast("Context", None)  # share needs none


def share(proto: onnx.ModelProto) -> tuple[PassReport, onnx.ModelProto]:
    """Share the weights of a model, and check what must hold for any."""
    model = Model.from_proto(proto)
    stored = model.to_proto()
    report = Share().run(model, NO_CONTEXT)
    if report.changed == 0:
        assert model.to_proto() == stored
    clean(model.graph)
    after = model.to_proto()
    assert model.interface == Model.from_proto(proto).interface
    assert after.ByteSize() <= proto.ByteSize()
    assert Share().run(Model.from_proto(after), NO_CONTEXT).changed == 0
    feeds = random_feeds(proto)
    assert_same_outputs(outputs_of(after, feeds), outputs_of(proto, feeds), rtol=0, atol=0)
    return report, after


def sum_of(*weights: onnx.TensorProto, opset: int = 17, ir_version: int = 8, listed: bool = False) -> onnx.ModelProto:
    """Return a model that adds weights, each cast to float, to its input."""
    nodes = [helper.make_node("Cast", [w.name], [f"f{i}"], to=TensorProto.FLOAT) for i, w in enumerate(weights)]
    previous = "x"
    for i in range(len(weights)):
        nodes.append(helper.make_node("Add", [previous, f"f{i}"], [f"s{i}"]))
        previous = f"s{i}"
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 1])]
    if listed:
        inputs += [helper.make_tensor_value_info(w.name, w.data_type, list(w.dims)) for w in weights]
    outputs = [helper.make_tensor_value_info(previous, TensorProto.FLOAT, None)]
    graph = helper.make_graph(nodes, "g", inputs, outputs, list(weights))
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=ir_version)


def tensor(name: str, values: Any, dtype: Any = np.float32) -> onnx.TensorProto:
    """Return a weight."""
    return numpy_helper.from_array(np.array(values).astype(dtype), name)


def names(proto: onnx.ModelProto) -> list[str]:
    """Return the names of the initializers of the main graph."""
    return [item.name for item in proto.graph.initializer]


def test_equal_weights_are_stored_once() -> None:
    report, after = share(sum_of(tensor("a", [1, 2]), tensor("b", [1, 3]), tensor("c", [1, 2]), tensor("d", [1, 2])))
    assert names(after) == ["a", "b"]
    assert report.changed == 2
    assert report.metrics == {"weights": 2.0, "bytes": 16.0}


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (tensor("a", [0.0, 1.0]), tensor("b", [-0.0, 1.0])),
        (tensor("a", [1, 2]), tensor("b", [[1, 2]])),
        (tensor("a", [1, 2], np.int32), tensor("b", [1, 2], np.uint32)),
        (tensor("a", [0, 0], np.float16), tensor("b", [0, 0], ml_dtypes.bfloat16)),
        (tensor("a", [1.0, 2.0]), tensor("b", [1.0, 2.0000002])),
        (tensor("a", np.zeros(5000)), tensor("b", np.arange(5000) == 4999)),
    ],
)
def test_weights_that_differ_in_any_bit_stay_apart(first: onnx.TensorProto, second: onnx.TensorProto) -> None:
    proto = sum_of(first, second)
    if first.dims[0] == 5000:
        for node in proto.graph.node:
            if node.op_type == "Add":
                node.op_type = "Sub"
    assert share(proto)[0].changed == 0


def test_not_a_number_is_told_apart_by_its_bits() -> None:
    bits = np.array([0x7FC00000, 0x7FC00001], np.uint32).view(np.float32)
    assert share(sum_of(tensor("a", bits[:1]), tensor("b", bits[1:])))[0].changed == 0
    assert share(sum_of(tensor("a", bits[:1]), tensor("b", bits[:1])))[0].changed == 1


@pytest.mark.parametrize("dtype", [np.int8, np.bool_, np.float64, ml_dtypes.bfloat16, ml_dtypes.int4])
def test_every_type_is_shared(dtype: Any) -> None:
    opset = 21 if dtype is ml_dtypes.int4 else 17
    proto = sum_of(tensor("a", [1, 0, 1], dtype), tensor("b", [1, 0, 1], dtype), opset=opset, ir_version=10)
    assert share(proto)[0].changed == 1


def test_raw_and_typed_fields_are_the_same_weight() -> None:
    typed = helper.make_tensor("b", TensorProto.FLOAT, [2], [1.0, 2.0])
    assert not typed.raw_data
    assert share(sum_of(tensor("a", [1, 2]), typed))[0].changed == 1


def test_text_is_shared() -> None:
    nodes = [helper.make_node("Equal", ["s", "a"], ["p"]), helper.make_node("Equal", ["s", "b"], ["q"])]
    nodes.append(helper.make_node("And", ["p", "q"], ["y"]))
    weights = [numpy_helper.from_array(np.array(["no", "yes"], object), name) for name in "sab"]
    weights[0] = numpy_helper.from_array(np.array(["no", "no"], object), "s")
    out = [helper.make_tensor_value_info("y", TensorProto.BOOL, None)]
    proto = helper.make_model(
        helper.make_graph(nodes, "g", [], out, weights), opset_imports=[helper.make_opsetid("", 19)], ir_version=9
    )
    report, after = share(proto)
    assert report.changed == 1
    assert len(after.graph.initializer) == 2


def test_weights_of_both_branches_are_stored_around_them() -> None:
    proto = parse(
        """g (bool c, float[2] x) => (float[2] y) {
            y = If(c) <
                then_branch = t () => (float[2] a) <float[2] w = {1, 2}> { a = Mul(x, w) },
                else_branch = e () => (float[2] b) <float[2] w = {1, 2}> { b = Add(x, w) }
            >
        }"""
    )
    report, after = share(proto)
    assert report.changed == 1
    assert len(after.graph.initializer) == 1
    assert [len(attribute.g.initializer) for attribute in after.graph.node[0].attribute] == [0, 0]


def test_a_weight_that_is_an_output_keeps_its_name() -> None:
    proto = sum_of(tensor("a", [1, 2]), tensor("b", [1, 2]), tensor("c", [1, 2]))
    proto.graph.output.append(helper.make_tensor_value_info("b", TensorProto.FLOAT, [2]))
    report, after = share(proto)
    assert report.changed == 2
    assert names(after) == ["b"]
    proto.graph.output.append(helper.make_tensor_value_info("c", TensorProto.FLOAT, [2]))
    report, after = share(proto)
    assert report.changed == 1
    assert names(after) == ["b", "c"]


def test_weights_that_a_caller_may_override_stay() -> None:
    assert share(sum_of(tensor("a", [1, 2]), tensor("b", [1, 2]), listed=True))[0].changed == 0


def test_up_to_ir_version_3_listed_weights_are_shared() -> None:
    report, after = share(sum_of(tensor("a", [1, 2]), tensor("b", [1, 2]), opset=8, ir_version=3, listed=True))
    assert report.changed == 1
    assert [info.name for info in after.graph.input] == ["x", "a"]


def test_external_weights_are_shared_with_inner_ones(tmp_path: Path) -> None:
    values = np.arange(1000)
    proto = sum_of(tensor("a", values), tensor("b", values), tensor("c", values + 1))
    onnx.external_data_helper.set_external_data(proto.graph.initializer[0], "w.bin")
    onnx.save_model(proto, str(tmp_path / "m.onnx"))
    loaded = load(tmp_path / "m.onnx")
    assert Share().run(loaded, NO_CONTEXT).changed == 1
    clean(loaded.graph)
    assert len(load(loaded.save(tmp_path / "n.onnx").path).graph.declared) == 2


def random(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def model(text: str, **weights: np.ndarray) -> onnx.ModelProto:
    """Return a model from text with these initializers added."""
    proto = parse(text)
    proto.graph.initializer.extend(numpy_helper.from_array(values, name) for name, values in weights.items())
    return proto


def ops(proto: onnx.ModelProto) -> list[str]:
    return [node.op_type for node in proto.graph.node]


TIED = "m (int64[N] i) => (float[N,40] y) {{ h = Gather(e, i)  y = {read} }}"


def share_with(proto: onnx.ModelProto, **options: Any) -> tuple[PassReport, onnx.ModelProto]:
    """Share with options, and check what must hold for any."""
    model = Model.from_proto(proto)
    infer_shapes(model)
    report = Share(**options).run(model, NO_CONTEXT)
    clean(model.graph)
    after = model.to_proto()
    assert after.ByteSize() <= proto.ByteSize()
    again = Model.from_proto(after)
    infer_shapes(again)
    assert Share(**options).run(again, NO_CONTEXT).changed == 0
    feeds = random_feeds(proto)
    assert_same_outputs(outputs_of(after, feeds), outputs_of(proto, feeds), rtol=1e-6, atol=1e-6)
    return report, after


def test_a_gemm_reads_the_transpose_of_what_is_stored() -> None:
    table = random(40, 30)
    for read, weight, flag in (("Gemm(h, w)", table.T, 1), ("Gemm<transB=1>(h, w)", table.T.T, None)):
        proto = model(TIED.format(read=read), e=table, w=np.ascontiguousarray(weight))
        report, after = share_with(proto)
        assert (report.changed, report.metrics["bytes"]) == (1, 4800)
        assert names(after) == ["e"]
        flags = {item.name: item.i for item in after.graph.node[1].attribute}
        assert flags.get("transB") == (1 if flag is None else flag)


def test_of_two_weights_the_one_goes_that_needs_no_node() -> None:
    table = random(30, 40)
    proto = model(
        "m (float[N,40] x) => (float[N,40] y) { h = Gemm(x, w)  y = MatMul(h, e) }", w=table.T.copy(), e=table
    )
    report, after = share_with(proto)
    assert (report.changed, names(after), ops(after)) == (1, ["e"], ["Gemm", "MatMul"])


def test_other_nodes_read_views_through_a_node_if_asked_to() -> None:
    table = random(40, 30)
    proto = model(TIED.format(read="MatMul(h, w)"), e=table, w=table.T.copy())
    report, after = share_with(proto)
    assert report.changed == 0
    assert report.skipped[0].reason.startswith("it is 'e' transposed; views=true")
    report, after = share_with(proto, views=True)
    assert (report.changed, names(after), ops(after)) == (1, ["e"], ["Transpose", "Gather", "MatMul"])
    assert op_counts(optimized_model(after))["Transpose"] == 0  # the runtime has computed it


def test_weights_in_another_shape() -> None:
    table = random(30, 40)
    text = "m (int64[N] i, float[M,40] x) => (float y) {{ h = Gather(e, i)  {read}  a = ReduceSum(h)  y = Add(a, p) }}"
    product = model(text.format(read="q = MatMul(x, w)  p = ReduceSum(q)"), e=table, w=table.reshape(40, 30))
    assert share_with(product)[0].changed == 0
    report, after = share_with(product, views=True)
    assert (report.changed, names(after)[0], "Reshape" in ops(after)) == (1, "e", True)
    reshaped = model(
        text.format(read="w2 = Reshape(w, s)  q = MatMul(x, w2)  p = ReduceSum(q)"),
        e=table,
        w=table.reshape(600, 2),
        s=np.array([40, -1]),
    )
    assert share_with(reshaped)[0].changed == 1


def test_matrices_that_are_no_transposes_stay() -> None:
    table = random(40, 40)
    other = table.T.copy()
    other[-1, -1] += 1
    proto = model(TIED.format(read="Gemm(h, w)"), e=table, w=other)
    assert share_with(proto)[0].changed == 0


def test_a_view_that_is_an_output_or_may_be_overridden_stays() -> None:
    table = random(40, 30)
    proto = model(TIED.format(read="Gemm(h, w)"), e=table, w=table.T.copy())
    proto.graph.output.append(helper.make_tensor_value_info("w", TensorProto.FLOAT, [30, 40]))
    assert share_with(proto)[0].changed == 0
    proto = model(TIED.format(read="Gemm(h, w)"), e=table, w=table.T.copy())
    proto.graph.input.append(helper.make_tensor_value_info("w", TensorProto.FLOAT, [30, 40]))
    assert share_with(proto)[0].changed == 0


@pytest.mark.parametrize(
    ("text", "shape", "found"),
    [
        ("m (float[N,20,30] x) => (float[N,20,30] y) { y = Add(x, w) }", (20, 30), "number"),
        ("m (float[N,20,30] x) => (float[N,20,30] y) { y = Sub(w, x) }", (1, 20, 30), "number"),
        ("m (float[N,20,1] x) => (float[N,20,30] y) { y = Mul(x, w) }", (20, 30), "node"),
        ("m (float[20,30] x) => (float[1,20,30] y) { y = Mul(x, w) }", (1, 20, 30), "node"),
        ("m (float[N,20] x) => (float[N,20] y) { y = Concat<axis=0>(x, w) }", (30, 20), "node"),
        ("m (float[N,30] x) => (float[N,20] y) { y = MatMul(x, w) }", (30, 20), ""),
        (
            "m (float[N,8,30,30] x) => (float[N,8,30,30] y) { y = Conv<group=8, pads=[2,2,2,2]>(x, w) }",
            (8, 1, 5, 5),
            "",
        ),
        ("m (float[N,600] x) => (float[N,600] y) { h = Gemm(x, i)  y = Add(h, w) }", (600,), "node"),
        ("m (float[N,6] x) => (float[N,6] y) { y = Add(x, w) }", (6,), ""),
    ],
)
def test_weights_of_one_value(text: str, shape: tuple[int, ...], found: str) -> None:
    more = {"i": np.eye(600, dtype=np.float32)} if "i)" in text else {}
    proto = model(text, w=np.full(shape, 0.5, np.float32), **more)
    report, after = share_with(proto)
    assert report.changed == (1 if found else 0)
    assert ("ConstantOfShape" in ops(after)) == (found == "node")
    if found == "number":
        assert [tuple(item.dims) for item in after.graph.initializer] == [()]
    if found == "node":
        assert op_counts(optimized_model(after))["ConstantOfShape"] == 0


def test_almost_one_value_is_not_one_value() -> None:
    text = "m (float[N,20,30] x) => (float[N,20,30] y) { y = Add(x, w) }"
    zeros = np.zeros((20, 30), np.float32)
    zeros[-1, -1] = -0.0
    assert share_with(model(text, w=zeros))[0].changed == 0
    whole = share_with(model(text, w=np.full((20, 30), np.nan, np.float32)))
    assert whole[0].changed == 1


FUNCTION = """<ir_version: 8, opset_import: ["" : 17, "local" : 1]>
m (float[N,3] x) => (float[N,3] y) { y = local.f(x) }
<domain: "local", opset_import: ["" : 17]>
f (x) => (y) {
    a = Constant<value = float[3] {1, 2, 3}>()  b = Constant<value = float[3] {1, 2, 3}>()
    c = Constant<value = float[3] {1, 2, 4}>()
    s = Add(x, a)  t = Mul(s, b)  y = Sub(t, c)
}"""


def test_constant_nodes_of_a_function_are_shared() -> None:
    report, after = share(onnx.parser.parse_model(FUNCTION))
    assert (report.changed, report.metrics["bytes"]) == (1, 12)
    assert [node.op_type for node in after.functions[0].node].count("Constant") == 2


def test_constant_nodes_are_shared_with_initializers_and_bodies() -> None:
    proto = parse(
        """g (bool c, float[2] x) => (float[2] y, float[2] z) <float[2] w = {1, 2}> {
            k = Constant<value = float[2] {1, 2}>()  z = Constant<value = float[2] {3, 4}>()  v = Add(x, w)
            u = Add(v, k)
            y = If(c) <
                then_branch = t () => (float[2] a) { p = Constant<value = float[2] {3, 4}>()  a = Mul(u, p) },
                else_branch = e () => (float[2] b) { q = Constant<value = float[2] {1, 2}>()  b = Add(u, q) }
            >
        }"""
    )
    report, after = share(proto)
    assert report.changed == 3
    assert [node.output[0] for node in after.graph.node if node.op_type == "Constant"] == ["z"]


def test_constant_nodes_of_two_branches_cannot_see_each_other() -> None:
    proto = parse(
        """g (bool c, float[2] x) => (float[2] y) {
            y = If(c) <
                then_branch = t () => (float[2] a) { p = Constant<value = float[2] {3, 4}>()  a = Mul(x, p) },
                else_branch = e () => (float[2] b) { q = Constant<value = float[2] {3, 4}>()  b = Add(x, q) }
            >
        }"""
    )
    assert share(proto)[0].changed == 0


TIED_TWICE = """m (int64[N] i, int64[N] j) => (float[N,64] y) {
    g = Gather(e, i)  h = Gather(e, j)  s = Add(g, h)  n = Relu(s)  m = Gemm(n, w, b)  y = Gemm<transB=1>(m, e)
}"""
EVERY_PASS = (
    "fold",
    "share",
    "prune:ratio=0.3",
    "prune:ratio=0.3:embeddings=true",
    "quant:mode=weights",
    "quant:mode=weights:form=nbits",
    "pack:min-bytes=64",
    "pack:min-bytes=64:bits=6",
    "half:min-bytes=0",
    "half:compute=graph",
)


@pytest.mark.parametrize("spec", EVERY_PASS)
def test_tied_embeddings_stay_tied_through_every_pass(spec: str) -> None:
    proto = model(TIED_TWICE, e=random(64, 48), w=random(48, 48), b=random(48))
    item = parse_pass(spec)
    before = prepared(item, proto)
    after, _ = apply(item, before, context_for(before))
    clean(after.graph)
    forms = [payload(constant) for constant in constants(after.graph) if constant.name.startswith("e")]
    values = [held for held in forms if int(np.prod(held.shape)) >= 64 * 48 / 2]
    assert len(values) == 1, "there are two forms of the one table"
    sizes = [sum(payload_bytes(constant) for constant in constants(each.graph)) for each in (before, after)]
    assert sizes[1] <= sizes[0] + 4096  # what decodes it may be there as well, but not the table
