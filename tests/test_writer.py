"""Writing is atomic, streamed and repeatable."""

from __future__ import annotations

import errno
import gc
import io
import os
import resource
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import pytest
from google.protobuf.message import EncodeError
from onnx import TensorProto, numpy_helper

from graphopt import writer
from graphopt.errors import ModelError
from graphopt.ir.exporter import export_graph
from graphopt.ir.graph import constants
from graphopt.model import Model
from graphopt.reader import load
from tests.helpers import assert_same_model, outputs_of, parse
from tests.test_ir import LOSSLESS

X = {"x": np.zeros(1024, np.float32)}


def model(value: float = 1.0, external: bool = False) -> Model:
    """Return x + w + small with a w of 4096 bytes, all of one value."""
    proto = parse(
        "agraph (float[1024] x) => (float[1024] y) <float[1] small = {0}> { a = Add(x, w) y = Add(a, small) }"
    )
    proto.graph.initializer.append(numpy_helper.from_array(np.full(1024, value, np.float32), "w"))
    made = Model.from_proto(proto)
    made.uses_external_data = external
    return made


def value_of(path: Path) -> float:
    """Return what the model file computes, as ONNX Runtime opens it from the disk."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return float(session.run(None, X)[0][0])


def names(folder: Path) -> list[str]:
    return sorted(item.name for item in folder.iterdir())


class TestFiles:
    """Which files there are afterwards."""

    def test_one_file(self, tmp_path: Path) -> None:
        saved = model().save(tmp_path / "m.onnx")
        assert names(tmp_path) == ["m.onnx"]
        assert (saved.path, saved.data_path) == (tmp_path / "m.onnx", None)
        assert saved.nbytes == (tmp_path / "m.onnx").stat().st_size

    def test_external_data(self, tmp_path: Path) -> None:
        saved = model(3).save(tmp_path / "m.onnx", external_data=True)
        assert names(tmp_path) == ["m.onnx", "m.onnx.data"]
        assert saved.data_path == tmp_path / "m.onnx.data"
        assert saved.nbytes == sum(path.stat().st_size for path in tmp_path.iterdir())
        proto = onnx.load(saved.path, load_external_data=False)
        where = {t.name: {e.key: e.value for e in t.external_data} for t in proto.graph.initializer}
        assert where == {"small": {}, "w": {"location": "m.onnx.data", "offset": "0", "length": "4096"}}
        assert value_of(saved.path) == 3
        onnx.checker.check_model(str(saved.path), full_check=True)

    def test_nothing_large_means_no_data_file(self, tmp_path: Path) -> None:
        small = Model.from_proto(parse("agraph (float[2] x) => (float[2] y) <float[2] w = {1, 2}> { y = Add(x, w) }"))
        assert small.save(tmp_path / "m.onnx", external_data=True).data_path is None
        assert names(tmp_path) == ["m.onnx"]

    def test_strings_stay_in_the_model(self, tmp_path: Path) -> None:
        proto = parse("agraph (float x) => (string[2] s) { }")
        proto.graph.initializer.append(numpy_helper.from_array(np.array(["é" * 2000, ""], object), "s"))
        saved = Model.from_proto(proto).save(tmp_path / "m.onnx", external_data=True)
        assert saved.data_path is None
        assert_same_model(onnx.load(saved.path), proto)

    def test_weights_of_odd_sizes_start_on_cache_lines(self) -> None:
        file = io.BytesIO()
        stream = writer.DataStream(file, "data")
        protos = [stream.write(name, np.full(257, value, np.float32)) for value, name in enumerate("ab")]
        offsets = [int(entry.value) for proto in protos for entry in proto.external_data if entry.key == "offset"]
        assert offsets == [0, 1088]
        assert len(file.getvalue()) == stream.used == 1088 + 1028

    def test_every_weight_is_aligned_and_stored_once(self, tmp_path: Path) -> None:
        made = model(2)
        shared = gs.Constant("more", np.full(1030, 5, np.float32)[:1024])
        made.graph.nodes[1].inputs[1] = shared
        saved = made.save(tmp_path / "m.onnx", external_data=True)
        proto = onnx.load(saved.path, load_external_data=False)
        offsets = [int(e.value) for t in proto.graph.initializer for e in t.external_data if e.key == "offset"]
        assert offsets == [0, 4096]
        assert (tmp_path / "m.onnx.data").stat().st_size == 8192
        assert value_of(saved.path) == 7

    @pytest.mark.parametrize(
        "dtype", ["int4", "float8_e4m3fn", "bfloat16", "uint2", "float4_e2m1fn", "bool", "complex64"]
    )
    def test_every_kind_of_array(self, dtype: str, tmp_path: Path) -> None:
        import ml_dtypes

        kind = np.dtype(getattr(ml_dtypes, dtype, dtype))
        values = np.tile(np.array([1, 0, 1, 1, 0]).astype(kind), 3001)
        proto = parse("agraph (float x) => (float y) { y = Op(x, w) }")
        made = Model.from_proto(proto)
        made.graph.nodes[0].inputs[1] = gs.Constant("w", values)
        saved = made.save(tmp_path / "m.onnx", external_data=True)
        (constant,) = constants(load(saved.path).graph)
        assert constant.dtype == kind
        assert constant.values.tobytes() == values.tobytes()
        (tensor,) = made.to_proto().graph.initializer
        assert (tmp_path / "m.onnx.data").read_bytes() == tensor.raw_data

    def test_names_are_not_taken_from_others(self, tmp_path: Path) -> None:
        """A file of that name belongs to somebody else."""
        (tmp_path / "m.onnx.data").write_text("notes")
        model(3).save(tmp_path / "m.onnx", external_data=True)
        assert (tmp_path / "m.onnx.data").read_text() == "notes"
        assert names(tmp_path) == ["m.onnx", "m.onnx.1.data", "m.onnx.data"]
        assert value_of(tmp_path / "m.onnx") == 3

    def test_attributes_stay_inline(self, tmp_path: Path) -> None:
        """Runtimes want the value of a Constant node in the model."""
        proto = parse("agraph (float[1024] x) => (float[1024] y) { w = Constant() y = Add(x, w) }")
        tensor = numpy_helper.from_array(np.full(1024, 6, np.float32), "v")
        proto.graph.node[0].attribute.append(onnx.helper.make_attribute("value", tensor))
        saved = Model.from_proto(proto).save(tmp_path / "m.onnx", external_data=True)
        assert saved.data_path is None
        assert value_of(saved.path) == 6


class TestReplacing:
    """An old file at the same place."""

    @pytest.mark.parametrize("before", [False, True])
    @pytest.mark.parametrize("after", [False, True])
    def test_old_data_goes(self, before: bool, after: bool, tmp_path: Path) -> None:
        path = tmp_path / "m.onnx"
        model(1).save(path, external_data=before)
        model(2).save(path, external_data=after)
        assert value_of(path) == 2
        assert len(names(tmp_path)) == 1 + after

    def test_over_its_own_external_data(self, tmp_path: Path) -> None:
        path = tmp_path / "m.onnx"
        model(4).save(path, external_data=True)
        own = load(path)
        for _ in range(3):
            saved = own.save(path)
            assert value_of(path) == 4
            assert len(names(tmp_path)) == 2
        own.save(tmp_path / "other.onnx", external_data=False)  # its first data file is long gone
        assert value_of(tmp_path / "other.onnx") == 4
        assert saved.data_path is not None

    def test_foreign_data_stays(self, tmp_path: Path) -> None:
        """Data under a name that is not the model's own may serve other models."""
        path = tmp_path / "m.onnx"
        model(1).save(tmp_path / "other.onnx", external_data=True)
        (tmp_path / "other.onnx").rename(path)
        load(path).save(path)
        assert names(tmp_path) == ["m.onnx", "m.onnx.data", "other.onnx.data"]

    def test_over_something_else(self, tmp_path: Path) -> None:
        for content in (b"", b"\xff\xff", b"text"):
            (tmp_path / "m.onnx").write_bytes(content)
            model(5).save(tmp_path / "m.onnx", external_data=True)
            assert value_of(tmp_path / "m.onnx") == 5

    @pytest.mark.parametrize("mode", [0o600, 0o644, 0o664])
    @pytest.mark.parametrize("external", [False, True])
    def test_mode_is_kept(self, mode: int, external: bool, tmp_path: Path) -> None:
        path = tmp_path / "m.onnx"
        path.touch(mode)
        path.chmod(mode)
        saved = model().save(path, external_data=external)
        for file in (saved.path, saved.data_path or saved.path):
            assert stat.S_IMODE(file.stat().st_mode) == mode

    def test_new_files_follow_the_umask(self, tmp_path: Path) -> None:
        previous = os.umask(0o027)
        try:
            model().save(tmp_path / "m.onnx")
        finally:
            os.umask(previous)
        assert stat.S_IMODE((tmp_path / "m.onnx").stat().st_mode) == 0o640

    def test_same_bytes_every_time(self, tmp_path: Path) -> None:
        proto = LOSSLESS["decorated"]()
        for name in ("a", "b"):
            (tmp_path / name).mkdir()
            Model.from_proto(proto).save(tmp_path / name / "m.onnx")
            model().save(tmp_path / name / "e.onnx", external_data=True)
        for file in names(tmp_path / "a"):
            assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


