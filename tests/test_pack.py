"""Packing: codes, decoders and forms are exact; edges stay as they are; size mode keeps its limit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from graphopt.base import PassReport
from graphopt.cli import main
from graphopt.compensate.gptq import inverse_factor
from graphopt.compensate.grid import nearest
from graphopt.context import Context
from graphopt.evaluate import Drop, Evaluator
from graphopt.ir.clean import clean
from graphopt.ir.graph import constants, tensor_names
from graphopt.model import Model
from graphopt.passes.fold import Fold
from graphopt.passes.pack import Pack
from graphopt.passes.pack.allocate import allocate, fewest_bits, predicted_bits
from graphopt.passes.pack.bits import bits_for, pack_codes, packed_bytes, unpack_codes
from graphopt.passes.pack.decoders import DecoderBuilder
from graphopt.passes.pack.forms import Form, forms
from graphopt.passes.pack.scales import find_scales
from graphopt.passes.pack.sensitivity import OutputLoss
from graphopt.passes.pack.shrink import shrink, start_scale
from graphopt.passes.pack.sizemode import SizeMode
from graphopt.passes.pack.sizes import constant_bytes, node_bytes
from graphopt.passes.pack.storage import Store
from graphopt.passes.pack.units import find_units
from graphopt.passes.pack.unpack import unpack
from graphopt.pipeline import Pipeline
from graphopt.progress import SilentProgress
from graphopt.reader import load
from graphopt.runtime.session import op_counts, open_session, optimized_model
from graphopt.samples import open_samples
from graphopt.spec import parse_pass
from graphopt.targets import get_target

ROWS, COLUMNS = 48, 40


def rng() -> np.random.Generator:
    return np.random.default_rng(11)


def graph_model(
    nodes: list[onnx.NodeProto],
    weights: dict[str, np.ndarray],
    outputs: dict[str, list[int]],
    *,
    inputs: tuple[Any, ...] = (("x", TensorProto.FLOAT, [1, ROWS]),),
    opset: int = 17,
    ir_version: int = 8,
) -> Model:
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info(*item) for item in inputs],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in outputs.items()],
        [numpy_helper.from_array(values, name) for name, values in weights.items()],
    )
    return Model.from_proto(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=ir_version)
    )


def context_for(model: Model, samples: Any = None, max_drop: float = 0.01) -> Context:
    target = get_target("cpu-avx2")
    return Context(target, Evaluator(model, target, samples=samples), samples, max_drop=max_drop)


def packed(model: Model, text: str = "pack", samples: Any = None, max_drop: float = 0.01) -> tuple[Model, PassReport]:
    """Return a packed copy, cleaned and checked, and the report."""
    result = model.copy()
    report = parse_pass(text).run(result, context_for(model, samples, max_drop))
    clean(result.graph)
    sparse = len(result.to_proto().graph.sparse_initializer)  # whose shapes ONNX's inference takes for those of values
    onnx.checker.check_model(result.to_proto(), full_check=not sparse)
    return result, report


def feeds() -> dict[str, np.ndarray]:
    return {"x": rng().normal(size=(1, ROWS)).astype(np.float32)}


def run(model: Model, optimize: bool = False, **more: np.ndarray) -> dict[str, Any]:
    with open_session(model, optimize=optimize) as session:
        return session.run({**feeds(), **more})


def palette(count: int, dtype: Any = np.float32) -> np.ndarray:
    levels = rng().normal(size=count).astype(dtype)
    codes = np.concatenate([np.arange(count), rng().integers(0, count, ROWS * COLUMNS - count)])
    return np.asarray(levels[codes].reshape(ROWS, COLUMNS))


def pruned(values: np.ndarray, part: float = 0.8) -> np.ndarray:
    return np.where(rng().random(values.shape) < part, 0, values).astype(values.dtype)


def half() -> np.ndarray:
    return rng().normal(size=(ROWS, COLUMNS)).astype(np.float16).astype(np.float32)


def normal() -> np.ndarray:
    return rng().normal(size=(ROWS, COLUMNS)).astype(np.float32)


def gridded(axis: int) -> np.ndarray:
    whole = rng().integers(-127, 128, (ROWS, COLUMNS)).astype(np.float32)
    return whole * rng().uniform(0.001, 0.1, (ROWS, 1) if axis == 0 else (1, COLUMNS)).astype(np.float32)


def same_bits(left: np.ndarray, right: np.ndarray) -> bool:
    return left.dtype == right.dtype and left.shape == right.shape and left.tobytes() == right.tobytes()


@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("count", [1, 7, 8, 1000, 1001])
def test_codes_come_back(bits: int, count: int) -> None:
    codes = rng().integers(0, 2**bits, count).astype(np.uint8)
    planes = pack_codes(codes, bits)
    np.testing.assert_array_equal(unpack_codes(planes, count, bits), codes)
    assert sum(plane.nbytes for plane in planes) == packed_bytes(count, bits) <= count * bits / 8 + 8


def test_bits_for() -> None:
    assert [bits_for(count) for count in (1, 2, 3, 4, 5, 16, 17, 256)] == [1, 1, 2, 2, 3, 4, 5, 8]


def decoder_model(form: Form, shape: tuple[int, ...], dtype: np.dtype) -> tuple[Model, int]:
    """Return a model whose output is the decoded weight, and what the draft says it adds."""
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    graph = helper.make_graph(
        [helper.make_node("Concat", ["e", "w"], ["y"], axis=0)],
        "g",
        [helper.make_tensor_value_info("e", kind, [0, *shape[1:]])],
        [helper.make_tensor_value_info("y", kind, list(shape))],
        [numpy_helper.from_array(np.zeros(shape, dtype), "w")],
    )
    model = Model.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10))
    builder = DecoderBuilder(tensor_names(model.graph))
    draft = builder.draft("w")
    decoded = form.build(draft)
    (node,) = model.graph.nodes
    plain = constant_bytes(node.inputs[1])
    before = model.to_proto().graph.ByteSize()
    node.inputs[1] = decoded
    builder.keep(draft)
    model.graph.nodes[:0] = builder.nodes
    clean(model.graph)
    grown = model.to_proto().graph.ByteSize() - before + plain
    renamed = len(decoded.name) - len("w")  # the reader spells the tensor's name
    assert grown - renamed == draft.nbytes, f"{form.kind}: the accounts are wrong"
    return model, draft.nbytes


CASES = {
    **{f"{bits} bits": palette(min(2**bits, 200)) for bits in range(1, 9)},
    "padded": palette(5)[:, :39],
    "3 axes": palette(9).reshape(6, 8, 40),
    "1 axis": palette(16).ravel(),
    "equal": np.full((ROWS, COLUMNS), 1.25, np.float32),
    "half": half(),
    "bfloat": normal().astype(ml_dtypes.bfloat16).astype(np.float32),
    "integers": rng().integers(-128, 128, (ROWS, COLUMNS)).astype(np.float32),
    "sparse": pruned(normal()),
    "sparse half": pruned(half()),
    "sparse palette": pruned(palette(16)),
    "negative zero": np.where(normal() > 0.5, half(), np.float32(-0.0)),
    "row grid": gridded(0),
    "column grid": gridded(1),
    "sparse grid": pruned(gridded(0)),
    "nan and infinity": np.where(normal() > 1, np.float32(np.nan), np.where(normal() < -1, -np.inf, palette(3))),
    "float16": palette(16, np.float16),
    "float64": half().astype(np.float64),
    "float64 palette": palette(7, np.float64),
    "int8": rng().integers(-8, 8, (ROWS, COLUMNS)).astype(np.int8),
    "uint8 sparse": pruned(rng().integers(0, 256, (ROWS, COLUMNS)).astype(np.uint8)),
    "int32": rng().integers(-3000, 3000, (ROWS, COLUMNS)).astype(np.int32),
    "int64": rng().integers(-(2**31), 2**31, (ROWS, COLUMNS)),
    "bool": rng().random((ROWS, COLUMNS)) > 0.5,
}


@pytest.mark.parametrize("case", CASES)
def test_every_form_is_exact(case: str) -> None:
    """In ONNX Runtime, folded and not, and in onnx's own evaluator; and as large as it says."""
    values = CASES[case]
    found = list(forms(values))
    assert found, "no form was found"
    empty = {"e": np.zeros((0, *values.shape[1:]), values.dtype)}
    for form in found:
        model, _ = decoder_model(form, values.shape, values.dtype)
        onnx.checker.check_model(model.to_proto(), full_check=True)
        for optimize in (False, True):
            with open_session(model, optimize=optimize) as session:
                result = session.run(empty)["y"]
            assert same_bits(result, values), f"{form.kind}, optimize={optimize}"
        if case != "bfloat" and "bfloat16" not in form.kind:
            (reference,) = ReferenceEvaluator(model.to_proto()).run(None, empty)
            assert same_bits(np.asarray(reference), values), f"{form.kind}, reference"
        ops = op_counts(optimized_model(model))
        assert set(ops) == {"Concat"}, f"{form.kind} does not fold: {ops}"


