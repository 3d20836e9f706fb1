"""Compressed model files: what goes in comes out, and what is damaged or a bomb is refused in one line."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import zstandard
from onnx import TensorProto, helper, numpy_helper

from graphopt.compressed import compressed, decompressed
from graphopt.destinations import output_path
from graphopt.errors import ModelError
from graphopt.model import Model
from graphopt.reader import load


def model() -> Model:
    weight = numpy_helper.from_array(np.zeros((64, 64), np.float32), "w")
    infos = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 64]) for name in "xy"]
    graph = helper.make_graph([helper.make_node("MatMul", ["x", "w"], ["y"])], "g", infos[:1], infos[1:], [weight])
    return Model.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]))


def test_there_and_back(tmp_path: Path) -> None:
    original = model()
    path = tmp_path / "m.onnx.zst"
    saved = original.save(path)
    assert saved.nbytes == path.stat().st_size < 1000
    plain = original.save(tmp_path / "plain.onnx").path
    assert zstandard.ZstdDecompressor().decompress(path.read_bytes()) == plain.read_bytes()
    assert load(path).to_proto() == original.to_proto()
    first = path.read_bytes()
    load(path).save(path)
    assert path.read_bytes() == first


def test_external_data_come_into_the_file(tmp_path: Path) -> None:
    model().save(tmp_path / "m.onnx", external_data=True)
    outside = load(tmp_path / "m.onnx")
    outside.save(tmp_path / "m.onnx.zst")
    assert not list(tmp_path.glob("*.zst.data"))
    np.testing.assert_array_equal(load(tmp_path / "m.onnx.zst").graph.nodes[0].inputs[1].values, np.zeros((64, 64)))
    with pytest.raises(ModelError, match="one file"):
        outside.save(tmp_path / "n.onnx.zst", external_data=True)
    assert not (tmp_path / "n.onnx.zst").exists()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"no zstd at all", "no zstd file"),
        (compressed(bytes(range(256)) * 99)[:50], "is truncated"),
        (compressed(b"x" * 99), "not an ONNX model"),
        (compressed(b""), "is empty"),
        (b"", "is empty"),
    ],
)
def test_what_is_wrong_is_refused_by_name(tmp_path: Path, content: bytes, reason: str) -> None:
    path = tmp_path / "m.onnx.zst"
    path.write_bytes(content)
    with pytest.raises(ModelError, match=reason) as caught:
        load(path)
    assert "m.onnx.zst" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_bomb_is_not_unpacked() -> None:
    bomb = compressed(bytes(10_000_000))
    assert len(bomb) < 10_000
    with pytest.raises(ModelError, match="more than 1000 bytes"):
        decompressed(bomb, 1000)
    assert len(decompressed(compressed(b"a") + compressed(b"b"), 1000)) == 2, "several frames are one file"


def test_name_of_the_result() -> None:
    for name in ("m.onnx", "m.onnx.zst", "m"):
        assert output_path(Path(name), None, in_place=False) == Path("m.opt.onnx")
