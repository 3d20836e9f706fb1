"""A model written in pieces is the model that protobuf writes at once."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from graphopt.filesize import Scale
from graphopt.ir.exporter import export_graph
from graphopt.ir.payload import StoredTensor
from graphopt.ir.wire import Pieces, TensorMessage
from graphopt.model import Model


def tensors() -> list[onnx.TensorProto]:
    """Return weights on both sides of the limit, of all kinds of storage."""
    random = np.random.default_rng(0)
    typed = helper.make_tensor("typed", TensorProto.FLOAT, [600], random.normal(size=600).tolist())
    documented = numpy_helper.from_array(random.normal(size=(30, 20)), "documented")
    documented.doc_string = "of doubles"
    return [
        numpy_helper.from_array(random.normal(size=(64, 65)).astype(np.float32), "large"),
        numpy_helper.from_array(np.arange(3), "small"),
        typed,
        documented,
        numpy_helper.from_array(random.integers(-8, 8, 3001).astype(ml_dtypes.int4), "packed"),
        numpy_helper.from_array(np.empty((0, 4), np.float32), "none"),
        numpy_helper.from_array(random.normal(size=2**14).astype(np.float32), "long"),
    ]


def model() -> Model:
    """Return a model whose main graph and whose body hold weights."""
    branch = helper.make_graph(
        [helper.make_node("Identity", ["inner"], ["out"])],
        "branch",
        [],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, [400])],
        [numpy_helper.from_array(np.linspace(0, 1, 400, dtype=np.float32), "inner")],
    )
    weights = tensors()
    nodes = [helper.make_node("Identity", [weight.name], [f"{weight.name}_out"]) for weight in weights]
    nodes.append(helper.make_node("If", ["condition"], ["chosen"], then_branch=branch, else_branch=branch))
    outputs = [helper.make_empty_tensor_value_info(f"{weight.name}_out") for weight in weights]
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("condition", TensorProto.BOOL, [])], outputs, weights
    )
    return Model.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10))


def joined(source: Model) -> bytes:
    pieces = Pieces()
    return b"".join(pieces.of(export_graph(source.graph, source.residue, pieces.write)))


def test_the_pieces_are_the_model() -> None:
    source = model()
    assert onnx.ModelProto.FromString(joined(source)) == source.to_proto()
    assert joined(source) == joined(source)
    assert len(joined(source)) == source.to_proto().ByteSize() == Scale(None).weigh(source).nbytes


@pytest.mark.parametrize("tensor", tensors(), ids=lambda tensor: tensor.name)
@pytest.mark.parametrize("renamed", [False, True])
def test_a_message_is_as_long_as_it_says(tensor: onnx.TensorProto, renamed: bool) -> None:
    name = "another name" * 20 if renamed else tensor.name
    stored = StoredTensor(tensor)
    for values in (stored, stored.load()):
        message = TensorMessage(name, values)
        content = b"".join(message.pieces())
        assert len(content) == len(message)
        read = onnx.TensorProto.FromString(content)
        assert read.name == name
        np.testing.assert_array_equal(numpy_helper.to_array(read), numpy_helper.to_array(tensor))


def test_no_tensor_of_the_file_passes_for_a_stand_in() -> None:
    weight = numpy_helper.from_array(np.arange(2.0), "w")
    weight.external_data.add(key="location", value="0")
    info = helper.make_tensor_value_info("y", TensorProto.DOUBLE, [2])
    graph = helper.make_graph([helper.make_node("Identity", ["w"], ["y"])], "g", [], [info], [weight])
    source = Model.from_proto(helper.make_model(graph))
    assert onnx.ModelProto.FromString(joined(source)) == source.to_proto()