@pytest.mark.parametrize("bits", range(1, 8))
def test_several_elements_are_looked_up_at_once(bits: int) -> None:
    """One look-up for each element takes most of the time of opening a model."""
    values = palette(2**bits)
    (form,) = (form for form in forms(values) if form.kind == f"{bits}-bit palette")
    model, _ = decoder_model(form, values.shape, values.dtype)
    proto = onnx.shape_inference.infer_shapes(model.to_proto(), data_prop=True)
    shapes = {item.name: [dim.dim_value for dim in item.type.tensor_type.shape.dim] for item in proto.graph.value_info}
    own = [node for node in proto.graph.node if node.op_type == "Gather" and node.input[0] != "w/levels"]
    assert own
    assert all(np.prod(shapes[node.input[1]]) <= values.size // 2 for node in own)


@pytest.mark.parametrize("case", CASES)
def test_no_large_integers_have_a_single_axis(case: str) -> None:
    """ONNX's inference would take them for shapes, and keep each of them."""
    values = CASES[case]
    for form in forms(values):
        proto = decoder_model(form, values.shape, values.dtype)[0].to_proto()
        stored = {item.name: numpy_helper.to_array(item) for item in proto.graph.initializer}
        read = [stored[name] for node in proto.graph.node for name in node.input if name in stored]
        assert not [item for item in read if item.dtype.kind in "iu" and item.ndim == 1 and item.size > 256], form.kind


def test_which_form_is_chosen() -> None:
    for values, kind in (
        (palette(16), "4-bit palette"),
        (half(), "float16"),
        (pruned(normal()), "sparse"),
        (pruned(half()), "sparse float16"),
        (gridded(0), "int8 and scales"),
        (CASES["equal"], "one value"),
    ):
        model = graph_model([helper.make_node("MatMul", ["x", "w"], ["y"])], {"w": values}, {"y": [1, COLUMNS]})
        _, report = packed(model)
        assert report.changed == 1
        assert list(report.metrics) == [f"stored as {kind}"]


def test_scales_are_found_only_where_they_are() -> None:
    assert find_scales(normal(), 0) is None
    assert find_scales(gridded(0), 1) is None
    found = find_scales(gridded(0), 0)
    assert found is not None
    np.testing.assert_array_equal(found[0] * found[1], gridded(0))
    assert np.abs(found[0]).max() <= 127


def test_file_is_small_and_decoders_are_gone_when_it_runs() -> None:
    model = graph_model([helper.make_node("MatMul", ["x", "w"], ["y"])], {"w": palette(16)}, {"y": [1, COLUMNS]})
    result, report = packed(model)
    assert report.changed == 1
    assert result.to_proto().ByteSize() < 0.3 * model.to_proto().ByteSize()
    assert op_counts(optimized_model(result)) == op_counts(optimized_model(model))
    np.testing.assert_array_equal(run(result, True)["y"], run(model, True)["y"])
    np.testing.assert_allclose(run(result)["y"], run(model)["y"], rtol=1e-5, atol=1e-5)
    (reference,) = ReferenceEvaluator(result.to_proto()).run(None, feeds())
    np.testing.assert_allclose(np.asarray(reference), run(model)["y"], rtol=1e-5, atol=1e-5)


def test_second_run_fold_and_the_same_bytes() -> None:
    model = graph_model(
        [helper.make_node("MatMul", ["x", "w"], ["y"])], {"w": pruned(palette(16))}, {"y": [1, COLUMNS]}
    )
    result, _ = packed(model)
    again, report = packed(result)
    assert report.changed == 0
    assert again.to_proto() == result.to_proto()
    assert packed(model)[0].to_proto().SerializeToString() == result.to_proto().SerializeToString()
    folded = result.copy()
    Fold().run(folded, context_for(result))
    clean(folded.graph)
    assert folded.to_proto().ByteSize() <= result.to_proto().ByteSize()


def test_users_of_a_shared_weight_share_its_decoder() -> None:
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"]), helper.make_node("MatMul", ["x", "w"], ["h"])]
    nodes.append(helper.make_node("Relu", ["h"], ["z"]))
    model = graph_model(nodes, {"w": palette(16)}, {"y": [1, COLUMNS], "z": [1, COLUMNS]})
    result, report = packed(model)
    assert report.changed == 1
    assert sum(node.op == "Reshape" for node in result.graph.nodes) == 1
    np.testing.assert_array_equal(run(result, True)["z"], run(model, True)["z"])


def test_weights_of_bodies_are_decoded_outside() -> None:
    bodies: dict[str, onnx.GraphProto] = {}
    for name, count in (("then_branch", 16), ("else_branch", 4)):
        output = helper.make_tensor_value_info(f"{name}_y", TensorProto.FLOAT, [1, COLUMNS])
        weight = numpy_helper.from_array(palette(count), "own")
        node = helper.make_node("MatMul", ["x", "own"], [f"{name}_y"])
        bodies[name] = helper.make_graph([node], name, [], [output], [weight])
    inputs: tuple[Any, ...] = (("x", TensorProto.FLOAT, [1, ROWS]), ("flag", TensorProto.BOOL, []))
    model = graph_model([helper.make_node("If", ["flag"], ["y"], **bodies)], {}, {"y": [1, COLUMNS]}, inputs=inputs)
    result, report = packed(model)
    assert report.changed == 2
    for flag in (True, False):
        for optimize in (True, False):
            found = run(result, optimize, flag=np.array(flag))["y"]
            np.testing.assert_allclose(found, run(model, optimize, flag=np.array(flag))["y"], rtol=1e-5, atol=1e-5)
    assert not {"Gather", "Cast", "Reshape"} & set(op_counts(optimized_model(result)))


@pytest.mark.parametrize("text", ["pack", "pack:bits=4"])
def test_graph_outputs_stay(text: str) -> None:
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"])]
    model = graph_model(nodes, {"w": palette(16)}, {"y": [1, COLUMNS], "w": [ROWS, COLUMNS]})
    result, report = packed(model, text)
    assert report.changed == 0
    assert [(skip.where, skip.reason) for skip in report.skipped] == [("w", "it is a graph output")]
    assert result.to_proto() == model.copy().to_proto()


def test_weights_of_constant_nodes_are_named() -> None:
    value = numpy_helper.from_array(palette(16))
    nodes = [helper.make_node("Constant", [], ["w"], value=value), helper.make_node("MatMul", ["x", "w"], ["y"])]
    _, report = packed(graph_model(nodes, {}, {"y": [1, COLUMNS]}), "pack:bits=4")
    assert report.changed == 0
    assert [(skip.where, skip.reason) for skip in report.skipped] == [
        ("w", "a Constant node gives it, which `fold` makes a weight")
    ]


def test_what_a_caller_may_override_stays() -> None:
    inputs = (("x", TensorProto.FLOAT, [1, ROWS]), ("w", TensorProto.FLOAT, [ROWS, COLUMNS]))
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"])]
    model = graph_model(nodes, {"w": palette(16)}, {"y": [1, COLUMNS]}, inputs=inputs)
    result, report = packed(model)
    assert (report.changed, report.skipped) == (0, ())
    assert result.to_proto() == model.copy().to_proto()


def test_small_empty_and_odd_weights_stay() -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"]),
        helper.make_node("Mul", ["h", "scalar"], ["i"]),
        helper.make_node("Concat", ["i", "empty"], ["y"], axis=0),
    ]
    weights = {"w": normal(), "scalar": np.array(2, np.float32), "empty": np.zeros((0, COLUMNS), np.float32)}
    model = graph_model(nodes, weights, {"y": [1, COLUMNS]})
    result, report = packed(model, "pack:min-bytes=0")
    assert report.changed == 0
    assert {skip.where: skip.reason for skip in report.skipped}["w"] == "no form of it is smaller than the plain one"
    np.testing.assert_array_equal(run(result)["y"], run(model)["y"])


