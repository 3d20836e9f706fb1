"""Import and export lose nothing; dead code goes, live code stays."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes  # noqa: F401  # registers the narrow types with numpy
import numpy as np
import onnx
import onnx_graphsurgeon as gs
import pytest
from onnx import TensorProto, helper, numpy_helper

from graphopt.errors import ModelError
from graphopt.ir.clean import clean, disconnect, sort_nodes
from graphopt.ir.exporter import unique_name
from graphopt.ir.graph import Constant, Graph, bodies, constants, payload, payload_bytes, walk_nodes
from graphopt.model import Model
from tests.helpers import assert_same_model, outputs_of, parse, random_feeds, round_trip

ELEMENT_TYPES = sorted(set(TensorProto.DataType.values()) - {TensorProto.UNDEFINED})
IF = (
    "agraph (float[2] x, bool c) => (float[2] y) { k = Neg(x) y = If(c) <"
    "then_branch = t () => (float[2] a) { %s }, else_branch = e () => (float[2] b) { %s }> }"
)


def props(holder: object, *pairs: str) -> None:
    """Add metadata to any proto that has it."""
    for pair in pairs:
        key, value = pair.split("=")
        holder.metadata_props.add(key=key, value=value)  # type: ignore[attr-defined]


def decorated() -> onnx.ModelProto:
    """Return a model with metadata and a doc string wherever a proto has room for one."""
    proto = parse(
        """
        <ir_version: 11, opset_import: ["" : 21, "local" : 3, "unused.domain" : 7], producer_name: "p",
         producer_version: "1.2", domain: "d.e", model_version: 9, doc_string: "model doc",
         metadata_props: ["a" : "1", "b" : ""]>
        agraph (float[N, 3] x, bool c) => (float[N, 3] y, float[N, 3] z)
        <float[3] w = {1, 2, 3}, float[N, 3] h>
        {
          [first] h = Add(x, w)
          g = local.twice <alpha = 3.0> (h)
          y = If(c) <
            then_branch = then_graph () => (float[N, 3] t) <float[3] v = {4, 5, 6}> { s = Mul(g, v) t = Sub(s, h) },
            else_branch = else_graph () => (float[N, 3] e) { e = Identity(x) }
          >
          [last] z = Relu(y)
        }
        <domain: "local", opset_import: ["" : 21], doc_string: "function doc">
        twice <alpha, beta: float = 2.0, gamma: ints = [1, 2]> (a) => (b)
        {
          two = Constant <value_float: float = @alpha> ()
          more = Constant <value_ints: ints = @gamma> ()
          cast = CastLike(more, a)
          summed = ReduceSum <keepdims = 0> (cast)
          m = Mul(a, two)
          b = Add(m, summed)
        }
        """
    )
    graph = proto.graph
    props(graph, "g=1")
    graph.doc_string = "graph doc"
    for number, node in enumerate(graph.node):
        props(node, f"n={number}")
        node.doc_string = f"node {number}"
        for attribute in node.attribute:
            attribute.doc_string = f"attribute of {number}"
    for tensor in graph.initializer:
        props(tensor, "t=1", "u=2")
        tensor.doc_string = "tensor doc"
    for info in (*graph.input, *graph.output, *graph.value_info):
        props(info, "v=1")
        info.doc_string = f"info {info.name}"
        info.type.denotation = "IMAGE"
        if info.type.tensor_type.shape.dim:
            info.type.tensor_type.shape.dim[0].denotation = "DATA_BATCH"
    body = graph.node[2].attribute[0].g
    props(body, "body=1")
    body.doc_string = "body doc"
    body.node[0].doc_string = "inner"
    body.initializer[0].doc_string = "inner weight"
    body.value_info.append(helper.make_tensor_value_info("s", TensorProto.FLOAT, ["N", 3], "inner info"))
    function = proto.functions[0]
    props(function, "f=1")
    props(function.node[0], "fn=1")
    names = ("a", "b", "m", "two")
    function.value_info.extend(helper.make_tensor_value_info(name, TensorProto.FLOAT, None, name) for name in names)
    function.attribute_proto[0].doc_string = "default of beta"
    proto.opset_import[1].version = 3
    return proto


def with_overload() -> onnx.ModelProto:
    proto = decorated()
    other = proto.functions.add()
    other.CopyFrom(proto.functions[0])
    proto.functions[0].overload = "first"
    other.overload = "second"
    other.doc_string = "the other"
    proto.graph.node[1].overload = "second"
    return proto


def nested() -> onnx.ModelProto:
    """Return Loop in If in Scan, each reading values of every graph around it."""
    return parse(
        """
        agraph (float[T, 2] x, bool c, int64 n) => (float[T, 2] y, float[2] last)
        <float[2] w = {1, 2}>
        {
          zero = Constant <value = float[2] {0, 0}> ()
          last, y = Scan <num_scan_inputs = 1,
          body = scan (float[2] state, float[2] row) => (float[2] out, float[2] each)
          {
            moved = Add(row, w)
            each = If(c) <then_branch = t () => (float[2] r)
              <float[2] u = {3, 4}>
              {
                yes = Constant <value = bool {1}> ()
                r = Loop(n, yes, moved) <body = loop (int64 i, bool go, float[2] carried) => (bool goes, float[2] next)
                {
                  goes = Identity(go)
                  a = Add(carried, u)
                  b = Mul(a, row)
                  d = Add(b, w)
                  next = Sub(d, state)
                }>
              },
              else_branch = e () => (float[2] q) { q = Add(moved, state) }>
            out = Add(state, each)
          }> (zero, x)
        }
        """
    )


def sparse(layout: str) -> onnx.ModelProto:
    proto = parse("agraph (float[2, 3] x) => (float[2, 3] y) { y = Add(x, s) }")
    values = numpy_helper.from_array(np.array([5, 7], np.float32), "s")
    indices = np.array([1, 5], np.int64) if layout == "linear" else np.array([[0, 1], [1, 2]], np.int64)
    proto.graph.sparse_initializer.append(
        helper.make_sparse_tensor(values, numpy_helper.from_array(indices, "where"), [2, 3])
    )
    return proto


def odd_types() -> onnx.ModelProto:
    """Return optional, sequence, map, sparse and unknown types in inputs, outputs and inner values."""
    proto = parse("agraph (float x) => (float y) { a = Identity(x) b = Identity(a) y = Identity(b) }")
    float_type = helper.make_tensor_type_proto(TensorProto.FLOAT, [None, "n", 3])
    sequence = helper.make_sequence_type_proto(float_type)
    graph = proto.graph
    graph.input.append(helper.make_value_info("maybe", helper.make_optional_type_proto(sequence)))
    graph.input.append(helper.make_value_info("many", sequence))
    graph.input.append(helper.make_value_info("map", helper.make_map_type_proto(TensorProto.INT64, float_type)))
    graph.input.append(helper.make_value_info("sparse", helper.make_sparse_tensor_type_proto(TensorProto.FLOAT, [3])))
    graph.input.append(onnx.ValueInfoProto(name="untyped"))
    graph.input.append(helper.make_tensor_value_info("unranked", TensorProto.FLOAT, None))
    graph.input.append(helper.make_tensor_value_info("scalar", TensorProto.FLOAT, []))
    opaque = graph.input.add(name="opaque")
    opaque.type.opaque_type.domain, opaque.type.opaque_type.name = "some.domain", "Thing"
    graph.value_info.append(helper.make_value_info("a", sequence))
    graph.value_info.append(onnx.ValueInfoProto(name="b"))
    return proto


def annotated() -> onnx.ModelProto:
    proto = parse(
        """agraph (float[2] x) => (float[2] y)
        <float s = {0.5}, int8 z = {0}> { q = QuantizeLinear(x, s, z) y = DequantizeLinear(q, s, z) }"""
    )
    for name in ("x", "q", "gone"):
        annotation = proto.graph.quantization_annotation.add(tensor_name=name)
        annotation.quant_parameter_tensor_names.add(key="SCALE_TENSOR", value="s")
    return proto


def trained() -> onnx.ModelProto:
    proto = parse("agraph (float[2] x) => (float[2] y) <float[2] w = {1, 2}> { y = Add(x, w) }")
    info = proto.training_info.add()
    info.algorithm.CopyFrom(parse("step (float[2] x) => (float[2] w_new) { w_new = Add(w, x) }").graph)
    info.initialization.CopyFrom(
        parse("init () => (float[2] w0) { w0 = Constant <value_floats = [1.0, 2.0]> () }").graph
    )
    info.update_binding.add(key="w", value="w_new")
    info.initialization_binding.add(key="w", value="w0")
    return proto


def multi_device() -> onnx.ModelProto:
    proto = parse('<ir_version: 11, opset_import: ["" : 21]> agraph (float[2] x) => (float[2] y) { y = Neg(x) }')
    proto.configuration.add(name="two", num_devices=2, device=["gpu0", "gpu1"])
    placed = proto.graph.node[0].device_configurations.add(configuration_id="two", pipeline_stage=1)
    spec = placed.sharding_spec.add(tensor_name="x", device=[0, 1])
    spec.sharded_dim.add(axis=0).simple_sharding.add(dim_param="x", num_shards=2)
    return proto


def opaque_attributes() -> onnx.ModelProto:
    """Return a custom node with every kind of attribute that a node can have but GRAPHS."""
    proto = parse('<ir_version: 10, opset_import: ["" : 21, "c" : 1]> agraph (float x) => (float y) { y = c.Op(x) }')
    node = proto.graph.node[0]
    tensor = numpy_helper.from_array(np.arange(3, dtype=np.float32), "inner")
    tensor.doc_string = "attribute tensor"
    indices = numpy_helper.from_array(np.array([0, 2], np.int64), "i")
    sparse_tensor = helper.make_sparse_tensor(numpy_helper.from_array(np.ones(2, np.float32), "v"), indices, [3])
    type_proto = helper.make_sequence_type_proto(helper.make_tensor_type_proto(TensorProto.FLOAT, ["n"]))
    values: dict[str, object] = {
        "f": 0.1, "i": -(2**63), "s": "text é", "raw": b"\xff\x00", "t": tensor, "sp": sparse_tensor, "tp": type_proto,
        "fs": [0.5, float("inf"), -0.0], "is": [1, 2**62], "ss": ["a", ""], "bs": [b"\xfe", b""],
        "ts": [tensor, tensor],
        "sps": [sparse_tensor], "tps": [type_proto],
        "g": parse("body () => (float r) { r = Constant <value_float = 1.0> () }").graph,
    }  # fmt: skip
    node.attribute.extend(helper.make_attribute(name, value, f"doc {name}") for name, value in values.items())
    for name, kind in (
        ("no_ints", "INTS"),
        ("no_floats", "FLOATS"),
        ("no_strings", "STRINGS"),
        ("no_tensors", "TENSORS"),
    ):
        node.attribute.add(name=name, type=onnx.AttributeProto.AttributeType.Value(kind))
    node.attribute.add(name="nan", type=onnx.AttributeProto.FLOAT, f=float("nan"), doc_string="not a number")
    node.attribute.add(name="nans", type=onnx.AttributeProto.FLOATS, floats=[float("nan")], doc_string="none of them")
    return proto


def initializer_roles() -> onnx.ModelProto:
    """Return initializers that are inputs, outputs, both, unused, empty, scalar, and only used in a body."""
    proto = parse(
        """
        agraph (float[2] x, bool c, float[2] w) => (float[2] y, float[2] k, float[2] w2, float[0] none)
        <float[2] w = {1, 2}, float[2] k = {3, 4}, float[2] w2 = {5, 6}, float[2] unused = {7, 8}, float[0] none = {},
         float scalar = {9}, float[2] deep = {1, 1}, float[2, 0, 3] hollow = {}>
        {
          a = Add(x, w)
          b = Mul(a, scalar)
          y = If(c) <then_branch = t () => (float[2] r) { r = Add(b, deep) },
                     else_branch = e () => (float[2] s) <float[2] dead = {2, 2}> { s = Identity(b) }>
        }
        """
    )
    proto.graph.value_info.append(helper.make_tensor_value_info("unused", TensorProto.FLOAT, [2], "stated"))
    proto.graph.value_info.append(helper.make_tensor_value_info("scalar", TensorProto.FLOAT, [], "stated"))
    proto.graph.value_info.append(helper.make_tensor_value_info("nowhere", TensorProto.FLOAT, [2], "a stray"))
    proto.graph.value_info.append(helper.make_tensor_value_info("x", TensorProto.FLOAT, [2], "an input, stated again"))
    return proto


def old_ir() -> onnx.ModelProto:
    """Return a model of IR version 3, where initializers must be inputs and the inputs interleave."""
    return parse(
        """<ir_version: 3, opset_import: ["" : 9]>
        agraph (float[2] w, float[2] x, float[2] k) => (float[2] y) <float[2] k = {1, 2}, float[2] w = {3, 4}>
        { a = Add(x, w) y = Mul(a, k) }"""
    )


def duplicate_names() -> onnx.ModelProto:
    proto = parse("agraph (float[2] x) => (float[2] y) { a = Neg(x) b = Neg(a) y = Neg(b) }")
    for node in proto.graph.node:
        node.name = "same"
    return proto


def passthrough() -> onnx.ModelProto:
    """Return an input that is an output too, with another doc string and other dimension names there."""
    proto = parse("agraph (float[N] x) => (float[M] x, float[N] y) { y = Neg(x) }")
    proto.graph.output[0].doc_string = "as output"
    proto.graph.input[0].doc_string = "as input"
    return proto


def captured_output() -> onnx.ModelProto:
    """Return a branch whose output is a value of the graph around it, with a type of its own there."""
    return parse(
        """agraph (float[2] x, bool c) => (float[2] y) { a = Neg(x) y = If(c) <
        then_branch = t () => (float[K] a) { }, else_branch = e () => (float[2] b) { b = Neg(a) }> }"""
    )


def empty_names() -> onnx.ModelProto:
    return parse(
        """agraph (float[1, 4] x) => (float[1, 4] y)
        <float hi = {1}>
        { a = Clip(x, , hi) b, , d = Dummy(a, ) y = Clip(b, , ) }"""
    )


def unset_and_empty() -> onnx.ModelProto:
    """Return fields that are set to nothing, which protobuf tells from fields that are not set."""
    proto = parse("agraph (float x) => (float y) <float w = {1}> { y = Add(x, w) }")
    for holder, field in (
        (proto, "producer_name"), (proto, "producer_version"), (proto, "doc_string"), (proto, "domain"),
        (proto.graph, "name"), (proto.graph, "doc_string"), (proto.graph.node[0], "name"),
        (proto.graph.node[0], "domain"), (proto.graph.node[0], "doc_string"), (proto.graph.node[0], "overload"),
        (proto.graph.initializer[0], "doc_string"), (proto.graph.input[0], "doc_string"),
    ):  # fmt: skip
        setattr(holder, field, "")
    proto.model_version = 0
    return proto


def function_details() -> onnx.ModelProto:
    """Return a function without imports of its own, doc or domain, with a body that reads the function's values."""
    proto = parse(
        """<ir_version: 10, opset_import: ["" : 21, "f" : 1]>
        agraph (float[2] x, bool c) => (float[2] y) { y = f.pick(x, c) }
        <domain: "f", opset_import: ["" : 21, "f" : 1]>
        pick (x, c) => (y)
        {
          w = Constant <value = float[2] {1, 2}> ()
          y = If(c) <then_branch = t () => (float[2] a) { a = Add(x, w) },
                     else_branch = e () => (float[2] b) <float[2] v = {3, 4}> { b = Add(x, v) }>
        }"""
    )
    return proto