class TestLinks:
    """The output path is a symbolic link."""

    def test_the_file_behind_it_is_replaced(self, tmp_path: Path) -> None:
        (tmp_path / "real").mkdir()
        model(1).save(tmp_path / "real" / "m.onnx")
        (tmp_path / "link.onnx").symlink_to("real/m.onnx")
        saved = model(2).save(tmp_path / "link.onnx")
        assert (tmp_path / "link.onnx").is_symlink()
        assert saved.path == tmp_path / "real" / "m.onnx"
        assert value_of(tmp_path / "real" / "m.onnx") == value_of(tmp_path / "link.onnx") == 2
        assert names(tmp_path / "real") == ["m.onnx"]

    def test_to_nowhere(self, tmp_path: Path) -> None:
        (tmp_path / "link.onnx").symlink_to("m.onnx")
        model(2).save(tmp_path / "link.onnx", external_data=True)
        assert value_of(tmp_path / "m.onnx") == 2
        assert names(tmp_path) == ["link.onnx", "m.onnx", "m.onnx.data"]

    def test_with_data_it_is_replaced_by_the_file(self, tmp_path: Path) -> None:
        """Runtimes look for data beside the link, or in the folder of the file; so both must be one."""
        (tmp_path / "real").mkdir()
        model(1).save(tmp_path / "real" / "m.onnx")
        (tmp_path / "link.onnx").symlink_to("real/m.onnx")
        model(2).save(tmp_path / "link.onnx", external_data=True)
        assert value_of(tmp_path / "link.onnx") == 2
        assert value_of(tmp_path / "real" / "m.onnx") == 1

    def test_ring(self, tmp_path: Path) -> None:
        (tmp_path / "a.onnx").symlink_to("a.onnx")
        with pytest.raises(ModelError, match="cannot write"):
            model().save(tmp_path / "a.onnx")