def test_old_versions() -> None:
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"])]
    inputs = (("x", TensorProto.FLOAT, [1, ROWS]), ("w", TensorProto.FLOAT, [ROWS, COLUMNS]))
    model = graph_model(nodes, {"w": half()}, {"y": [1, COLUMNS]}, inputs=inputs, opset=6, ir_version=3)
    _, report = packed(model)
    assert report.changed == 0
    assert "operator set 7" in report.skipped[0].reason
    model = graph_model(nodes, {"w": half()}, {"y": [1, COLUMNS]}, inputs=inputs, opset=9, ir_version=3)
    result, report = packed(model)
    assert report.changed == 1
    assert "IR version raised" in report.notes[0]
    assert [spec.name for spec in result.interface.inputs] == ["x"]
    np.testing.assert_array_equal(run(result, True)["y"], run(model, True)["y"])


def test_size_mode_converts_a_model_that_is_too_old_for_its_decoders() -> None:
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"])]
    weight = rng().normal(size=(200, 96)).astype(np.float32)
    model = graph_model(nodes, {"w": weight}, {"y": [1, 96]}, inputs=(("x", TensorProto.FLOAT, [1, 200]),), opset=9)
    result, report = packed(model, "pack:bits=3")
    assert report.metrics["stored as 3-bit trellis codes"] == 1
    assert "converted from opset 9" in report.notes[0]
    assert result.opset >= 11
    assert result.interface == model.interface
    kept, _ = packed(model, "pack")
    assert kept.opset == 9