def no_version(kind: str) -> onnx.ModelProto:
    proto = parse("agraph (float[2] x) => (float[2] y) { y = Neg(x) }")
    if kind == "imports":
        del proto.opset_import[:]
    elif kind == "both":
        proto.opset_import.append(helper.make_opsetid("ai.onnx", 21))
    else:
        proto.ClearField("ir_version")
    return proto


LOSSLESS: dict[str, Callable[[], onnx.ModelProto]] = {
    "decorated": decorated,
    "function overloads": with_overload,
    "function details": function_details,
    "nested bodies": nested,
    "sparse, linear indices": lambda: sparse("linear"),
    "sparse, coordinates": lambda: sparse("coordinates"),
    "types other than tensors": odd_types,
    "quantization annotations": annotated,
    "training info": trained,
    "devices": multi_device,
    "attributes of all kinds": opaque_attributes,
    "initializers in all roles": initializer_roles,
    "IR version 3": old_ir,
    "duplicate node names": duplicate_names,
    "input that is output": passthrough,
    "body output from outside": captured_output,
    "omitted inputs and outputs": empty_names,
    "empty strings": unset_and_empty,
    "no opset": lambda: no_version("imports"),
    "no IR version": lambda: no_version("ir"),
    "two names of one opset": lambda: no_version("both"),
}


