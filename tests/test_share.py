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
from graphopt.model import Model
from graphopt.passes.share import Share
from graphopt.reader import load
from tests.helpers import assert_same_outputs, outputs_of, parse, random_feeds

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