def test_quantized_weights_still_make_integer_kernels() -> None:
    weight = rng().integers(-7, 8, (16, 16, 3, 3)).astype(np.int8)
    weights: dict[str, Any] = {"w": weight, "s": np.full(16, 0.01, np.float32), "z": np.zeros(16, np.int8)}
    weights |= {"xs": np.array(0.02, np.float32), "xz": np.array(128, np.uint8)}
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "xs", "xz"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "xs", "xz"], ["d"]),
        helper.make_node("DequantizeLinear", ["w", "s", "z"], ["dw"], axis=0),
        helper.make_node("Conv", ["d", "dw"], ["c"], pads=[1, 1, 1, 1]),
        helper.make_node("QuantizeLinear", ["c", "xs", "xz"], ["cq"]),
        helper.make_node("DequantizeLinear", ["cq", "xs", "xz"], ["y"]),
    ]
    inputs = (("x", TensorProto.FLOAT, [1, 16, 6, 6]),)
    model = graph_model(nodes, weights, {"y": [1, 16, 6, 6]}, inputs=inputs)
    result, report = packed(model)
    assert dict(report.metrics) == {"stored as 4-bit palette": 1.0}
    ops = op_counts(optimized_model(result))
    assert ops == op_counts(optimized_model(model))
    assert ops["QLinearConv"] + ops["com.microsoft:QLinearConv"] == 1, ops
    image = {"x": rng().normal(size=(1, 16, 6, 6)).astype(np.float32)}
    np.testing.assert_array_equal(run(result, True, **image)["y"], run(model, True, **image)["y"])


def test_options() -> None:
    for text in ("pack:bits=1", "pack:bits=9", "pack:min-bytes=-1", "pack:bits=half"):
        with pytest.raises(Exception, match=r"bits|min-bytes"):
            parse_pass(text)
    assert parse_pass("pack:bits=auto") == Pack(bits="auto")
    assert Pack().lossless
    assert not Pack(bits=4).lossless


def test_names_on_the_way_to_a_weight_are_short() -> None:
    """A file holds each of them three times."""
    long = "encoder.layers.11.attention.query.weight"
    model = graph_model([helper.make_node("MatMul", ["x", long], ["y"])], {long: palette(16)}, {"y": [1, COLUMNS]})
    result, report = packed(model)
    assert report.changed == 1
    decoder = result.to_proto().graph.node[:-1]
    assert [node.output[0] for node in decoder if long in node.output[0]] == [long]
    assert all(node.name == node.output[0] for node in decoder)