@pytest.mark.parametrize("name", LOSSLESS)
def test_round_trip_is_the_identity(name: str, tmp_path: Path) -> None:
    proto = LOSSLESS[name]()
    assert_same_model(round_trip(proto, tmp_path), proto)


@pytest.mark.parametrize("name", LOSSLESS)
def test_copy_is_the_identity(name: str) -> None:
    proto = LOSSLESS[name]()
    assert_same_model(Model.from_proto(proto).copy().to_proto(), proto)


@pytest.mark.parametrize("version", range(3, onnx.IR_VERSION + 1))
def test_every_ir_version(version: int, tmp_path: Path) -> None:
    proto = old_ir()
    proto.ir_version = version
    assert_same_model(round_trip(proto, tmp_path), proto)


@pytest.mark.parametrize("form", ["raw", "typed", "attribute"])
@pytest.mark.parametrize("kind", ELEMENT_TYPES, ids=TensorProto.DataType.Name)
def test_every_element_type(kind: int, form: str, tmp_path: Path) -> None:
    """Odd lengths leave half-filled bytes in the packed types; scalars and empty tensors have none."""
    proto = parse(
        '<ir_version: 13, opset_import: ["" : 21, "c" : 1]> agraph (float x) => (float y) { y = c.Op(x, w0, w1, w2) }'
    )
    tensors = [element_tensor(kind, shape, form, f"w{number}") for number, shape in enumerate([(5,), (), (2, 0)])]
    if form == "attribute":
        del proto.graph.node[0].input[1:]
        proto.graph.node[0].attribute.extend(helper.make_attribute(tensor.name, tensor) for tensor in tensors)
    else:
        proto.graph.initializer.extend(tensors)
    assert_same_model(round_trip(proto, tmp_path), proto)
    graph = Model.from_proto(proto).graph
    held = list(graph.nodes[0].attrs.values()) if form == "attribute" else constants(graph)
    for tensor, constant in zip(tensors, held, strict=True):
        expected = numpy_helper.to_array(tensor)
        assert constant.values.dtype == expected.dtype
        assert constant.shape == constant.values.shape == expected.shape
        assert constant.values.tobytes() == expected.tobytes() or kind == TensorProto.STRING
        assert not constant.values.flags.writeable
        assert payload_bytes(constant) == stored_length(tensor)


