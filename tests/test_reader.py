"""Untrusted files: each is read as it is meant or refused in one line that names the part."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from graphopt.errors import ModelError
from graphopt.ir.graph import constants, walk_nodes
from graphopt.reader import load
from tests.helpers import parse, write
from tests.test_ir import LOSSLESS, sparse

TEXT = "agraph (float[2] x) => (float[2] y) <float[2] w = {1, 2}> { y = Add(x, w) }"


def external(folder: Path, location: str, nbytes: int = 8, **entries: object) -> Path:
    """Write a model whose weight w refers to a file, and that file if its place allows."""
    proto = parse(TEXT)
    refer(proto.graph.initializer[0], location, **entries)
    target = folder / location
    if nbytes >= 0 and not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(np.arange(1, nbytes // 4 + 2, dtype=np.float32).tobytes()[:nbytes])
    return write(proto, folder / "model.onnx")


def refer(tensor: onnx.TensorProto, location: str, **entries: object) -> None:
    """Make a tensor's bytes external."""
    for field in ("float_data", "raw_data"):
        tensor.ClearField(field)
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in {"location": location, **entries}.items():
        tensor.external_data.add(key=key, value=str(value))


def assert_refused(path: Path, match: str) -> None:
    """Fail unless the file is refused in one line that names it."""
    with pytest.raises(ModelError, match=match) as caught:
        load(path)
    message = str(caught.value)
    assert "\n" not in message
    assert path.name in message


