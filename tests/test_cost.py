"""MACs, parameters and bytes, against figures worked out by hand and against what is written."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import zstandard
from onnx import helper, numpy_helper

from graphopt.cost import Figures, figures, node_costs
from graphopt.filesize import Scale
from graphopt.ir.graph import constants, payload
from graphopt.model import Model
from graphopt.reader import load
from graphopt.runtime.costs import executed_macs, figures_on
from graphopt.shapes import shapes_for
from tests.helpers import parse


def model_of(text: str) -> Model:
    return Model.from_proto(parse(text))


def macs_of(text: str, **feeds: np.ndarray) -> int | None:
    model = model_of(text)
    return figures(model, shapes_for(model, feeds or None)).macs


@pytest.mark.parametrize(
    ("node", "shapes", "macs"),
    [
        ("Conv<strides=[2,2], pads=[1,1,1,1]>(x, w)", "float[1,3,8,8] x, float[16,3,3,3] w", 16 * 4 * 4 * 27),
        ("Conv<pads=[1,1,1,1]>(x, w)", "float[2,3,8,8] x, float[16,3,3,3] w", 2 * 16 * 64 * 27),
        ("Conv<group=2>(x, w)", "float[1,4,5,5] x, float[6,2,1,1] w", 6 * 25 * 2),
        ("Conv<group=4>(x, w)", "float[1,4,5,5] x, float[4,1,3,3] w", 4 * 9 * 9),
        ("Conv(x, w)", "float[1,4,10] x, float[8,4,3] w", 8 * 8 * 12),
        ("ConvTranspose<strides=[2,2]>(x, w)", "float[1,4,5,5] x, float[4,6,2,2] w", 4 * 25 * 6 * 4),
        ("ConvTranspose<group=2>(x, w)", "float[1,4,5,5] x, float[4,3,2,2] w", 4 * 25 * 3 * 4),
        ("Gemm(x, w)", "float[5,7] x, float[7,11] w", 5 * 7 * 11),
        ("Gemm<transA=1, transB=1>(x, w)", "float[7,5] x, float[11,7] w", 5 * 7 * 11),
        ("MatMul(x, w)", "float[2,3,5,7] x, float[7,11] w", 2 * 3 * 5 * 7 * 11),
        ("MatMul(x, w)", "float[3,1,5,7] x, float[4,7,2] w", 3 * 4 * 5 * 7 * 2),
        ("MatMul(x, w)", "float[7] x, float[7] w", 7),
        ("MatMul(x, w)", "float[5,7] x, float[7] w", 35),
        ("MatMul(x, w)", "float[7] x, float[3,7,2] w", 42),
        ('Einsum<equation="bij,bjk->bik">(x, w)', "float[2,3,4] x, float[2,4,5] w", 2 * 3 * 4 * 5),
        ('Einsum<equation="...ij, ...jk">(x, w)', "float[6,2,3,4] x, float[2,4,5] w", 6 * 2 * 3 * 4 * 5),
        ("Relu(x)", "float[5,7] x, float[7,11] w", 0),
        ("Add(x, w)", "float[5,7] x, float[7] w", 0),
    ],
)
def test_macs_of_an_operator(node: str, shapes: str, macs: int) -> None:
    assert macs_of(f"m ({shapes}) => (int64 y) {{ h = {node} y = Size(h) }}") == macs


@pytest.mark.parametrize(("op", "gates"), [("LSTM", 4), ("GRU", 3), ("RNN", 1)])
def test_macs_of_a_recurrent_layer(op: str, gates: int) -> None:
    text = f"""m (float[10,2,5] x, float[2,{gates * 6},5] w, float[2,{gates * 6},6] r) => (int64 y) {{
        h = {op}<hidden_size=6, direction="bidirectional">(x, w, r)
        y = Size(h)
    }}"""
    assert macs_of(text) == 10 * 2 * 2 * gates * 6 * (5 + 6)


def test_macs_of_attention() -> None:
    text = """<ir_version: 10, opset_import: ["" : 23]>
    m (float[2,4,3,8] q, float[2,4,7,8] k, float[2,4,7,6] v) => (float[2,4,3,6] y) { y = Attention(q, k, v) }"""
    assert macs_of(text) == 2 * 4 * 3 * 7 * 8 + 2 * 4 * 3 * 7 * 6


def test_macs_of_quantized_operators() -> None:
    conv = """m (uint8[1,3,8,8] x, float s, uint8 z, int8[16,3,3,3] w, int8 o) => (uint8[1,16,6,6] y) {
        y = QLinearConv(x, s, z, w, s, o, s, z)
    }"""
    assert macs_of(conv) == 16 * 36 * 27
    blocks = """<ir_version: 10, opset_import: ["" : 21, "com.microsoft" : 1]>
    m (float[2,5,64] x, uint8[48,2,16] w, float[96] s) => (float[2,5,48] y) {
        y = com.microsoft.MatMulNBits<K=64, N=48, bits=4, block_size=32>(x, w, s)
    }"""
    assert macs_of(blocks) == 2 * 5 * 64 * 48


def test_an_operator_of_another_domain_is_another_operator() -> None:
    text = """<ir_version: 10, opset_import: ["" : 21, "other" : 1]>
    m (float[5,7] x, float[7,11] w) => (float[5,11] y) { y = other.MatMul(x, w) }"""
    assert macs_of(text) == 0


def test_macs_follow_the_sample_and_are_unknown_without_one() -> None:
    text = "m (float[N,7] x, float[7,11] w) => (float[N,11] y) { y = MatMul(x, w) }"
    assert macs_of(text) is None
    assert macs_of(text, x=np.zeros((5, 7), np.float32), w=np.zeros((7, 11), np.float32)) == 5 * 7 * 11
    assert node_costs(model_of(text))[0].macs is None
    assert figures(model_of(text), {"x": (3, 7), "y": (3, 11)}).macs == 3 * 7 * 11


def test_of_an_if_the_costlier_branch_counts() -> None:
    text = """m (bool c, float[4,4] x) => (float[4,4] y) {
        y = If (c) <
            then_branch = t () => (float[4,4] a) { a = MatMul(x, x) },
            else_branch = e () => (float[4,4] b) { p = MatMul(x, x)  b = MatMul(p, x) }
        >
    }"""
    assert macs_of(text) == 2 * 64
    assert [cost.macs for cost in node_costs(model_of(text)) if cost.op == "MatMul"][:1] == [64]


def test_a_loop_counts_as_often_as_it_runs() -> None:
    text = """m (float[4,4] x, bool c) => (float[4,4] y) <int64 n = {5}> {
        y = Loop (n, c, x) <body = b (int64 i, bool go, float[4,4] s) => (bool go, float[4,4] t) { t = MatMul(s, s) }>
    }"""
    assert macs_of(text) == 5 * 64


def test_a_scan_counts_once_a_step() -> None:
    text = """m (float[4,4] x, float[6,4,4] xs) => (float[4,4] y, float[6,4,4] ys) {
        y, ys = Scan <num_scan_inputs = 1,
            body = b (float[4,4] s, float[4,4] e) => (float[4,4] t, float[4,4] u) { t = MatMul(s, e) u = Identity(e) }
        > (x, xs)
    }"""
    assert macs_of(text) == 6 * 64


def test_macs_inside_a_function_are_unknown() -> None:
    text = """<ir_version: 10, opset_import: ["" : 21, "local" : 1]>
    m (float[4,4] x) => (float[4,4] y) { y = local.outer(x) }
    <domain: "local", opset_import: ["" : 21, "local" : 1]> outer (x) => (y) { y = local.BODY(x) }
    <domain: "local", opset_import: ["" : 21]> square (x) => (y) { y = MatMul(x, x) }
    <domain: "local", opset_import: ["" : 21]> positive (x) => (y) { y = Relu(x) }"""
    assert macs_of(text.replace("BODY", "square")) is None
    assert macs_of(text.replace("BODY", "positive")) == 0


X = np.eye(4, dtype=np.float32)
CHOICE = """m (bool c, float[4,4] x) => (float[4,4] y) {
    y = If (c) <
        then_branch = t () => (float[4,4] a) { a = MatMul(x, x) },
        else_branch = e () => (float[4,4] b) { p = MatMul(x, x)  b = MatMul(p, x) }
    >
}"""
REPEAT = """m (int64 n, float[4,4] x, bool c) => (float[4,4] y) {
    y = Loop (n, c, x) <body = b (int64 i, bool go, float[4,4] s) => (bool go, float[4,4] t) { t = MatMul(s, s) }>
}"""
CALL = """<ir_version: 10, opset_import: ["" : 21, "local" : 1]>
m (float[4,4] x) => (float[4,4] y) { y = local.twice(x) }
<domain: "local", opset_import: ["" : 21]> twice (x) => (y) { h = Gemm<transB = 1>(x, x)  y = MatMul(h, x) }"""
SUMS = 'm (float[4,4] x) => (float[4,4] y) { [sum] y = Einsum<equation = "ij,kj->ik">(x, x) }'


@pytest.mark.parametrize(
    ("text", "feeds", "macs"),
    [
        (CHOICE, {"c": np.array(True), "x": X}, 64),
        (CHOICE, {"c": np.array(False), "x": X}, 128),
        (REPEAT, {"n": np.array(7), "c": np.array(True), "x": X}, 7 * 64),
        (CALL, {"x": X}, 128),
        (SUMS, {"x": X}, 64),
        ("m (float[N,4] x) => (float[N,4] y) { y = Relu(x) }", {"x": X}, 0),
        ("m (float[N,M] x) => (float[M,N] y) { t = Transpose(x)  y = MatMul(t, x) }", {"x": np.ones((3, 5), "f")}, 75),
    ],
)
def test_macs_that_were_executed(text: str, feeds: dict[str, np.ndarray], macs: int) -> None:
    assert executed_macs(model_of(text), feeds) == macs


def test_recurrent_and_transposed_weights_are_recorded() -> None:
    rng = np.random.default_rng(0)
    proto = parse("""m (float[3,1,8] x, float[1,4,5,5] z) => (float[3,1,1,6] y, float[1,3,9,9] u) {
        y = GRU<hidden_size=6>(x, w, r)  u = ConvTranspose(z, k)
    }""")
    for name, shape in (("w", (1, 18, 8)), ("r", (1, 18, 6)), ("k", (4, 3, 5, 5))):
        proto.graph.initializer.append(numpy_helper.from_array(rng.standard_normal(shape).astype(np.float32), name))
    feeds = {"x": np.ones((3, 1, 8), np.float32), "z": np.ones((1, 4, 5, 5), np.float32)}
    model = Model.from_proto(proto)
    assert executed_macs(model, feeds) == figures(model, shapes_for(model, feeds)).macs == 3 * 18 * 14 + 100 * 75


def test_figures_on_a_sample_count_in_a_run_only_what_shapes_do_not_tell(monkeypatch: pytest.MonkeyPatch) -> None:
    call, choice = model_of(CALL), model_of(CHOICE)
    assert figures_on(call, {"x": X}).macs == 128
    assert figures_on(call, None).macs is None
    assert figures_on(choice, {"c": np.array(True), "x": X}).macs == 64, "the branch that runs, not the costlier one"
    assert figures_on(choice, None).macs == 128
    monkeypatch.setattr("graphopt.runtime.costs.executed_macs", None)
    assert figures_on(model_of("m (float[4,4] x) => (float[4,4] y) { y = MatMul(x, x) }"), {"x": X}).macs == 64


def test_each_constant_counts_once_at_its_first_user() -> None:
    model = model_of("""m (float[2,2] x) => (float[2,2] y)
    <float[2,2] w = {1.0, 2.0, 3.0, 4.0}, float[2] b = {1.0, 2.0}> {
        a = MatMul(x, w)
        d = Add(a, b)
        e = MatMul(d, w)
        h = Constant<value = float[3] {1.0, 2.0, 3.0}>()
        y = Add(e, b)
    }""")
    assert [(cost.op, cost.parameters, cost.nbytes) for cost in node_costs(model)] == [
        ("MatMul", 4, 16),
        ("Add", 2, 8),
        ("MatMul", 0, 0),
        ("Constant", 3, 12),
        ("Add", 0, 0),
    ]
    assert figures(model).parameters == 9
    assert figures(model).nodes == 5


def test_a_node_without_a_name_goes_by_its_output() -> None:
    assert node_costs(model_of("m (float[1] x) => (float[1] y) { y = Relu(x) }"))[0].node == "y"


def big_model(sizes: tuple[int, ...], *, in_body: bool = False, seed: int = 0) -> onnx.ModelProto:
    """Return a model that adds weights of these numbers of elements to its input, one after the other."""
    rng = np.random.default_rng(seed)
    arrays = [rng.integers(-9, 9, size).astype(np.float32) for size in sizes]
    weights = [numpy_helper.from_array(array, f"w{index}") for index, array in enumerate(arrays)]
    sums = [helper.make_node("ReduceSum", [weight.name], [f"s{weight.name}"], keepdims=0) for weight in weights]
    total = helper.make_node("Sum", [node.output[0] for node in sums], ["y"])
    scalar = helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [])
    inner = helper.make_graph([*sums, total], "inner", [], [scalar], weights)
    condition = helper.make_tensor_value_info("c", onnx.TensorProto.BOOL, [])
    if in_body:
        zero = helper.make_node("Constant", [], ["n"], value_float=0.0)
        other = helper.make_graph([zero], "other", [], [helper.make_value_info("n", scalar.type)])
        choice = helper.make_node("If", ["c"], ["z"], then_branch=inner, else_branch=other)
        inner = helper.make_graph([choice], "outer", [condition], [helper.make_value_info("z", scalar.type)])
    else:
        inner.input.append(condition)
    return helper.make_model(inner, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


EDGE = 2**19  # floats that take 2 MiB, where the length of a field needs one byte more


@pytest.mark.parametrize(
    "sizes", [(10,), (2**14,), (2**14, 5, 2**15), (EDGE - 12,), (EDGE - 3,), (EDGE,), (EDGE // 2,) * 3]
)
@pytest.mark.parametrize("in_body", [False, True])
@pytest.mark.parametrize("external", [False, True])
def test_bytes_are_those_that_save_writes(
    sizes: tuple[int, ...], in_body: bool, external: bool, tmp_path: Path
) -> None:
    path = tmp_path / "model.onnx"
    Model.from_proto(big_model(sizes, in_body=in_body)).save(path, external_data=external)
    model = load(path)
    found = figures(model)
    (tmp_path / "again").mkdir()
    saved = model.save(tmp_path / "again" / "model.onnx")
    assert found.nbytes == saved.nbytes
    files = [saved.path, saved.data_path] if saved.data_path else [saved.path]
    whole = sum(len(zstandard.ZstdCompressor(level=3).compress(file.read_bytes())) for file in files)
    assert found.zstd_nbytes == pytest.approx(whole, rel=0.02, abs=100 * len(sizes))


def test_a_weight_that_two_nodes_share_is_weighed_once_in_external_data(tmp_path: Path) -> None:
    model = Model.from_proto(big_model((2**15,)))
    weight = constants(model.graph)[0]
    model.graph.nodes[1].inputs.append(weight)
    saved = model.save(tmp_path / "shared.onnx", external_data=True)
    found = load(saved.path)
    assert figures(found).nbytes == saved.nbytes
    assert figures(found).parameters == 2**15


def test_a_scale_remembers_what_did_not_change() -> None:
    model = Model.from_proto(big_model((2**16, 2**17)))
    scale = Scale()
    assert scale.weigh(model) == Scale().weigh(model)
    changed = model.copy()
    constants(changed.graph)[1].values = np.zeros(2**17, np.float32)
    fresh, remembered = Scale().weigh(changed), scale.weigh(changed)
    assert remembered == fresh
    assert fresh.nbytes == scale.weigh(model).nbytes
    assert (fresh.zstd_nbytes or 0) < (scale.weigh(model).zstd_nbytes or 0)


def test_a_scale_does_not_mistake_a_new_weight_for_one_that_is_gone() -> None:
    scale, model = Scale(), Model.from_proto(big_model((2**15,)))
    weight, addresses = constants(model.graph)[0], []
    for seed in range(200):  # an array that is freed leaves its address to a later one, sooner or later
        values = np.random.default_rng(seed).integers(-(seed + 1), seed + 1, 2**15)
        weight.values = values.astype(np.float32)
        addresses.append(id(payload(weight)))
        assert scale.weigh(model) == Scale().weigh(model)
        if len(set(addresses)) < len(addresses):
            break
    assert len(set(addresses)) < len(addresses), "no address was used twice: nothing was tested"


def test_the_level_is_chosen_and_told() -> None:
    model = Model.from_proto(big_model((2**16,)))
    fast, small = figures(model, zstd_level=1), figures(model, zstd_level=19)
    assert (fast.zstd_level, small.zstd_level) == (1, 19)
    assert 0 < (small.zstd_nbytes or 0) < (fast.zstd_nbytes or 0)
    assert figures(model, scale=Scale(19)) == small
    with pytest.raises(ValueError, match=r"zstd level must be between 1 and 22, not 23"):
        Scale(23)


def test_weighing_changes_nothing() -> None:
    model = Model.from_proto(big_model((2**15, 3)))
    before = model.fingerprint()
    assert isinstance(figures(model), Figures)
    assert model.fingerprint() == before


@pytest.mark.slow
def test_a_model_above_the_limit_of_protobuf(tmp_path: Path) -> None:
    data = tmp_path / "model.data"
    proto = big_model((10, 2**15))
    tensor = proto.graph.initializer[1]
    tensor.ClearField("raw_data")
    size = 2**31 + 2**20
    tensor.dims[0] = size // 4
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=data.name)
    with data.open("wb") as file:
        file.truncate(size)  # sparse: it takes no room
    (tmp_path / "model.onnx").write_bytes(proto.SerializeToString())
    found = figures(load(tmp_path / "model.onnx"))
    assert size < found.nbytes < size + 2**12
    assert found.parameters == 10 + size // 4
    assert 0 < (found.zstd_nbytes or 0) < size / 1000


def test_without_a_level_nothing_is_compressed() -> None:
    """The size is the same, and weights of external data are not even read."""
    model = Model.from_proto(parse("g (float[N, 2] x) => (float[N, 2] y) <float[2] w = {1, 2}> { y = Mul(x, w) }"))
    found = Scale(None).weigh(model)
    assert (found.nbytes, found.zstd_nbytes) == (Scale().weigh(model).nbytes, None)