def element_tensor(kind: int, shape: tuple[int, ...], form: str, name: str) -> onnx.TensorProto:
    count = int(np.prod(shape))
    values = [(number * 3) % 2 for number in range(count)]
    if kind == TensorProto.STRING:
        texts: list[Any] = [f"é{value}".encode() for value in values]
        return helper.make_tensor(name, kind, shape, texts)
    if form == "raw":
        return numpy_helper.from_array(
            np.array(values).reshape(shape).astype(helper.tensor_dtype_to_np_dtype(kind)), name
        )
    return helper.make_tensor(name, kind, shape, values)


def stored_length(tensor: onnx.TensorProto) -> int:
    if tensor.data_type == TensorProto.STRING:
        return sum(len(item) for item in tensor.string_data)
    return len(numpy_helper.from_array(numpy_helper.to_array(tensor)).raw_data)


def test_unknown_field_is_refused_by_name() -> None:
    proto = parse("agraph (float x) => (float y) { [here] y = Neg(x) }")
    node = proto.graph.node[0]
    node.MergeFromString(b"\xf8\x3f\x01")  # field 1023, a varint
    with pytest.raises(ModelError, match=r"node 'here' \(Neg\): fields \[1023\] are not known"):
        Model.from_proto(proto)


def test_graphs_attribute_is_refused_by_name() -> None:
    proto = parse(
        '<ir_version: 10, opset_import: ["" : 21, "c" : 1]> agraph (float x) => (float y) { [here] y = c.Op(x) }'
    )
    body = parse("b () => (float r) { r = Constant <value_float = 1.0> () }").graph
    proto.graph.node[0].attribute.append(helper.make_attribute("branches", [body]))
    with pytest.raises(ModelError, match="node 'here': attribute 'branches' has type GRAPHS"):
        Model.from_proto(proto)


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("agraph (float x) => (float y) { y = Neg(x) y = Abs(x) }", "tensor 'y' is defined more than once"),
        ("agraph (float x) => (float x) { x = Neg(x) }", "tensor 'x' is defined more than once"),
        ("agraph (float x) => (float w) <float w = {1}> { w = Neg(x) }", "tensor 'w' is defined more than once"),
        ("agraph (float x, float w) => (float w) <float w = {1}> { w = Neg(x) }", "tensor 'w' is defined more than"),
        ("agraph (float x, float x) => (float y) { y = Neg(x) }", "input 'x' is listed more than once"),
        ("agraph (float x) => (float y) <float w = {1}, float w = {2}> { y = Add(x, w) }", "initializers .'w'."),
        ("agraph (float x) => (float y) { y, y = Split(x) }", "tensor 'y' is defined more than once"),
    ],
)
def test_duplicate_definitions_are_refused(text: str, match: str) -> None:
    with pytest.raises(ModelError, match=match):
        Model.from_proto(parse(text))


def test_duplicate_function_is_refused() -> None:
    proto = function_details()
    proto.functions.append(proto.functions[0])
    with pytest.raises(ModelError, match=r"function 'f.pick' \(overload ''\) is defined more than once"):
        Model.from_proto(proto)


def test_duplicate_attribute_is_refused() -> None:
    proto = parse("agraph (float[2] x) => (float[2] y) { [here] y = Softmax <axis = 0> (x) }")
    proto.graph.node[0].attribute.append(helper.make_attribute("axis", 0))
    with pytest.raises(ModelError, match="node 'here': attribute 'axis' is given more than once"):
        Model.from_proto(proto)


def test_external_data_without_a_folder_is_refused() -> None:
    proto = parse("agraph (float[2] x) => (float[2] y) <float[2] w = {1, 2}> { y = Add(x, w) }")
    proto.graph.initializer[0].data_location = TensorProto.EXTERNAL
    proto.graph.initializer[0].external_data.add(key="location", value="w.bin")
    with pytest.raises(ModelError, match=r"tensor 'w' .* external"):
        Model.from_proto(proto)