class TestExternalData:
    """Files beside the model."""

    def values(self, path: Path) -> list[float]:
        (constant,) = constants(load(path).graph)
        return list(constant.values)

    def test_offset_and_length(self, tmp_path: Path) -> None:
        assert self.values(external(tmp_path, "w.bin", 16, offset=4, length=8)) == [2, 3]

    def test_neither_offset_nor_length(self, tmp_path: Path) -> None:
        assert self.values(external(tmp_path, "w.bin")) == [1, 2]

    def test_folder_below(self, tmp_path: Path) -> None:
        assert self.values(external(tmp_path, "deep/er/w.bin")) == [1, 2]

    def test_dotted_path(self, tmp_path: Path) -> None:
        assert self.values(external(tmp_path, "./w.bin")) == [1, 2]

    def test_relative_model_path(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        external(tmp_path, "w.bin")
        monkeypatch.chdir(tmp_path)
        model = load("model.onnx")
        monkeypatch.chdir("/")
        assert list(constants(model.graph)[0].values) == [1, 2]

    def test_several_tensors_in_one_file(self, tmp_path: Path) -> None:
        proto = parse(
            """agraph (float[2] x) => (float[2] y) <float[2] a = {1, 2}, int64[3] b = {1, 2, 3}, float[0] none = {}>
            { k = Constant <value = float16[3] {1, 2, 3}> () y = Op(x, a, b, none, k) }"""
        )
        whole = np.arange(64, dtype=np.uint8)
        (tmp_path / "all.bin").write_bytes(whole.tobytes())
        tensors = [*proto.graph.initializer, proto.graph.node[0].attribute[0].t]
        places = [(0, 8), (11, 24), (64, 0), (35, 6)]
        for tensor, (offset, length) in zip(tensors, places, strict=True):
            tensor.ClearField("int64_data")
            tensor.ClearField("int32_data")
            refer(tensor, "all.bin", **({"offset": offset, "length": length} if offset else {}))
        model = load(write(proto, tmp_path / "model.onnx"))
        held = [*constants(model.graph), model.graph.nodes[0].attrs["value"]]
        for constant, tensor, (offset, length) in zip(held, tensors, places, strict=True):
            dtype = helper.tensor_dtype_to_np_dtype(tensor.data_type)
            expected = whole[offset : offset + length].copy().view(dtype).reshape(tuple(tensor.dims))
            np.testing.assert_array_equal(constant.values, expected)
            assert not constant.values.flags.writeable
        assert model.uses_external_data

    @pytest.mark.parametrize(
        "kind", [TensorProto.INT4, TensorProto.UINT2, TensorProto.FLOAT6E2M3, TensorProto.BFLOAT16]
    )
    def test_narrow_types(self, kind: int, tmp_path: Path) -> None:
        dtype = helper.tensor_dtype_to_np_dtype(kind)
        proto = parse(TEXT)
        wanted = np.array([1, 0, 1, 1, 0]).astype(dtype)
        tensor = numpy_helper.from_array(wanted, "w")
        (tmp_path / "w.bin").write_bytes(tensor.raw_data)
        refer(tensor, "w.bin")
        proto.graph.initializer[0].CopyFrom(tensor)
        (constant,) = constants(load(write(proto, tmp_path / "model.onnx")).graph)
        assert constant.values.tobytes() == wanted.tobytes()
        assert constant.values.dtype == dtype

    def test_it_is_not_read_before_it_is_looked_at(self, tmp_path: Path) -> None:
        """A hole of a tebibyte costs nothing."""
        proto = parse(TEXT)
        tensor = proto.graph.initializer[0]
        refer(tensor, "w.bin")
        del tensor.dims[:]
        tensor.dims.extend([2**38])
        with (tmp_path / "w.bin").open("wb") as file:
            file.truncate(2**40)
        model = load(write(proto, tmp_path / "model.onnx"))
        assert model.weight_bytes == 2**40
        assert constants(model.graph)[0].values[2**37] == 0

    def test_it_stays_readable_when_the_file_is_replaced(self, tmp_path: Path) -> None:
        path = external(tmp_path, "w.bin")
        model = load(path)
        (tmp_path / "w.bin").unlink()
        (tmp_path / "w.bin").symlink_to("/etc/hostname")
        assert list(constants(model.graph)[0].values) == [1, 2]

    def test_a_file_that_shrinks_is_an_error(self, tmp_path: Path) -> None:
        model = load(external(tmp_path, "w.bin"))
        os.truncate(tmp_path / "w.bin", 0)
        with pytest.raises(ModelError, match="cannot be read at byte 0"):
            _ = constants(model.graph)[0].values

    def test_linked_model_in_a_cache(self, tmp_path: Path) -> None:
        """Download caches keep files under other names, and link to both model and data."""
        real = external(tmp_path / "blobs", "w.bin")
        shown = tmp_path / "shown"
        shown.mkdir()
        (tmp_path / "blobs" / "w.bin").rename(tmp_path / "blobs" / "0123")
        (shown / "model.onnx").symlink_to(real)
        (shown / "w.bin").symlink_to(tmp_path / "blobs" / "0123")
        assert self.values(shown / "model.onnx") == [1, 2]

    @pytest.mark.parametrize(
        "location",
        ["/etc/hostname", "../w.bin", "deep/../../w.bin", "", "..", r"..\w.bin", r"C:\w.bin", r"\\host\w.bin"],
    )
    def test_paths_that_leave_the_folder(self, location: str, tmp_path: Path) -> None:
        (tmp_path / "inner").mkdir()
        (tmp_path / "w.bin").write_bytes(bytes(8))
        assert_refused(external(tmp_path / "inner", location, -1), "tensor 'w': .* inside the model's folder")

    def test_link_to_the_outside(self, tmp_path: Path) -> None:
        (tmp_path / "inner").mkdir()
        (tmp_path / "secret").write_bytes(bytes(8))
        (tmp_path / "inner" / "w.bin").symlink_to(tmp_path / "secret")
        assert_refused(external(tmp_path / "inner", "w.bin", -1), "tensor 'w': .* link that leaves")

    def test_linked_folder_to_the_outside(self, tmp_path: Path) -> None:
        (tmp_path / "inner").mkdir()
        (tmp_path / "elsewhere").mkdir()
        (tmp_path / "elsewhere" / "w.bin").write_bytes(bytes(8))
        (tmp_path / "inner" / "sub").symlink_to(tmp_path / "elsewhere")
        assert_refused(external(tmp_path / "inner", "sub/w.bin", -1), "tensor 'w': .* link that leaves")

    def test_link_inside_the_folder_is_fine(self, tmp_path: Path) -> None:
        path = external(tmp_path, "real.bin")
        external(tmp_path, "w.bin", -1)
        (tmp_path / "w.bin").symlink_to("real.bin")
        assert self.values(path) == [1, 2]

    @pytest.mark.parametrize(
        ("location", "entries", "match"),
        [
            ("w.bin", {"offset": 4}, "has 8 bytes but bytes 4 to 12"),
            ("w.bin", {"offset": -4}, "has 8 bytes but bytes -4 to 4"),
            ("w.bin", {"offset": 2**70}, "has 8 bytes but bytes"),
            ("w.bin", {"length": 4}, "has 4 bytes but shape .2. needs 8"),
            ("w.bin", {"length": -1}, "has -1 bytes"),
            ("w.bin", {"offset": "zero"}, "tensor 'w': external data entry .* not readable"),
            ("w.bin", {"length": ""}, "tensor 'w': external data entry .* not readable"),
            ("w.bin", {"offset": "9" * 5000}, "tensor 'w': external data entry .* not readable"),
            ("missing.bin", {}, "tensor 'w': .* does not exist"),
            ("folder", {}, "tensor 'w': .* is not a file"),
            ("pipe", {}, "tensor 'w': .* is not a file"),
            ("ring", {}, "tensor 'w': .* cannot be read"),
            ("a\0b", {}, "tensor 'w': .* cannot be read"),
            ("n" * 5000, {}, "tensor 'w': .* cannot be read"),
            ("model.onnx/w.bin", {}, "tensor 'w': "),
        ],
    )
    def test_bad_references(self, location: str, entries: dict[str, object], match: str, tmp_path: Path) -> None:
        (tmp_path / "w.bin").write_bytes(bytes(8))
        (tmp_path / "folder").mkdir()
        os.mkfifo(tmp_path / "pipe")
        (tmp_path / "ring").symlink_to("ring")
        assert_refused(external(tmp_path, location, -1, **entries), match)

    def test_without_location(self, tmp_path: Path) -> None:
        proto = parse(TEXT)
        proto.graph.initializer[0].data_location = TensorProto.EXTERNAL
        assert_refused(write(proto, tmp_path / "model.onnx"), "tensor 'w': external data entry")

    def test_strings(self, tmp_path: Path) -> None:
        proto = parse(TEXT)
        tensor = proto.graph.initializer[0]
        refer(tensor, "w.bin")
        tensor.data_type = TensorProto.STRING
        (tmp_path / "w.bin").write_bytes(bytes(8))
        assert_refused(write(proto, tmp_path / "model.onnx"), "tensor 'w': strings cannot be external")

    @pytest.mark.parametrize("where", ["body", "function", "sparse", "list", "training"])
    def test_every_place_is_looked_at(self, where: str, tmp_path: Path) -> None:
        """What cannot be carried is refused, what can be is checked."""
        proto = LOSSLESS["training info"]() if where == "training" else LOSSLESS["function details"]()
        tensor = onnx.TensorProto(name="bad", dims=[2], data_type=TensorProto.FLOAT)
        refer(tensor, "/etc/hostname")
        if where == "body":
            proto.functions[0].node[1].attribute[0].g.initializer.append(tensor)
        elif where == "function":
            proto.functions[0].node[0].attribute[0].t.CopyFrom(tensor)
        elif where == "sparse":
            proto.graph.sparse_initializer.append(sparse("linear").graph.sparse_initializer[0])
            refer(proto.graph.sparse_initializer[0].values, "w.bin")
        elif where == "list":
            proto.graph.node[0].attribute.append(helper.make_attribute("ts", [tensor]))
        else:
            proto.training_info[0].initialization.initializer.append(tensor)
        assert_refused(write(proto, tmp_path / "model.onnx"), "external data")

    def test_lists_of_external_tensors_cannot_be_carried(self, tmp_path: Path) -> None:
        proto = LOSSLESS["function details"]()
        tensor = onnx.TensorProto(name="t", dims=[2], data_type=TensorProto.FLOAT)
        refer(tensor, "w.bin")
        (tmp_path / "w.bin").write_bytes(bytes(8))
        proto.graph.node[0].attribute.append(helper.make_attribute("ts", [tensor]))
        assert_refused(write(proto, tmp_path / "model.onnx"), "attribute 'ts' holds external data")


def change(field: str, value: object) -> Callable[[onnx.TensorProto], None]:
    """Return a function that sets one field of a tensor."""

    def apply(tensor: onnx.TensorProto) -> None:
        if isinstance(value, list):
            tensor.ClearField(field)
            getattr(tensor, field).extend(value)
        else:
            setattr(tensor, field, value)

    return apply


@pytest.mark.parametrize(
    ("edit", "match"),
    [
        (change("dims", [-2]), "tensor 'w' has a negative dimension"),
        (change("dims", [2**60]), "tensor 'w' of shape .* needs 1152921504606846976 values but holds 2"),
        (change("dims", [2**62]), "tensor 'w' has an impossible size"),
        (change("dims", [0, 2**62]), "tensor 'w' has an impossible size"),
        (change("dims", [2**62, 2**62, 2**62]), "tensor 'w' has an impossible size"),
        (change("dims", [1] * 100), "tensor 'w' has 100 dimensions"),
        (change("dims", [3]), "tensor 'w' of shape .3. needs 3 values but holds 2"),
        (change("dims", []), "tensor 'w' of shape .. needs 1 values but holds 2"),
        (change("raw_data", b"1234567"), "tensor 'w' of shape .2. needs 8 bytes but holds 7"),
        (change("raw_data", b""), "tensor 'w' of shape .2. needs 8 bytes but holds 0"),
        (
            lambda tensor: (change("raw_data", b"12345678")(tensor), change("data_type", 8)(tensor)),
            "tensor 'w' holds strings as raw bytes",
        ),
        (change("data_type", 0), "element type 0 is not known"),
        (change("data_type", 999), "element type 999 is not known"),
        (change("data_type", -1), "element type -1 is not known"),
        (change("data_type", TensorProto.COMPLEX64), "tensor 'w' of shape .2. needs 4 values but holds 2"),
        (change("data_type", TensorProto.STRING), "tensor 'w' of shape .2. needs 2 values but holds 0"),
        (
            lambda tensor: tensor.segment.CopyFrom(TensorProto.Segment(begin=0, end=1)),
            "tensor 'w' is stored in segments",
        ),
    ],
)
def test_impossible_tensors(edit: Callable[[onnx.TensorProto], None], match: str, tmp_path: Path) -> None:
    proto = parse(TEXT)
    edit(proto.graph.initializer[0])
    assert_refused(write(proto, tmp_path / "model.onnx"), match)


@pytest.mark.parametrize(
    ("edit", "match"),
    [
        (lambda s: s.dims.__setitem__(0, -1), "tensor 's' has a negative dimension"),
        (lambda s: s.dims.__setitem__(0, 1), "sparse tensor 's' has indices outside"),
        (lambda s: s.dims.append(2**62), "tensor 's' has an impossible size"),
        (lambda s: s.values.dims.append(1), "sparse tensor 's' must have values along one axis"),
        (lambda s: s.indices.dims.append(2), "tensor 'where' of shape .2, 2. needs 32 bytes but holds 16"),
        (lambda s: s.indices.CopyFrom(numpy_helper.from_array(np.array([-1, 0]))), "indices outside"),
        (lambda s: s.values.CopyFrom(numpy_helper.from_array(np.ones(1, np.float32), "s")), "has indices of shape"),
    ],
)
def test_impossible_sparse_tensors(
    edit: Callable[[onnx.SparseTensorProto], object], match: str, tmp_path: Path
) -> None:
    proto = sparse("linear")
    edit(proto.graph.sparse_initializer[0])
    assert_refused(write(proto, tmp_path / "model.onnx"), match)


def test_sparse_tensor_too_large_for_memory(tmp_path: Path) -> None:
    proto = sparse("linear")
    proto.graph.sparse_initializer[0].dims.append(2**52)
    (constant,) = constants(load(write(proto, tmp_path / "model.onnx")).graph)
    with pytest.raises(ModelError, match="sparse tensor 's' is too large as a dense one"):
        _ = constant.values


class TestFiles:
    """What is no model at all."""

    def test_missing(self, tmp_path: Path) -> None:
        assert_refused(tmp_path / "none.onnx", "cannot read .*No such file")

    def test_folder(self, tmp_path: Path) -> None:
        assert_refused(tmp_path, "is a folder")

    def test_empty(self, tmp_path: Path) -> None:
        (tmp_path / "m.onnx").touch()
        assert_refused(tmp_path / "m.onnx", "is empty")

    def test_text(self, tmp_path: Path) -> None:
        (tmp_path / "m.onnx").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
        assert_refused(tmp_path / "m.onnx", "is not an ONNX model")

    def test_truncated(self, tmp_path: Path) -> None:
        whole = LOSSLESS["decorated"]().SerializeToString()
        (tmp_path / "m.onnx").write_bytes(whole[: len(whole) // 2])
        assert_refused(tmp_path / "m.onnx", "is not an ONNX model, or is truncated")

    def test_no_graph(self, tmp_path: Path) -> None:
        assert_refused(write(onnx.ModelProto(ir_version=8), tmp_path / "m.onnx"), "has no graph")

    def test_ring_of_links(self, tmp_path: Path) -> None:
        (tmp_path / "m.onnx").symlink_to("m.onnx")
        assert_refused(tmp_path / "m.onnx", "cannot read")

    def test_zero_byte_in_the_path(self, tmp_path: Path) -> None:
        with pytest.raises(ModelError, match="cannot read"):
            load(tmp_path / "m\0.onnx")

    def test_too_large_for_protobuf(self, tmp_path: Path) -> None:
        with (tmp_path / "m.onnx").open("wb") as file:
            file.truncate(2**31 + 1)
        assert_refused(tmp_path / "m.onnx", "above 2 GiB")

    @pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="root may read everything")
    def test_no_permission(self, tmp_path: Path) -> None:
        write(parse(TEXT), tmp_path / "m.onnx").chmod(0)
        assert_refused(tmp_path / "m.onnx", "cannot read .*Permission denied")

    def test_name_that_is_not_text(self, tmp_path: Path) -> None:
        proto = parse("agraph (float x) => (float y) { y = QQQQ(x) }")
        (tmp_path / "m.onnx").write_bytes(proto.SerializeToString().replace(b"QQQQ", b"\xff\xfe\xfd\xfc"))
        assert_refused(tmp_path / "m.onnx", "NodeProto.op_type is .* not UTF-8")

    @pytest.mark.parametrize("depth", [5, 50, 5000])
    def test_bodies_in_bodies(self, depth: int, tmp_path: Path) -> None:
        path = tmp_path / "m.onnx"
        path.write_bytes(nested_bytes(depth))
        if depth <= 5:
            assert len(list(walk_nodes(load(path).graph))) == depth + 1
        else:
            assert_refused(path, "nests its graphs too deeply")

    def test_cycle(self, tmp_path: Path) -> None:
        proto = parse("agraph (float x) => (float y) { a = Add(x, b) b = Neg(a) y = Neg(b) }")
        assert_refused(write(proto, tmp_path / "m.onnx"), r"\(Add\) depends on its own output")

    def test_unsorted_nodes_are_sorted(self, tmp_path: Path) -> None:
        proto = parse("agraph (float x) => (float y) { y = Neg(b) b = Abs(a) a = Exp(x) }")
        model = load(write(proto, tmp_path / "m.onnx"))
        assert [node.op for node in model.graph.nodes] == ["Exp", "Abs", "Neg"]


def nested_bytes(depth: int) -> bytes:
    """Return a model with If in If, `depth` deep; written by hand since protobuf itself does not go that deep."""

    def field(number: int, content: bytes) -> bytes:
        length, size = b"", len(content)
        while size > 127:
            length += bytes([size & 127 | 128])
            size >>= 7
        return bytes([number << 3 | 2]) + length + bytes([size]) + content

    leaf = helper.make_node("Neg", ["x"], ["y"]).SerializeToString()
    graph = field(1, leaf) + field(2, b"g")
    for _ in range(depth):
        attribute = field(1, b"body") + field(6, graph) + bytes([20 << 3 | 128 & 0xFF, 1, 5])
        graph = field(1, field(1, b"x") + field(4, b"If") + field(5, attribute)) + field(2, b"g")
    return bytes([8, 10]) + field(7, graph) + field(8, bytes([16, 21]))


SEEDS = [LOSSLESS[name]().SerializeToString() for name in ("decorated", "nested bodies", "attributes of all kinds")]
SEEDS += [sparse("coordinates").SerializeToString(), LOSSLESS["training info"]().SerializeToString()]


@given(st.data())
def test_damaged_files_never_surprise(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    """Flipped, cut, doubled or inserted bytes: the file loads and can be saved, or is refused as a model error."""
    raw = bytearray(data.draw(st.sampled_from(SEEDS)))
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(raw) - 1))
        kind = data.draw(st.sampled_from(["flip", "cut", "insert", "double"]))
        if kind == "flip":
            raw[at] ^= data.draw(st.integers(1, 255))
        elif kind == "cut":
            del raw[at : at + data.draw(st.integers(1, 20))]
        elif kind == "insert":
            raw[at:at] = data.draw(st.binary(min_size=1, max_size=5))
        else:
            raw[at:at] = raw[max(0, at - 20) : at]
        raw = raw or bytearray(b"\0")
    folder = tmp_path_factory.mktemp("fuzz")
    path = folder / "m.onnx"
    path.write_bytes(bytes(raw))
    message = ""
    try:
        model = load(path)
        for constant in constants(model.graph):
            _ = constant.values
        model.copy().save(folder / "out.onnx")
        load(folder / "out.onnx")
    except ModelError as error:
        message = str(error)
    assert "\n" not in message
