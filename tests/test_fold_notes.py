"""What exporters note down in a file, and what they must not take with them when they go."""

from __future__ import annotations

import onnx
from onnx import helper

from tests.foldcase import Folded, fold, model
from tests.helpers import parse

TRACE = "/home/me/net.py(12): forward\n/home/me/train.py(7): main\n"


def noted() -> onnx.ModelProto:
    proto = parse(
        """g (float[2] x, bool c) => (float[2] y)
        { a = Neg(x)
          y = If(c) <
            then_branch = t () => (float[2] u) { u = Abs(a) },
            else_branch = e () => (float[2] v) { v = Relu(x) }> }"""
    )
    neg, choice = proto.graph.node
    neg.doc_string = TRACE
    neg.metadata_props.add(key="pkg.torch.onnx.stack_trace", value="File 'net.py', line 12")
    neg.metadata_props.add(key="namespace", value="root/net")
    neg.metadata_props.add(key="mine", value="kept")
    body = choice.attribute[0].g
    body.node[0].metadata_props.add(key="pkg.onnxscript.rewriter.rule_name", value="r")
    body.metadata_props.add(key="pkg.torch.export.ExportedProgram.graph_signature", value="s")
    proto.metadata_props.add(key="pkg.torch.onnx.version", value="2.9")
    for info in (*proto.graph.input, *proto.graph.output):
        info.metadata_props.add(key="pkg.torch.export.graph_signature.InputSpec.kind", value="USER_INPUT")
    inner = helper.make_tensor_value_info("a", onnx.TensorProto.FLOAT, [2])
    inner.metadata_props.add(key="pkg.torch.onnx.original_node_name", value="neg")
    proto.graph.value_info.append(inner)
    return proto


def test_notes_of_nodes_bodies_and_inner_tensors_go_and_all_else_stays() -> None:
    before = noted()
    done = Folded(before)
    assert done.report.metrics == {"notes": 4}
    assert [entry.key for entry in done.after.graph.node[0].metadata_props] == ["mine"]
    assert TRACE.encode() not in done.after.SerializeToString()
    text = str(done.after)
    for gone in ("stack_trace", "rule_name", 'graph_signature"', "original_node_name", "root/net"):
        assert gone not in text
    assert done.after.metadata_props == before.metadata_props
    assert list(done.after.graph.input) == list(before.graph.input)
    assert list(done.after.graph.output) == list(before.graph.output)


def test_the_model_that_was_given_keeps_its_notes() -> None:
    before = noted()
    stored = before.SerializeToString(deterministic=True)
    Folded(before)
    assert before.SerializeToString(deterministic=True) == stored


def test_notes_can_be_kept() -> None:
    assert Folded(noted(), without="notes").report.changed == 0


def test_doc_strings_that_are_no_traces_stay() -> None:
    proto = model(
        [helper.make_node("Neg", ["x"], ["y"], doc_string="Turns the sign. See net.py.")], {"x": [2]}, ["y"], []
    )
    assert Folded(proto).report.changed == 0
    assert fold("g (float[2] x) => (float[2] y) { y = Neg(x) }").report.changed == 0