@pytest.mark.parametrize("version", [3, 4, 8])
def test_raising_the_ir_version_keeps_weights_constant(version: int) -> None:
    """What had to be listed as an input up to version 3 would become an input of the model in version 4."""
    model = Model.from_proto(old_ir())
    model.graph.ir_version = version
    copy = model.copy()
    assert copy.interface == model.interface
    assert [tensor.name for tensor in constants(copy.graph)] == ["w", "k"]
    listed = [info.name for info in copy.to_proto().graph.input]
    assert listed == (["w", "x", "k"] if version < 4 else ["x"])


class TestConstants:
    """Values are read-only, shared, and stay stored until replaced."""

    def model(self) -> Model:
        return Model.from_proto(parse("agraph (float[2] x) => (float[2] y) <float[2] w = {1, 2}> { y = Add(x, w) }"))

    def test_looking_keeps_the_payload(self) -> None:
        constant = self.model().graph.nodes[0].inputs[1]
        held = payload(constant)
        assert constant.values.tolist() == [1, 2]
        assert payload(constant) is held

    def test_values_are_read_only(self) -> None:
        constant = self.model().graph.nodes[0].inputs[1]
        with pytest.raises(ValueError, match="read-only"):
            constant.values[0] = 5

    def test_assigned_values_are_read_only_too(self) -> None:
        """The next pass works on a copy that shares them."""
        model = self.model()
        mine = np.zeros(2, np.float32)
        model.graph.nodes[0].inputs[1].values = mine
        with pytest.raises(ValueError, match="read-only"):
            model.graph.nodes[0].inputs[1].values[0] = 5
        with pytest.raises(ValueError, match="read-only"):
            model.copy().graph.nodes[0].inputs[1].values[0] = 5
        mine[0] = 1  # the pass's own array stays its own

    def test_plain_constants_become_read_only_in_a_copy(self) -> None:
        model = self.model()
        model.graph.nodes[0].inputs[1] = gs.Constant("plain", np.zeros(2, np.float32))
        with pytest.raises(ValueError, match="read-only"):
            model.copy().graph.nodes[0].inputs[1].values[0] = 5

    def test_sparse_values(self) -> None:
        for layout in ("linear", "coordinates"):
            constant = Model.from_proto(sparse(layout)).graph.nodes[0].inputs[1]
            np.testing.assert_array_equal(constant.values, np.array([[0, 5, 0], [0, 0, 7]], np.float32))

    def test_a_new_value_is_written(self) -> None:
        model = self.model()
        model.graph.nodes[0].inputs[1].values = np.array([8, 9], np.float16)
        (tensor,) = model.to_proto().graph.initializer
        assert (tensor.name, tensor.data_type) == ("w", TensorProto.FLOAT16)
        assert numpy_helper.to_array(tensor).tolist() == [8, 9]


class TestAttributes:
    """Edited attributes are written with the type they had."""

    def node(self, text: str) -> tuple[Model, gs.Node]:
        model = Model.from_proto(parse(text))
        return model, model.graph.nodes[0]

    def test_a_changed_value_keeps_doc_and_type(self) -> None:
        proto = parse("agraph (float[2] x) => (float[2] y) { y = LeakyRelu <alpha = 0.5> (x) }")
        proto.graph.node[0].attribute[0].doc_string = "slope"
        model = Model.from_proto(proto)
        model.graph.nodes[0].attrs["alpha"] = 1
        (attribute,) = model.to_proto().graph.node[0].attribute
        assert (attribute.type, attribute.f, attribute.doc_string) == (onnx.AttributeProto.FLOAT, 1.0, "slope")

    def test_an_emptied_list_keeps_its_type(self) -> None:
        model, node = self.node("agraph (float[2] x) => (float[2] y) { y = Op <axes = [1, 2]> (x) }")
        node.attrs["axes"] = []
        (attribute,) = model.to_proto().graph.node[0].attribute
        assert (attribute.type, list(attribute.ints)) == (onnx.AttributeProto.INTS, [])

    def test_a_list_edited_in_place_is_written(self) -> None:
        model, node = self.node("agraph (float[2] x) => (float[2] y) { y = Op <axes = [1, 2]> (x) }")
        node.attrs["axes"].append(3)
        assert list(model.to_proto().graph.node[0].attribute[0].ints) == [1, 2, 3]

    def test_negative_zero_is_not_zero(self) -> None:
        model, node = self.node("agraph (float[2] x) => (float[2] y) { y = LeakyRelu <alpha = 0.0> (x) }")
        node.attrs["alpha"] = -0.0
        assert np.signbit(model.to_proto().graph.node[0].attribute[0].f)

    def test_a_list_of_numbers_keeps_its_type(self) -> None:
        model, node = self.node("agraph (float[2] x) => (float[2] y) { y = Op <scales = [1.5, 2.5]> (x) }")
        node.attrs["scales"] = [1, 2]
        (attribute,) = model.to_proto().graph.node[0].attribute
        assert (attribute.type, list(attribute.floats)) == (onnx.AttributeProto.FLOATS, [1.0, 2.0])

    def test_a_new_reference_in_a_function(self) -> None:
        model = Model.from_proto(decorated())
        node = model.graph.functions[0].nodes[0]
        node.attrs["value_float"] = gs.Node.AttributeRef("beta", float)
        (attribute,) = model.to_proto().functions[0].node[0].attribute
        assert (attribute.name, attribute.ref_attr_name, attribute.type) == ("value_float", "beta", 1)
        node.attrs["value_float"] = gs.Node.AttributeRef("gamma", list)
        with pytest.raises(ModelError, match="attribute 'value_float' refers to 'gamma' with an unknown type"):
            model.to_proto()

    def test_an_opaque_attribute_under_another_name(self) -> None:
        model = Model.from_proto(opaque_attributes())
        attributes = model.graph.nodes[0].attrs
        attributes["moved"] = attributes.pop("tp")
        found = {item.name: item for item in model.to_proto().graph.node[0].attribute}
        assert found["moved"].tp.HasField("sequence_type")
        assert "tp" not in found

    def test_a_sparse_constant_is_no_dense_attribute(self) -> None:
        model = Model.from_proto(sparse("linear"))
        model.graph.nodes[0].attrs["value"] = model.graph.nodes[0].inputs[1]
        with pytest.raises(ModelError, match="attribute 'value' holds a sparse tensor"):
            model.to_proto()

    def test_a_removed_attribute_is_gone(self) -> None:
        model, node = self.node("agraph (float[2] x) => (float[2] y) { y = LeakyRelu <alpha = 0.5> (x) }")
        del node.attrs["alpha"]
        assert not model.to_proto().graph.node[0].attribute

    def test_an_array_becomes_a_tensor(self) -> None:
        model, node = self.node("agraph (float[2] x) => (float[2] y) { y = Op(x) }")
        node.attrs["value"] = np.arange(2, dtype=np.float32)
        (attribute,) = model.to_proto().graph.node[0].attribute
        assert numpy_helper.to_array(attribute.t).tolist() == [0, 1]


