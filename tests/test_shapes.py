"""Inferred types: where they reach, what they keep, and that nothing breaks them."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import pytest
from onnx import TensorProto, helper, numpy_helper

from graphopt.ir.graph import bodies
from graphopt.model import Model
from graphopt.shapes import TensorType, infer_shapes, shapes_for, tensor_types
from tests.helpers import parse


def types_of(text: str) -> tuple[Model, dict[str, gs.Tensor]]:
    """Return a model with inferred types, and the tensors that its nodes make, by name."""
    model = Model.from_proto(parse(text))
    assert infer_shapes(model) == ()
    return model, {tensor.name: tensor for node in model.graph.nodes for tensor in node.outputs}


def test_inner_tensors_get_types() -> None:
    _, made = types_of(
        "g (float[N, 3] x) => (float[N, 2] y) <float[3, 2] w> { a = MatMul(x, w) y = Relu(a) }".replace(
            "<float[3, 2] w>", "<float[3, 2] w = {1, 2, 3, 4, 5, 6}>"
        )
    )
    assert (made["a"].dtype, made["a"].shape) == (np.float32, ["N", 2])


def test_large_weights_need_not_be_seen() -> None:
    weight = numpy_helper.from_array(np.zeros((3, 1000), np.float32), "w")
    nodes = [helper.make_node("MatMul", ["x", "w"], ["a"]), helper.make_node("Relu", ["a"], ["y"])]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [weight],
    )
    model = Model.from_proto(helper.make_model(graph))
    infer_shapes(model)
    assert model.graph.nodes[0].outputs[0].shape == ["N", 1000]


def test_what_the_file_states_is_kept_and_outputs_are_not_touched() -> None:
    proto = parse("g (float[4, 3] x) => (float y) { a = Relu(x) b = Relu(a) y = Relu(b) }")
    proto.graph.output[0].type.tensor_type.ClearField("shape")
    proto.graph.value_info.append(helper.make_tensor_value_info("a", TensorProto.FLOAT, ["M", 3]))
    model = Model.from_proto(proto)
    before = model.interface
    infer_shapes(model)
    first, second, last = (node.outputs[0] for node in model.graph.nodes)
    assert (first.shape, second.shape, last.shape) == (["M", 3], [4, 3], None)
    assert model.interface == before


def test_inferred_types_do_not_go_into_the_file() -> None:
    proto = parse("g (float[4, 3] x) => (float[4, 3] y) { a = Relu(x) y = Relu(a) }")
    proto.graph.value_info.append(helper.make_tensor_value_info("a", TensorProto.FLOAT, None))
    model = Model.from_proto(proto)
    infer_shapes(model)
    assert model.to_proto().ByteSize() <= proto.ByteSize()


def test_bodies_get_types_and_see_the_weights_around_them() -> None:
    model, _ = types_of(
        """g (bool c, float[2, 3] x) => (float[A, B, C] y) <int64[1] axis = {0}> {
            y = If(c) <
                then_branch = t () => (float[P, Q, R] a) { u = Unsqueeze(x, axis) a = Neg(u) },
                else_branch = e () => (float[P, Q, R] b) { v = Unsqueeze(x, axis) b = Abs(v) }
            >
        }"""
    )
    inner = [body.nodes[0].outputs[0].shape for body in bodies(model.graph.nodes[0])]
    assert inner == [[1, 2, 3], [1, 2, 3]]


def test_shapes_travel_as_values() -> None:
    _, made = types_of(
        """g (float[2, 3, 4] x) => (float[M, N] y) <int64 i = {0}, int64[1] axes = {0}, int64[1] rest = {-1}> {
            s = Shape(x) d = Gather(s, i) u = Unsqueeze(d, axes) t = Concat<axis = 0>(u, rest)
            r = Reshape(x, t) y = Relu(r)
        }"""
    )
    assert made["r"].shape == [2, 12]


def test_stale_types_are_forgotten_on_request() -> None:
    proto = parse("g (float[N, 3] x) => (float[1, 3] y) { a = Relu(x) y = Relu(a) }")
    proto.graph.value_info.append(helper.make_tensor_value_info("a", TensorProto.FLOAT, [1, 3]))
    model = Model.from_proto(proto)
    inner = model.graph.nodes[0].outputs[0]
    assert tensor_types(model)[0][inner] == TensorType(np.dtype(np.float32), (1, 3))
    assert tensor_types(model, trust_file=False)[0][inner] == TensorType(np.dtype(np.float32), ("N", 3))


def test_types_of_special_operators_are_all_there_is_to_know() -> None:
    proto = parse(
        """<ir_version: 8, opset_import: ["": 17, "com.microsoft": 1]>
        g (float[N, 3] x) => (float[N, 3] y) { a = com.microsoft.QuickGelu(x) y = Relu(a) }"""
    )
    proto.graph.value_info.append(helper.make_tensor_value_info("a", TensorProto.FLOAT, ["N", 3]))
    model = Model.from_proto(proto)
    assert tensor_types(model, trust_file=False)[0][model.graph.nodes[0].outputs[0]].shape == ("N", 3)


def test_vague_symbols_say_nothing() -> None:
    for symbol, kept in (("batch", "batch"), ("DynamicDimension.0", "DynamicDimension.0"), ("?", None), ("None", None)):
        proto = parse("g (float[N, 3] x) => (float[N, 3] y) { a = Relu(x) y = Relu(a) }")
        proto.graph.input[0].type.tensor_type.shape.dim[0].dim_param = symbol
        model = Model.from_proto(proto)
        shape = tensor_types(model, trust_file=False)[0][model.graph.inputs[0]].shape
        assert shape is not None
        assert shape[0] == kept or (kept is None and str(shape[0]).startswith("unk__"))


def test_a_model_that_inference_refuses_keeps_its_unknown_types() -> None:
    proto = parse("g (float[2, 3] x) => (float[2, 3] y) { a = Relu(x) y = MatMul(a, a) }")
    model = Model.from_proto(proto)
    infer_shapes(model)  # whatever it finds, it must come back
    unknown = parse('<ir_version: 8, opset_import: ["nobody": 3]>\ng (float[2] x) => (float y) { y = nobody.Op(x) }')
    model = Model.from_proto(unknown)
    infer_shapes(model)
    assert model.graph.nodes[0].outputs[0].name == "y"


def test_refusals_are_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(proto: onnx.ModelProto, *, data_prop: bool) -> onnx.ModelProto:
        raise onnx.shape_inference.InferenceError(f"no shapes\nwith data_prop={data_prop}")

    model = Model.from_proto(parse("g (float[2] x) => (float[2] y) { a = Relu(x) y = Relu(a) }"))
    monkeypatch.setattr(onnx.shape_inference, "infer_shapes", refuse)
    assert infer_shapes(model) == ("no shapes with data_prop=True", "no shapes with data_prop=False")
    assert model.graph.nodes[0].outputs[0].shape is None


def test_constants_know_themselves() -> None:
    model = Model.from_proto(parse("g (float[2] x) => (float[2] y) <float[2] w = {1, 2}> { y = Add(x, w) }"))
    types, _ = tensor_types(model)
    assert types[model.graph.nodes[0].inputs[1]] == TensorType(np.dtype(np.float32), (2,))
    assert types[gs.Variable("stranger")] == TensorType()


def test_shapes_for_a_sample() -> None:
    model = Model.from_proto(
        parse("g (float[N, 3] x, float[M] z) => (float[N, 6] y) { a = Concat<axis = 1>(x, x) y = Relu(a) }")
    )
    assert "a" not in shapes_for(model)
    found = shapes_for(model, {"x": np.zeros((5, 3), np.float32), "z": np.zeros(7, np.float32)})
    assert (found["a"], found["y"], found["z"]) == ((5, 6), (5, 6), (7,))


def test_names_with_two_shapes_are_left_out() -> None:
    proto = parse(
        """g (bool c, float[2] x) => (float[K] y) {
            y = If(c) <
                then_branch = t () => (float[K] a) { n = Neg(x) a = Abs(n) },
                else_branch = e () => (float[K] b) { n = Concat<axis = 0>(x, x) b = Abs(n) }
            >
        }"""
    )
    assert "n" not in shapes_for(Model.from_proto(proto))


def test_external_opsets_and_empty_models_do_not_break_it() -> None:
    empty = helper.make_model(helper.make_graph([], "g", [], []), opset_imports=[helper.make_opsetid("", 17)])
    assert infer_shapes(Model.from_proto(empty)) == ()
    future = helper.make_model(
        helper.make_graph(
            [helper.make_node("Relu", ["x"], ["y"])],
            "g",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2])],
            [onnx.ValueInfoProto(name="y")],
        ),
        opset_imports=[helper.make_opsetid("", 999)],
    )
    infer_shapes(Model.from_proto(future))