# The way back


@pytest.mark.parametrize("text", ["pack", "pack:bits=4:min-bytes=512"])
def test_unpack_gives_the_very_bits_back(text: str) -> None:
    weights = {
        "table": palette(16),
        "half": half(),
        "zeros": pruned(half()),
        "grid": gridded(0),
        "flat": np.full((ROWS, COLUMNS), 0.25, np.float32),
        "brain": rng().normal(size=(ROWS, COLUMNS)).astype(ml_dtypes.bfloat16).astype(np.float32),
    }
    nodes, last = [], ""
    for name in weights:
        nodes.append(helper.make_node("MatMul", ["x", name], [f"{name}_y"]))
        nodes.append(helper.make_node("Add", [last, f"{name}_y"], [f"{name}_z"]) if last else nodes.pop())
        last = f"{name}_z" if last else f"{name}_y"
    nodes[-1].output[0] = "y"
    model = graph_model(nodes, weights, {"y": [1, COLUMNS]})
    result, report = packed(model, text)
    assert report.changed == len(weights)
    used = model if text == "pack" else None
    back = load_again(result)
    assert unpack(back) == len(weights)
    assert len(back.graph.nodes) == len(model.graph.nodes)
    found = {constant.name: constant.values for constant in constants(back.graph)}
    assert set(found) == set(weights)
    for name, values in weights.items():
        assert used is None or same_bits(found[name], values)
    np.testing.assert_array_equal(run(back, True)["y"], run(result, True)["y"])
    assert unpack(back) == 0


@pytest.mark.parametrize("quiet", [False, True])
def test_unpack_keeps_in_a_file_what_memory_should_not_hold(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quiet: bool
) -> None:
    model, _ = network()
    result, report = packed(model, "pack:bits=4:min-bytes=512")
    result.save(tmp_path / "packed.onnx")
    monkeypatch.setattr("graphopt.passes.pack.unpack._HELD", 0)
    monkeypatch.setattr("graphopt.passes.pack.unpack._BATCH", 1)
    done = CliRunner().invoke(
        main, ["unpack", str(tmp_path / "packed.onnx"), "-o", str(tmp_path / "plain.onnx"), *["-q"] * quiet]
    )
    assert done.exit_code == 0, done.output
    assert done.output == "" if quiet else f"{report.changed} weights decoded" in done.output
    back = load(tmp_path / "plain.onnx")
    assert [path.name for path in tmp_path.iterdir() if path.suffix != ".onnx"] == [], "nothing is left behind"
    decoded = load_again(result)
    unpack(decoded)
    found = {constant.name: constant.values for constant in constants(back.graph)}
    for constant in constants(decoded.graph):
        assert same_bits(found[constant.name], constant.values)


def test_unpack_says_beforehand_what_it_cannot_write(tmp_path: Path) -> None:
    model, _ = network()
    model.save(tmp_path / "m.onnx")
    done = CliRunner().invoke(main, ["unpack", str(tmp_path / "m.onnx"), "-o", str(tmp_path / "none" / "p.onnx")])
    assert done.exit_code == 2
    assert "there is no folder" in done.output


def test_unpack_leaves_what_pack_did_not_make() -> None:
    nodes = [
        helper.make_node("Cast", ["h"], ["w"], to=TensorProto.FLOAT),
        helper.make_node("MatMul", ["x", "w"], ["y"]),
    ]
    model = graph_model(nodes, {"h": half().astype(np.float16)}, {"y": [1, COLUMNS]})
    before = model.copy().to_proto()
    assert unpack(model) == 0
    assert model.to_proto() == before


def load_again(model: Model) -> Model:
    """The model as a file brings it back: no object is left of the pass's own."""
    return Model.from_proto(onnx.ModelProto.FromString(model.to_proto().SerializeToString()))


# Size mode