class TestFailure:
    """Whatever fails, the old files are intact and no other is left."""

    @pytest.mark.parametrize("existing", [None, False, True])
    @pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()], ids=repr)
    @pytest.mark.parametrize(
        ("broken", "external"),
        [(step, external) for step in ("write", "fsync", "replace", "mkstemp") for external in (False, True)]
        + [("second replace", True)],
    )
    def test_nothing_is_lost(
        self, broken: str, error: BaseException, existing: bool | None, external: bool, tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:  # fmt: skip
        path = tmp_path / "m.onnx"
        if existing is not None:
            model(1).save(path, external_data=existing)
        before = {name: (tmp_path / name).read_bytes() for name in names(tmp_path)}
        with monkeypatch.context() as patch:
            break_it(patch, broken, error)
            expected = ModelError if isinstance(error, OSError) else KeyboardInterrupt
            with pytest.raises(expected, match=r"cannot write .*No space left" if expected is ModelError else None):
                model(2).save(path, external_data=external)
        assert {name: (tmp_path / name).read_bytes() for name in names(tmp_path)} == before

    def test_full_disk_for_real(self, tmp_path: Path) -> None:
        """A limit on file sizes ends the stream in the middle."""
        path = tmp_path / "m.onnx"
        model(1).save(path)
        code = f"""
import resource, signal, sys
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
from graphopt.errors import ModelError
from graphopt.reader import load
from pathlib import Path
model = load(Path({str(path)!r}))
resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))
for external in (False, True):
    try:
        model.save(Path({str(path)!r}), external_data=external)
    except ModelError as error:
        print(error)
"""
        run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert run.stdout.count("cannot write") == 2
        assert names(tmp_path) == ["m.onnx"]
        assert value_of(path) == 1

    def test_missing_folder(self, tmp_path: Path) -> None:
        with pytest.raises(ModelError, match=r"cannot write .*No such file"):
            model().save(tmp_path / "none" / "m.onnx")

    def test_folder(self, tmp_path: Path) -> None:
        with pytest.raises(ModelError, match=r"cannot write .*is a folder"):
            model().save(tmp_path)
        assert names(tmp_path) == []

    @pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="root may write everywhere")
    def test_read_only_folder(self, tmp_path: Path) -> None:
        tmp_path.chmod(0o500)
        with pytest.raises(ModelError, match=r"cannot write .*Permission"):
            model().save(tmp_path / "m.onnx")

    def test_too_large_for_one_message(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Tensors in attributes stay in the model file, and nothing can be done if they fill it."""

        class TooLarge:
            def SerializeToString(self, **_: object) -> bytes:  # noqa: N802  # protobuf's name
                raise EncodeError("too large")

        with monkeypatch.context() as patch:
            patch.setattr("graphopt.model.export_graph", lambda *_: TooLarge())
            with pytest.raises(ModelError, match="does not fit into one protobuf message"):
                model().save(tmp_path / "m.onnx", external_data=True)
        monkeypatch.setattr("graphopt.ir.wire._LIMIT", 1000)
        with pytest.raises(ModelError, match="does not fit into one protobuf message"):
            model().save(tmp_path / "m.onnx", external_data=False)
        assert names(tmp_path) == []

    def test_model_that_cannot_be_expressed(self, tmp_path: Path) -> None:
        made = model()
        made.graph.nodes[0].attrs["empty"] = []
        with pytest.raises(ModelError, match="attribute 'empty' is an empty list"):
            made.save(tmp_path / "m.onnx", external_data=True)
        assert names(tmp_path) == []


def break_it(patch: pytest.MonkeyPatch, what: str, error: BaseException) -> None:
    """Make one step of writing fail."""
    if what == "write":
        patch.setattr(writer, "_finish", _raiser(error))
    elif what == "mkstemp":
        patch.setattr("tempfile.mkstemp", _raiser(error))
    elif what == "second replace":
        real, calls = os.replace, []

        def replace(source: Path, target: Path) -> None:
            calls.append(target)
            if len(calls) == 2:
                raise error
            real(source, target)

        patch.setattr(os, "replace", replace)
    else:
        patch.setattr(os, what, _raiser(error))


def _raiser(error: BaseException) -> Callable[..., None]:
    def fail(*_args: object, **_kwargs: object) -> None:
        raise error

    return fail


def holes(folder: Path, count: int, nbytes: int) -> Path:
    """Write a model of `count` weights of `nbytes` bytes each, whose data file is one large hole."""
    proto = parse("agraph (float[1] x) => (float[1] y) { }")
    graph = proto.graph
    last = "x"
    for number in range(count):
        tensor = graph.initializer.add(name=f"w{number}", data_type=TensorProto.FLOAT, dims=[nbytes // 4, 1])
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in (("location", "holes.bin"), ("offset", number * nbytes), ("length", nbytes)):
            tensor.external_data.add(key=key, value=str(value))
        graph.node.append(onnx.helper.make_node("Op", [last, f"w{number}"], [f"t{number}"], domain="c"))
        last = f"t{number}"
    graph.output[0].name = last
    proto.opset_import.add(domain="c", version=1)
    with (folder / "holes.bin").open("wb") as file:
        file.truncate(count * nbytes)
    path = folder / "big.onnx"
    path.write_bytes(proto.SerializeToString())
    return path


@pytest.mark.slow
def test_more_than_protobuf_holds(tmp_path: Path) -> None:
    """2.5 GiB in, 2.5 GiB out, in less memory than one weight takes."""
    path = holes(tmp_path, 5, 2**29)
    code = f"""
import resource
from pathlib import Path
from graphopt.reader import load
model = load(Path({str(path)!r}))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
copy = model.copy()
copy.fingerprint(); copy.skeleton()
saved = copy.save(Path({str(tmp_path / "out.onnx")!r}))
print(saved.nbytes, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    nbytes, grown = map(int, run.stdout.split())
    assert nbytes > 5 * 2**29
    assert grown < 100
    assert (tmp_path / "out.onnx").stat().st_size < 10_000
    assert len(constants(load(tmp_path / "out.onnx").graph)) == 5


def test_only_a_file_that_may_refer_to_data_is_parsed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A plain model of gigabytes is replaced without being taken into memory."""
    path = tmp_path / "model.onnx"
    plain = model().save(path).path.read_bytes()
    parsed: list[Path] = []
    read = Path.read_bytes

    def read_bytes(path: Path) -> bytes:
        parsed.append(path)
        return read(path)

    monkeypatch.setattr(Path, "read_bytes", read_bytes)
    for previous in (b"", b"no model", b"no model, in no location", plain):
        path.write_bytes(previous)
        assert model(2.0).save(path).left_over == ()
    assert len(parsed) == 1, "that with the word"
    model(3.0, external=True).save(path)
    model(4.0).save(path)
    assert len(parsed) == 2
    assert names(tmp_path) == ["model.onnx"]


@pytest.mark.parametrize("value", [1, 5])
def test_scratch_files(value: float, tmp_path: Path) -> None:
    """Read by this process only, so without the care."""
    made = model(value)
    writer.write_scratch(lambda write: export_graph(made.graph, made.residue, write), tmp_path / "s.onnx")
    assert names(tmp_path) == ["s.onnx", "s.onnx.data"]
    assert value_of(tmp_path / "s.onnx") == value
    with pytest.raises(ModelError, match="cannot write"):
        writer.write_scratch(lambda write: export_graph(made.graph, made.residue, write), tmp_path / "no" / "s.onnx")


def test_a_large_model_is_written_with_data_unasked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The switch to external data above 2 GiB, with a lower limit."""
    monkeypatch.setattr("graphopt.model.PROTOBUF_LIMIT", 2**26 + 1000)
    saved = model(8).save(tmp_path / "m.onnx")
    assert saved.data_path is not None
    assert value_of(saved.path) == 8


def test_a_proto_that_would_be_too_large_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("graphopt.model.PROTOBUF_LIMIT", 1000)
    with pytest.raises(ModelError, match="4100 bytes of weights does not fit"):
        model().to_proto()


def test_resources_are_given_back(tmp_path: Path) -> None:
    """Files of models that are gone are closed."""
    path = tmp_path / "m.onnx"
    model().save(path, external_data=True)
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    count = len(os.listdir("/proc/self/fd")) if Path("/proc/self/fd").exists() else 0
    for _ in range(min(limit, 200)):
        outputs_of(load(path), X)
    gc.collect()
    after = len(os.listdir("/proc/self/fd")) if Path("/proc/self/fd").exists() else 0
    assert after <= count + 10