class TestTypes:
    """A type that a pass changed is written, one that it forgot is left out."""

    TEXT = "agraph (float[2] x) => (float[2] y) <float[2] a> { a = Neg(x) y = Neg(a) }"

    def test_changed(self) -> None:
        model = Model.from_proto(parse(self.TEXT))
        inner = model.graph.nodes[0].outputs[0]
        inner.dtype, inner.shape = np.dtype(np.float16), [3, "n", None]
        (info,) = model.to_proto().graph.value_info
        assert info == helper.make_tensor_value_info("a", TensorProto.FLOAT16, [3, "n", None])

    def test_forgotten(self) -> None:
        model = Model.from_proto(parse(self.TEXT))
        inner = model.graph.nodes[0].outputs[0]
        inner.dtype, inner.shape = None, None
        assert not model.to_proto().graph.value_info

    def test_shape_forgotten(self) -> None:
        model = Model.from_proto(parse(self.TEXT))
        model.graph.nodes[0].outputs[0].shape = None
        (info,) = model.to_proto().graph.value_info
        assert info == helper.make_tensor_value_info("a", TensorProto.FLOAT, None)

    def test_inferred_types_are_not_written(self) -> None:
        model = Model.from_proto(parse("agraph (float[2] x) => (float[2] y) { a = Neg(x) y = Neg(a) }"))
        inner = model.graph.nodes[0].outputs[0]
        inner.dtype, inner.shape = np.dtype(np.float32), [2]
        assert not model.to_proto().graph.value_info


