"""Copies, fingerprints, skeletons and interfaces."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import pytest
from onnx import TensorProto, helper, numpy_helper

from graphopt.errors import ModelError
from graphopt.ir.graph import constants, payload
from graphopt.model import Model
from graphopt.reader import load
from tests.helpers import assert_same_model, parse, write
from tests.test_ir import IF, LOSSLESS, annotated, decorated, initializer_roles, nested, odd_types

VALID = {
    name: make
    for name, make in LOSSLESS.items()
    if name in {"decorated", "function overloads", "function details", "nested bodies", "sparse, linear indices",
                "sparse, coordinates", "quantization annotations", "devices", "initializers in all roles",
                "IR version 3", "duplicate node names"}
}  # fmt: skip


def large(count: int = 1000) -> onnx.ModelProto:
    """Return x + w for a w large enough to be kept out of skeletons."""
    proto = parse("agraph (float[N] x) => (float[N] y) { y = Add(x, w) }")
    proto.graph.initializer.append(numpy_helper.from_array(np.arange(count, dtype=np.float32), "w"))
    return proto


def edits() -> dict[str, Callable[[Model], None]]:
    """Return ways to change a copy of the model in `edited`."""

    def attribute(model: Model) -> None:
        model.graph.nodes[0].attrs["alpha"] = 0.25

    def list_attribute(model: Model) -> None:
        model.graph.nodes[1].attrs["axes"].append(7)

    def weight(model: Model) -> None:
        model.graph.nodes[2].inputs[1].values = np.array([9, 9], np.float32)

    def tensor_attribute(model: Model) -> None:
        model.graph.nodes[3].attrs["value"].values = np.array([9, 9], np.float32)

    def name(model: Model) -> None:
        model.graph.nodes[0].outputs[0].name = "renamed"

    def remove(model: Model) -> None:
        model.graph.nodes.pop()

    def rewire(model: Model) -> None:
        model.graph.nodes[2].inputs[0] = model.graph.inputs[0]

    def shape(model: Model) -> None:
        model.graph.inputs[0].shape[0] = 5

    def inner(model: Model) -> None:
        model.graph.nodes[4].attrs["then_branch"].nodes[0].op = "Abs"

    def opset(model: Model) -> None:
        model.graph.opset = 22

    def function(model: Model) -> None:
        model.graph.functions[0].nodes[0].op = "Abs"

    def stored_type(model: Model) -> None:
        model.graph.nodes[2].inputs[1].values = np.array([1, 2], np.float64)

    return {name: made for name, made in locals().items() if callable(made)}


def edited() -> onnx.ModelProto:
    return parse(
        """<ir_version: 10, opset_import: ["" : 21, "f" : 1]>
        agraph (float[2] x, bool c) => (float[2] y) <float[2] w = {1, 2}>
        {
          a = LeakyRelu <alpha = 0.5> (x)
          b = f.call <axes = [1, 2]> (a)
          d = Add(b, w)
          e = Constant <value = float[2] {3, 4}> ()
          y = If(c) <then_branch = t () => (float[2] p) { p = Neg(d) },
                     else_branch = s () => (float[2] q) { q = Add(d, e) }>
        }
        <domain: "f", opset_import: ["" : 21]> call <axes> (p) => (q) { q = Neg(p) }"""
    )


class TestCopy:
    """A copy is equal, and on its own."""

    @pytest.mark.parametrize("name", LOSSLESS)
    def test_equal(self, name: str) -> None:
        model = Model.from_proto(LOSSLESS[name]())
        assert model.copy().fingerprint() == model.fingerprint()

    @pytest.mark.parametrize("name", edits())
    def test_edits_do_not_show_in_the_original(self, name: str) -> None:
        proto = edited()
        model = Model.from_proto(proto)
        copy = model.copy()
        edits()[name](copy)
        assert_same_model(model.to_proto(), proto)
        assert copy.to_proto() != proto
        assert copy.fingerprint() != model.fingerprint()

    @pytest.mark.parametrize("name", edits())
    def test_edits_of_the_original_do_not_show_in_the_copy(self, name: str) -> None:
        proto = edited()
        model = Model.from_proto(proto)
        copy = model.copy()
        edits()[name](model)
        assert_same_model(copy.to_proto(), proto)

    def test_weights_are_shared(self) -> None:
        model = Model.from_proto(edited())
        copy = model.copy()
        for ours, theirs in zip(constants(model.graph), constants(copy.graph), strict=True):
            assert payload(ours) is payload(theirs)
        assert payload(model.graph.nodes[3].attrs["value"]) is payload(copy.graph.nodes[3].attrs["value"])

    def test_the_rest_of_the_model_comes_along(self, tmp_path: Path) -> None:
        model = load(write(decorated(), tmp_path / "m.onnx"))
        copy = model.copy()
        assert (copy.path, copy.uses_external_data) == (model.path, model.uses_external_data)
        assert copy.to_proto().metadata_props == model.to_proto().metadata_props

    def test_of_what_a_pass_made(self) -> None:
        """Plain GraphSurgeon objects survive, with their types."""
        x = gs.Variable("x", np.dtype(np.float32), ["N", 2])
        y = gs.Variable("y", np.dtype(np.float32), ["N", 2])
        weight = gs.Constant("w", np.ones(2, np.float32))
        graph = gs.Graph([gs.Node("Add", "add", inputs=[x, weight], outputs=[y])], [x], [y], opset=21, ir_version=10)
        copy = Model(graph).copy()
        onnx.checker.check_model(copy.to_proto(), full_check=True)
        assert copy.interface.inputs[0].shape == ("N", 2)
        assert copy.copy().fingerprint() == copy.fingerprint()


class TestFingerprint:
    """Equal digests mean equal models."""

    def test_it_sees_values_that_replace_each_other(self) -> None:
        """The memory of an array that is gone is used again; its address says nothing."""
        model = Model.from_proto(large())
        seen = set()
        for value in range(50):
            model.graph.nodes[0].inputs[1].values = np.full(1000, value, np.float32)
            seen.add(model.fingerprint())
        assert len(seen) == 50

    def test_equal_values_are_equal(self) -> None:
        model = Model.from_proto(large())
        prints = set()
        for _ in range(3):
            model.graph.nodes[0].inputs[1].values = np.ones((10, 100), np.float32).T
            prints.add(model.fingerprint())
        assert len(prints) == 1

    @pytest.mark.parametrize(
        "values",
        [np.array(3.0, np.float32), np.zeros((0, 2), np.float32), np.array(["a", "b"], object), np.array(True)],
    )
    def test_any_values(self, values: np.ndarray) -> None:
        model = Model.from_proto(large())
        before = model.fingerprint()
        model.graph.nodes[0].inputs[1].values = values
        assert model.fingerprint() != before
        assert model.fingerprint() == model.copy().fingerprint()

    def test_it_does_not_load_external_data(self, tmp_path: Path) -> None:
        path = tmp_path / "m.onnx"
        Model.from_proto(large()).save(path, external_data=True)
        model = load(path)
        with (tmp_path / "m.onnx.data").open("r+b") as file:
            file.truncate(0)  # whoever reads it now fails
        assert model.fingerprint() == model.copy().fingerprint()
        model.skeleton()
        with pytest.raises(ModelError):
            model.to_proto()


class TestSkeleton:
    """A stand-in without large weights that the checker takes for the model."""

    @pytest.mark.parametrize("name", VALID)
    def test_of_valid_models_is_valid(self, name: str) -> None:
        proto = VALID[name]()
        onnx.checker.check_model(proto)
        onnx.checker.check_model(Model.from_proto(proto).skeleton())

    def test_large_weights_become_inputs(self) -> None:
        skeleton = Model.from_proto(large()).skeleton()
        assert [info.name for info in skeleton.graph.input] == ["x", "w"]
        assert not skeleton.graph.initializer
        onnx.checker.check_model(skeleton, full_check=True)

    def test_small_ones_stay(self) -> None:
        skeleton = Model.from_proto(large(10)).skeleton()
        assert [tensor.name for tensor in skeleton.graph.initializer] == ["w"]

    @pytest.mark.parametrize("version", [3, 8])
    def test_overridable_weights_are_listed_once(self, version: int) -> None:
        proto = large()
        proto.graph.input.append(helper.make_tensor_value_info("w", TensorProto.FLOAT, [1000]))
        proto.ir_version = version
        proto.opset_import[0].version = 13
        skeleton = Model.from_proto(proto).skeleton()
        assert [info.name for info in skeleton.graph.input] == ["x", "w"]
        onnx.checker.check_model(skeleton)

    def test_weights_of_bodies(self) -> None:
        """Two branches with a weight of the same name, of different sizes; and one that both can see."""
        proto = parse(IF % ("a = ReduceSum <keepdims = 0> (w) ", "b = Add(k, k)"))
        branches = [attribute.g for attribute in proto.graph.node[1].attribute]
        for size, branch in zip((1000, 2000), branches, strict=True):
            branch.initializer.append(numpy_helper.from_array(np.ones(size, np.float32), "w"))
            branch.initializer.append(numpy_helper.from_array(np.ones(size, np.float32), f"own{size}"))
            branch.node.append(helper.make_node("ReduceMax", [f"own{size}"], [f"unused{size}"]))
        onnx.checker.check_model(proto)
        skeleton = Model.from_proto(proto).skeleton()
        onnx.checker.check_model(skeleton)
        assert "own1000" in [info.name for info in skeleton.graph.input]

    def test_what_the_model_says_about_its_weights_is_ignored(self) -> None:
        """No doc string makes a weight disappear."""
        proto = large(10)
        proto.graph.initializer[0].doc_string = "graphopt:payload"
        assert len(Model.from_proto(proto).skeleton().graph.initializer) == 1

    def test_invalid_models_stay_invalid(self) -> None:
        proto = large()
        proto.graph.node[0].op_type = "NoSuchOperator"
        with pytest.raises(onnx.checker.ValidationError, match="NoSuchOperator"):
            onnx.checker.check_model(Model.from_proto(proto).skeleton())


class TestInterface:
    """What a caller sees."""

    def test_names_types_and_shapes(self) -> None:
        interface = Model.from_proto(decorated()).interface
        assert [(spec.name, spec.dtype, spec.shape) for spec in interface.inputs] == [
            ("x", np.dtype(np.float32), ("N", 3)), ("c", np.dtype(bool), ())]  # fmt: skip
        assert [spec.name for spec in interface.outputs] == ["y", "z"]

    def test_other_types(self) -> None:
        specs = {spec.name: spec for spec in Model.from_proto(odd_types()).interface.inputs}
        assert specs["many"].dtype is None
        assert specs["unranked"].shape is None
        assert specs["scalar"].shape == ()

    def test_weights_that_a_caller_may_override(self) -> None:
        assert [spec.name for spec in Model.from_proto(initializer_roles()).interface.inputs] == ["x", "c", "w"]
        proto = LOSSLESS["IR version 3"]()
        assert [spec.name for spec in Model.from_proto(proto).interface.inputs] == ["x"]

    def test_it_notices_any_change(self) -> None:
        model = Model.from_proto(decorated())
        before = model.interface
        assert model.copy().interface == before
        model.graph.inputs[0].shape = [1, 3]
        assert model.interface != before

    def test_restated_output(self) -> None:
        """An input that is an output too is stated twice; the interface has both statements."""
        interface = Model.from_proto(LOSSLESS["input that is output"]()).interface
        assert interface.outputs[0].proto != interface.inputs[0].proto
        assert b"as output" in interface.outputs[0].proto


class TestFigures:
    """Counts without loading."""

    def test_nodes(self) -> None:
        assert Model.from_proto(nested()).node_count == 13
        assert Model.from_proto(decorated()).node_count == 13

    def test_weights(self) -> None:
        assert Model.from_proto(large()).weight_bytes == 4000
        assert Model.from_proto(annotated()).weight_bytes == 5

    def test_opset(self) -> None:
        assert Model.from_proto(large()).opset == 21
        assert Model.from_proto(LOSSLESS["no opset"]()).opset == 1