def network() -> tuple[Model, Any]:
    """Conv, depthwise Conv, MatMul + Add on correlated images, and samples."""
    random = rng()
    weights = {
        "c": random.normal(size=(32, 8, 3, 3)) / 9,
        "cb": random.normal(size=32),
        "d": random.normal(size=(32, 1, 3, 3)) / 3,
        "m": random.normal(size=(32, 384)) / 6,
        "mb": random.normal(size=384),
    }
    nodes = [
        helper.make_node("Conv", ["x", "c", "cb"], ["h"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["h"], ["r"]),
        helper.make_node("Conv", ["r", "d"], ["g"], group=32),
        helper.make_node("GlobalAveragePool", ["g"], ["p"]),
        helper.make_node("Flatten", ["p"], ["f"]),
        helper.make_node("MatMul", ["f", "m"], ["l"]),
        helper.make_node("Add", ["l", "mb"], ["y"]),
    ]
    inputs = (("x", TensorProto.FLOAT, [1, 8, 6, 6]),)
    stored = {name: values.astype(np.float32) for name, values in weights.items()}
    model = graph_model(nodes, stored, {"y": [1, 384]}, inputs=inputs)
    images = random.normal(size=(16, 1, 1, 6, 6)) + 0.3 * random.normal(size=(16, 1, 8, 6, 6))
    return model, open_samples([{"x": image.astype(np.float32)} for image in images], model.interface)


def snr_loss(model: Model, original: Model, samples: Any) -> float:
    error = energy = 0.0
    with open_session(original) as before, open_session(model) as after:
        for item in samples:
            wanted, found = before.run(item)["y"], after.run(item)["y"]
            error, energy = error + np.square(wanted - found).sum(), energy + np.square(wanted).sum()
    return float(error / energy)


def test_size_mode_beats_rounding_and_stays_within_the_limit() -> None:
    model, samples = network()
    blind, _ = packed(model, "pack:bits=4:min-bytes=512")
    fitted, report = packed(model, "pack:bits=4:min-bytes=512", samples)
    assert report.changed == 4, "three weights and the large bias"
    assert report.metrics["stored as float16"] == 1
    assert fitted.to_proto().ByteSize() < 0.35 * model.to_proto().ByteSize()
    assert snr_loss(fitted, model, samples) < 0.01
    assert snr_loss(packed(model, "pack:bits=8:min-bytes=512", samples)[0], model, samples) < 1e-4
    assert snr_loss(fitted, model, samples) < 0.7 * snr_loss(blind, model, samples)


def test_size_mode_leaves_the_input_alone_and_is_repeatable() -> None:
    model, samples = network()
    before = model.to_proto().SerializeToString(deterministic=True)
    results = [packed(model, "pack:bits=3:min-bytes=512", samples)[0] for _ in range(2)]
    assert model.to_proto().SerializeToString(deterministic=True) == before
    assert results[0].to_proto().SerializeToString() == results[1].to_proto().SerializeToString()


def test_weights_that_are_taken_back_are_not_rounded(monkeypatch: pytest.MonkeyPatch) -> None:
    model, samples = network()
    before = {constant.name: constant.values for constant in constants(model.graph)}
    _, report = packed(model, "pack:bits=4:min-bytes=512", samples)
    unfolded = Store.unfolded

    def first(store: Store, optimized: onnx.ModelProto) -> list[Any]:
        assert not unfolded(store, optimized)
        return store.packed[:1]

    monkeypatch.setattr(Store, "unfolded", first)
    result, other = packed(model, "pack:bits=4:min-bytes=512", samples)
    assert other.changed == report.changed - 1
    (refused,) = (skip.where for skip in other.skipped if "does not fold" in skip.reason)
    after = {constant.name: constant.values for constant in constants(result.graph)}
    np.testing.assert_array_equal(after[refused], before[refused])
    assert snr_loss(result, model, samples) < 0.01


def test_automatic_bits_hold_the_limit() -> None:
    model, samples = network()
    sizes = []
    for limit in (4e-6, 0.02):
        result, steps = Pipeline.parse("pack:bits=auto:min-bytes=512").run(model, context_for(model, samples, limit))
        assert steps[-1].outcome == "accepted", steps[-1].reason
        assert steps[-1].drop is not None
        assert steps[-1].drop.value <= limit
        sizes.append(result.to_proto().ByteSize())
    assert sizes[1] < sizes[0] < model.to_proto().ByteSize(), "a looser limit must give a smaller file"


@pytest.mark.parametrize(("part", "changed"), [(0.94, True), (0.97, False)])
def test_automatic_bits_keep_a_twentieth_of_the_limit_in_hand(
    part: float, changed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The packed model is judged again, and must not be rolled back for a last digit."""
    model, samples = network()
    lost = part * 0.02
    drop = Drop(lost, lost, lost, "agreement", {}, 8, random=False)
    monkeypatch.setattr(Evaluator, "drop", lambda *_: drop)
    _, report = packed(model, "pack:bits=auto:min-bytes=512", samples, 0.02)
    assert (report.changed > 0) == changed


def test_without_samples_automatic_means_eight_bits() -> None:
    model, _ = network()
    result, report = packed(model, "pack:bits=auto:min-bytes=512")
    assert "nothing to choose bits by" in report.notes[0]
    assert set(report.metrics) <= {"stored as 8-bit codes", "stored as int8 and scales"}, "both are int8 and scales"
    assert result.to_proto().ByteSize() < 0.5 * model.to_proto().ByteSize()


def test_allocation_gives_bits_where_losses_are() -> None:
    small, large, calm = allocate([0.1, 0.1, 0.0001], [2000, 200000, 200000], 4.5)
    assert small > large > calm
    assert allocate([0.1, 0.1], [2000, 200000], 8.0) == [8, 8]
    assert allocate([0.1, 0.1], [200000, 200000], 2.0) == [2, 2]
    assert allocate([0.0, 0.0], [200000, 200000], 4.0)[0] <= 4
    losses = np.geomspace(1e-6, 1, 40).tolist()
    assert 7 not in allocate(losses, [100000] * 40, 6.5), "in three planes they take long to decode"
    bits = allocate([0.1, 0.01, 0.001, 1e-5], [100000] * 4, 5.0)
    assert sum(bits) <= 20, "no more than the mean"
    assert allocate([0.1], [4096], 4.0) == [4], "a weight alone has the mean, its decoder included"
    assert bits == sorted(bits, reverse=True)


def test_predicted_bits_follow_the_limit() -> None:
    losses, sizes = [0.01, 0.02, 0.005], [100000, 50000, 200000]
    tight, loose = predicted_bits(losses, sizes, 0.0001), predicted_bits(losses, sizes, 0.05)
    assert 2 <= loose < tight <= 8
    assert predicted_bits(losses, sizes, 0.0) == 8


@pytest.mark.parametrize("size", [1, 63, 64, 65, 300])
def test_the_inverse_factor_by_halves(size: int) -> None:
    inputs = rng().normal(size=(4 * size, size))
    moment = inputs.T @ inputs / len(inputs) + 0.1 * np.eye(size)
    upper = inverse_factor(moment)
    np.testing.assert_array_equal(upper, np.triu(upper))
    np.testing.assert_allclose(upper.T @ upper @ moment, np.eye(size), atol=1e-9)


def test_the_scale_to_start_from_is_the_best_of_those_tried() -> None:
    matrix, levels = rng().normal(size=(1, 8, 200)), np.linspace(-1, 1, 8)
    scale = start_scale(matrix, np.ones((1, 200)), levels)

    def error(scale: np.ndarray) -> np.ndarray:
        return np.asarray(np.square(levels[nearest(levels, matrix / scale)] * scale - matrix).sum(-1))

    for factor in (0.85, 1.15):
        assert (error(scale) <= error(scale * factor) * 1.02).all()


def test_fewest_bits() -> None:
    assert fewest_bits(lambda mean: 9.0) is None
    for start in (2.0, 4.0, 7.5):
        found = fewest_bits(lambda mean: 4.0 ** (4.6 - mean), start)
        assert found is not None
        assert 4.6 <= found <= 4.875, "two trials find what falls as it should"
        found = fewest_bits(lambda mean: 1.0 if mean >= 4.6 else 2.0, start)
        assert found is not None
        assert 4.6 <= found <= 6.25, "no trust in the slope"
    assert fewest_bits(lambda mean: 0.5 if mean >= 8 else 2.0) == 8.0


@pytest.mark.parametrize("base", [2.5, 4.0, 7.0])
@pytest.mark.parametrize("start", [3.5, 4.5, 6.0])
def test_fewest_bits_use_up_the_limit(base: float, start: float) -> None:
    """However steep the loss is, some trials come close to what the limit allows."""
    tried = list[float]()

    def excess(mean: float) -> float:
        tried.append(mean)
        return float(base ** (4.6 - mean))

    found = fewest_bits(excess, start)
    assert found is not None
    assert 4.6 <= found <= 4.6 + 0.125
    assert len(tried) <= 5


def test_loss_of_outputs_is_measured_and_leaves_the_model_alone() -> None:
    model, samples = network()
    before = model.to_proto().SerializeToString(deterministic=True)
    units = find_units(model, [node.inputs[1] for node in model.graph.nodes if node.op in ("Conv", "MatMul")])
    losses = SizeMode(samples, SilentProgress(), np.random.default_rng(0)).losses(model, units)
    assert model.to_proto().SerializeToString(deterministic=True) == before
    assert all(0 < loss < 0.1 for loss in losses)
    assert OutputLoss(model, samples).of(model) == 0


def test_rows_of_every_kind_of_weight() -> None:
    """The view of a weight and its way back are inverse, and scales broadcast to the weight."""
    nodes = [
        helper.make_node("Gather", ["table", "i"], ["g"]),
        helper.make_node("GRU", ["g", "w", "r"], ["h"], hidden_size=8),
        helper.make_node("Conv", ["image", "c"], ["k"], group=2),
        helper.make_node("ConvTranspose", ["k", "t"], ["y"]),
        helper.make_node("MatMul", ["g", "m"], ["z"]),
    ]
    shapes = {
        "table": (50, 32),
        "w": (1, 24, 32),
        "r": (1, 24, 8),
        "c": (6, 2, 3, 3),
        "t": (6, 5, 2, 2),
        "m": (32, 7),
    }
    weights = {name: rng().normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    inputs = (("i", TensorProto.INT64, [3, 1]), ("image", TensorProto.FLOAT, [1, 4, 5, 5]))
    model = graph_model(nodes, weights, {"y": [1, 5, 5, 5], "z": [3, 1, 7], "h": [3, 1, 1, 8]}, inputs=inputs)
    units = {unit.name: unit for unit in find_units(model, constants(model.graph))}
    rows = {name: (unit.groups, unit.rows) for name, unit in units.items()}
    assert rows == {"table": (1, 50), "w": (1, 24), "r": (1, 1), "c": (2, 3), "t": (1, 5), "m": (1, 7)}
    assert {name for name, unit in units.items() if unit.layer is not None} == {"c", "m"}
    for name, unit in units.items():
        matrix = unit.matrix()
        np.testing.assert_array_equal(unit.stored(matrix), weights[name])
        scale = np.arange(1, unit.groups * unit.rows + 1, dtype=np.float64).reshape(unit.groups, unit.rows, 1)
        np.testing.assert_array_equal(unit.stored(matrix * scale), weights[name] * unit.stored_scale(scale))


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_shrunk_weights_are_what_their_codes_say(bits: int) -> None:
    matrix = rng().normal(size=(1, 24, 36))
    inputs = rng().normal(size=(400, 6)) @ rng().normal(size=(6, 36)) + 0.2 * rng().normal(size=(400, 36))
    moment = (inputs.T @ inputs / 400)[None]

    def loss(coded: Any) -> float:
        difference = matrix[0] - coded.decoded()[0]
        return float(np.einsum("rk,kl,rl->", difference, moment[0], difference))

    fitted, blind = shrink(matrix, moment, bits), shrink(matrix, None, bits)
    assert fitted.codes.max() < 2**bits
    assert len(fitted.levels) == 2**bits
    assert loss(fitted) < (0.5 if bits < 8 else 1.0) * loss(blind)


def test_weightless_rows_do_no_harm() -> None:
    matrix = rng().normal(size=(1, 8, 16))
    matrix[0, 3] = 0
    for moment in (None, np.eye(16)[None], np.zeros((1, 16, 16))):
        coded = shrink(matrix, moment, 4)
        assert np.isfinite(coded.decoded()).all()


@pytest.mark.parametrize("bits", [3, 4, 8])
@pytest.mark.parametrize("unit", [2.0**-100, 2.0**100])
def test_units_of_weights_and_inputs_do_not_matter(bits: int, unit: float) -> None:
    matrix, inputs = rng().normal(size=(1, 24, 36)).astype(np.float32), rng().normal(size=(400, 36))
    moment = (inputs.T @ inputs / 400)[None]
    plain = shrink(matrix, moment, bits)
    for factor in (1.0, unit**2):
        coded = shrink(matrix * np.float32(unit), moment * factor, bits)
        np.testing.assert_array_equal(coded.codes, plain.codes)
        np.testing.assert_array_equal(coded.decoded(), plain.decoded() * np.float32(unit))
    blind = shrink(matrix * np.float32(unit), None, bits).decoded()
    np.testing.assert_array_equal(blind, shrink(matrix, None, bits).decoded() * np.float32(unit))


def test_rows_of_very_different_size() -> None:
    matrix = rng().normal(size=(1, 8, 32)) * np.array([1e-3, 1, 1e3, 1e-2, 3, 2, 1, 5])[:, None]
    for moment in (None, np.eye(32)[None]):
        decoded = shrink(matrix.astype(np.float32), moment, 6).decoded()
        error = np.square(decoded - matrix).sum(axis=-1) / np.maximum(np.square(matrix).sum(axis=-1), 1e-99)
        assert (error < 0.01).all()


def test_scales_of_rows_that_are_next_to_nothing_need_no_more_bytes() -> None:
    matrix = rng().normal(size=(1, 8, 32)) * np.array([1e-7, 1, 2, 1e-2, 3, 2, 1, 5])[:, None]
    for moment in (None, np.eye(32)[None]):
        coded = shrink(matrix.astype(np.float32), moment, 5)
        assert coded.scale.dtype == np.float16
        error = np.square(coded.decoded() - matrix).sum(axis=-1) / np.square(matrix).sum(axis=-1)
        assert (error < 0.01).all()


def sparse_model(count: int) -> Model:
    """MatMul with a sparse initializer of so many values."""
    proto = graph_model([helper.make_node("MatMul", ["x", "w"], ["y"])], {"w": normal()}, {"y": [1, COLUMNS]})
    proto = proto.to_proto()
    place = np.sort(rng().choice(ROWS * COLUMNS, count, replace=False)).astype(np.int64)
    values = rng().normal(size=count).astype(np.float32)
    stored = (numpy_helper.from_array(values, "w"), numpy_helper.from_array(place))
    proto.graph.sparse_initializer.append(helper.make_sparse_tensor(*stored, [ROWS, COLUMNS]))
    del proto.graph.initializer[:]
    return Model.from_proto(proto)


@pytest.mark.parametrize("text", ["pack:min-bytes=0", "pack:bits=4:min-bytes=0"])
def test_sparse_initializers_never_grow(text: str) -> None:
    thin, thick = sparse_model(24), sparse_model(900)
    result, report = packed(thin, text)
    assert report.changed == 0
    assert result.to_proto().graph.sparse_initializer == thin.to_proto().graph.sparse_initializer
    assert [skip.reason for skip in report.skipped if skip.where == "w"] == [
        "no form of it is smaller than the plain one"
    ]
    result, report = packed(thick, text)
    assert report.changed == 1
    assert result.to_proto().ByteSize() < 0.7 * thick.to_proto().ByteSize()
    difference = np.abs(run(result)["y"] - run(thick)["y"]).max()
    assert difference < (1e-5 if "bits" not in text else 2)


def test_bytes_of_nodes_and_weights() -> None:
    model = graph_model([helper.make_node("MatMul", ["x", "w"], ["y"], "n")], {"w": normal()}, {"y": [1, COLUMNS]})
    (node,) = model.graph.nodes
    proto = model.to_proto().graph
    without = onnx.GraphProto()
    without.CopyFrom(proto)
    del without.node[:]
    assert node_bytes(node) == proto.ByteSize() - without.ByteSize()
    del without.initializer[:]
    assert constant_bytes(node.inputs[1]) == proto.ByteSize() - without.ByteSize() - node_bytes(node)