class TestHomes:
    """Each constant is stored once, where all its users can see it."""

    def two_branches(self) -> tuple[Model, Graph, Graph]:
        text = IF % ("a = Add(k, k)", "b = Add(k, k)")
        model = Model.from_proto(parse(text))
        first, second = bodies(model.graph.nodes[1])
        return model, first, second

    def check(self, model: Model, wanted: list[float]) -> onnx.ModelProto:
        proto = model.to_proto()
        onnx.checker.check_model(proto, full_check=True)
        x = np.array([1, 2], np.float32)
        for flag, expected in zip((True, False), wanted, strict=True):
            found = outputs_of(proto, {"x": x, "c": np.array(flag)})["y"]
            np.testing.assert_array_equal(found, expected - x)
        return proto

    def test_shared_by_branches_goes_to_the_graph_around(self) -> None:
        model, first, second = self.two_branches()
        shared = gs.Constant("shared", np.full(2, 5, np.float32))
        first.nodes[0].inputs[1] = second.nodes[0].inputs[1] = shared
        proto = self.check(model, [5, 5])
        assert [tensor.name for tensor in proto.graph.initializer] == ["shared"]
        assert not any(attribute.g.initializer for attribute in proto.graph.node[1].attribute)

    def test_used_by_one_branch_stays_in_it(self) -> None:
        model, first, second = self.two_branches()
        first.nodes[0].inputs[1] = gs.Constant("mine", np.full(2, 5, np.float32))
        second.nodes[0].inputs[1] = gs.Constant("mine", np.full(2, 7, np.float32))
        proto = self.check(model, [5, 7])
        assert [len(attribute.g.initializer) for attribute in proto.graph.node[1].attribute] == [1, 1]

    def test_declared_in_one_branch_and_used_in_both(self) -> None:
        text = IF.replace("t () => (float[2] a)", "t () => (float[2] a) <float[2] w = {5, 5}>") % (
            "a = Add(k, w)",
            "b = Add(k, k)",
        )
        model = Model.from_proto(parse(text))
        first, second = bodies(model.graph.nodes[1])
        second.nodes[0].inputs[1] = first.nodes[0].inputs[1]
        assert [tensor.name for tensor in self.check(model, [5, 5]).graph.initializer] == ["w"]

    def test_hoisting_renames_on_a_clash(self) -> None:
        """Both branches have their own w; the first one's comes to be used in both."""
        text = (
            IF.replace("t () => (float[2] a)", "t () => (float[2] a) <float[2] w = {5, 5}>")
            .replace("e () => (float[2] b)", "e () => (float[2] b) <float[2] w = {7, 7}>")
        ) % ("a = Add(k, w)", "z = Sub(w, w) q = Add(k, z) b = Add(q, z)")  # fmt: skip
        model = Model.from_proto(parse(text))
        first, second = bodies(model.graph.nodes[1])
        second.nodes[2].inputs[1] = first.nodes[0].inputs[1]
        proto = self.check(model, [5, 5])
        assert len(proto.graph.initializer) == 1

    def test_a_body_name_that_hides_an_outer_constant(self) -> None:
        """The body has a w of its own; a pass makes it read the outer w as well."""
        text = (IF.replace("=> (float[2] y) {", "=> (float[2] y) <float[2] w = {5, 5}> {", 1)) % (
            "w = Neg(k) z = Sub(w, w) a = Add(k, z)", "b = Add(k, w)")  # fmt: skip
        model = Model.from_proto(parse(text))
        first, second = bodies(model.graph.nodes[1])
        first.nodes[2].inputs[1] = second.nodes[0].inputs[1]
        self.check(model, [5, 5])

    def test_a_body_name_that_hides_an_outer_value(self) -> None:
        """As above with a computed value: what common-subexpression elimination does."""
        text = IF % ("m = Neg(k) a = Add(m, k)", "b = Add(k, k)")
        model = Model.from_proto(parse(text))
        outer = model.graph.nodes[0].outputs[0]
        first, _ = bodies(model.graph.nodes[1])
        first.nodes[0].outputs[0].name = "k"
        assert first.nodes[1].inputs[1] is outer
        found = outputs_of(model, {"x": np.ones(2, np.float32), "c": np.array(True)})["y"]
        np.testing.assert_array_equal(found, [0, 0])

    def test_new_constants_with_the_name_of_another(self) -> None:
        model = Model.from_proto(
            parse("agraph (float[2] x) => (float[2] y) <float[2] w = {1, 1}> { a = Add(x, w) y = Add(a, w) }")
        )
        model.graph.nodes[1].inputs[1] = gs.Constant("w", np.full(2, 3, np.float32))
        proto = model.to_proto()
        assert [tensor.name for tensor in proto.graph.initializer] == ["w", "w_1"]
        np.testing.assert_array_equal(outputs_of(proto, {"x": np.zeros(2, np.float32)})["y"], [4, 4])

    def test_in_functions_they_become_nodes(self) -> None:
        model = Model.from_proto(function_details())
        (function,) = model.graph.functions
        weight = gs.Constant("w", np.full(2, 10, np.float32))  # the name is taken by a Constant node
        first, _ = bodies(function.nodes[1])
        first.nodes[0].inputs[1] = weight
        function.nodes[1].inputs[0] = gs.Constant("yes", np.array(True))
        proto = model.to_proto()
        onnx.checker.check_model(proto)
        found = outputs_of(proto, {"x": np.zeros(2, np.float32), "c": np.array(False)})["y"]
        np.testing.assert_array_equal(found, [10, 10])

    def test_sparse_ones_in_functions(self) -> None:
        model = Model.from_proto(function_details())
        weight = Model.from_proto(sparse("linear")).graph.nodes[0].inputs[1]
        model.graph.functions[0].nodes[1].attrs["then_branch"].nodes[0].inputs[1] = weight
        first = model.to_proto().functions[0].node[0]
        assert (first.op_type, first.attribute[0].name) == ("Constant", "value")
        (function,) = model.graph.functions
        function.nodes[1].inputs[0] = weight
        first = model.to_proto().functions[0].node[0]
        assert (first.op_type, first.attribute[0].name) == ("Constant", "sparse_value")

    def test_a_constant_of_graph_and_function(self) -> None:
        model = Model.from_proto(function_details())
        shared = gs.Constant("both", np.full(2, 4, np.float32))
        (function,) = model.graph.functions
        function.nodes[1].attrs["then_branch"].nodes[0].inputs[1] = shared
        call = model.graph.nodes[0]
        call.inputs[0] = shared
        found = outputs_of(model.to_proto(), {"x": np.zeros(2, np.float32), "c": np.array(True)})["y"]
        np.testing.assert_array_equal(found, [8, 8])

    def test_unique_name(self) -> None:
        taken = {"a", "a_1"}
        assert [unique_name("a", taken), unique_name("a", taken), unique_name("b", taken)] == ["a_2", "a_3", "b"]


class TestClean:
    """Dead code, order and functions."""

    def cleaned(self, text: str) -> tuple[Model, int]:
        proto = parse(text)
        model = Model.from_proto(proto)
        removed = clean(model.graph)
        onnx.checker.check_model(model.to_proto())
        return model, removed

    def ops(self, model: Model) -> list[str]:
        return [node.op for node in walk_nodes(model.graph)]

    def test_dead_chain(self) -> None:
        model, removed = self.cleaned(
            "agraph (float x) => (float y) <float w = {1}> { a = Neg(x) b = Add(a, w) y = Abs(x) }"
        )
        assert (self.ops(model), removed) == (["Abs"], 2)
        assert not model.to_proto().graph.initializer

    def test_nothing_to_do(self) -> None:
        proto = nested()
        model = Model.from_proto(proto)
        assert clean(model.graph) == 0
        assert_same_model(model.to_proto(), proto)

    def test_used_only_in_a_body(self) -> None:
        model, removed = self.cleaned(IF % ("m = Neg(k) a = Add(m, m)", "b = Identity(x)"))
        assert removed == 0
        assert self.ops(model) == ["Neg", "If", "Neg", "Add", "Identity"]

    def test_used_only_as_the_output_of_a_body(self) -> None:
        model = Model.from_proto(captured_output())
        model.graph.nodes[1].attrs["else_branch"].nodes[0].inputs[0] = model.graph.inputs[0]
        assert clean(model.graph) == 0

    def test_dead_node_in_a_body_frees_what_it_read(self) -> None:
        model, removed = self.cleaned(IF % ("m = Neg(k) a = Identity(x)", "b = Identity(x)"))
        assert (self.ops(model), removed) == (["If", "Identity", "Identity"], 2)

    def test_dead_node_with_bodies_counts_and_frees_all(self) -> None:
        text = (IF % ("a = Add(k, k)", "b = Identity(x)")).replace(
            "float[2] y) {", "float[2] z) <float[2] w = {1, 2}> { z = Abs(x)", 1
        )
        model, removed = self.cleaned(text.replace("a = Add(k, k)", "a = Add(k, w)"))
        assert (self.ops(model), removed) == (["Abs"], 4)
        assert not model.graph.inputs[0].outputs[1:]
        assert not model.to_proto().graph.initializer

    def test_unused_output_of_a_live_node_stays(self) -> None:
        text = "agraph (float[4] x) => (float[2] y) { y, z = Split <num_outputs = 2> (x) }"
        model, removed = self.cleaned(text)
        assert removed == 0
        assert list(model.to_proto().graph.node[0].output) == ["y", "z"]

    def test_inner_initializers(self) -> None:
        text = IF.replace("t () => (float[2] a)", "t () => (float[2] a) <float[2] v = {1, 1}>") % (
            "a = Identity(k)",
            "b = Identity(k)",
        )
        model, _ = self.cleaned(text)
        assert not model.to_proto().graph.node[1].attribute[0].g.initializer

    def test_overridable_initializers_stay(self) -> None:
        text = "agraph (float x, float w) => (float y) <float w = {1}> { y = Neg(x) }"
        model, _ = self.cleaned(text)
        assert [tensor.name for tensor in model.to_proto().graph.initializer] == ["w"]

    def test_annotations_of_dead_tensors_go(self) -> None:
        model = Model.from_proto(annotated())
        clean(model.graph)
        names = [item.tensor_name for item in model.to_proto().graph.quantization_annotation]
        assert names == ["x", "q"]

    def test_stray_types_go(self) -> None:
        model = Model.from_proto(initializer_roles())
        clean(model.graph)
        assert [info.name for info in model.to_proto().graph.value_info] == ["scalar"]

    def test_functions(self) -> None:
        text = """<ir_version: 10, opset_import: ["" : 21, "f" : 1]>
        agraph (float x, bool c) => (float y) { y = If(c) <then_branch = t () => (float a) { a = f.outer(x) },
                                                  else_branch = e () => (float b) { b = Neg(x) }> }
        <domain: "f", opset_import: ["" : 21, "f" : 1]> outer (p) => (q) { dead = Abs(p) q = f.inner(p) }
        <domain: "f", opset_import: ["" : 21]> inner (p) => (q) { q = Neg(p) }
        <domain: "f", opset_import: ["" : 21, "f" : 1]> unused (p) => (q) { q = f.inner(p) }"""
        model, removed = self.cleaned(text)
        assert removed == 1
        assert [function.name for function in model.graph.functions] == ["outer", "inner"]

    def test_overloads(self) -> None:
        model = Model.from_proto(with_overload())
        clean(model.graph)
        assert [function.overload for function in model.to_proto().functions] == ["second"]

    def test_order_is_kept_where_legal(self) -> None:
        proto = parse("agraph (float x) => (float y) { y = Add(b, a) a = Neg(x) b = Abs(x) }")
        model = Model.from_proto(proto)
        sort_nodes(model.graph)
        assert [node.op for node in model.graph.nodes] == ["Neg", "Abs", "Add"]

    def test_order_in_and_through_bodies(self) -> None:
        proto = parse(
            """agraph (float x, bool c) => (float y) {
            y = If(c) <then_branch = t () => (float a) { a = Neg(m) m = Abs(k) },
                       else_branch = e () => (float b) { b = Neg(k) }>
            k = Neg(x) }"""
        )
        model = Model.from_proto(proto)
        sort_nodes(model.graph)
        assert [node.op for node in walk_nodes(model.graph)] == ["Neg", "If", "Abs", "Neg", "Neg"]
        onnx.checker.check_model(model.to_proto())

    @pytest.mark.parametrize(
        "text",
        [
            "agraph (float x) => (float y) { [here] y = Add(x, y) }",
            "agraph (float x) => (float y) { [here] a = Add(x, b) b = Neg(a) y = Neg(b) }",
            """agraph (bool c) => (float y) { [here] y = If(c) <then_branch = t () => (float a) { a = Neg(y) },
            else_branch = e () => (float b) { b = Neg(y) }> }""",
        ],
    )
    def test_cycles_are_refused(self, text: str) -> None:
        model = Model.from_proto(parse(text))
        with pytest.raises(ModelError, match=r"node 'here' \(\w+\) depends on its own output"):
            sort_nodes(model.graph)

    def test_disconnect(self) -> None:
        model = Model.from_proto(parse(IF % ("a = Add(k, k)", "b = Identity(k)")))
        captured = model.graph.nodes[0].outputs[0]
        disconnect(model.graph.nodes[1])
        assert not captured.outputs

    def test_many_nodes_in_a_row(self) -> None:
        """No recursion over nodes: long chains exist."""
        count = 5000
        nodes = [helper.make_node("Neg", [f"t{i}"], [f"t{i + 1}"]) for i in range(count)]
        ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in ("t0", f"t{count}")]
        graph = helper.make_graph(nodes[::-1], "long", ends[:1], ends[1:])
        model = Model.from_proto(helper.make_model(graph))
        assert clean(model.graph) == 0
        assert model.graph.nodes[0].inputs[0].name == "t0"
        assert clean(model.copy().graph) == 0


def test_walk_order_and_feeds() -> None:
    """The nested example really runs, so the other tests compare something real."""
    proto = nested()
    feeds = random_feeds(proto) | {"n": np.array(3), "c": np.array(True)}
    before = outputs_of(proto, feeds)
    after = outputs_of(Model.from_proto(proto).copy(), feeds)
    np.testing.assert_array_equal(before["y"], after["y"])
    assert isinstance(Model.from_proto(proto).graph.nodes[0].outputs[0].inputs[0], gs.Node)
    assert all(isinstance(item, Constant) for item in constants(Model.from_proto(proto).graph))
