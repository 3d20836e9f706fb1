"""Weights that ONNX Runtime takes from where they are."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from graphopt.ir.graph import constants
from graphopt.model import Model
from graphopt.reader import load
from graphopt.runtime import session as sessions
from graphopt.runtime.lending import lend
from graphopt.runtime.session import open_session
from tests.helpers import parse

WIDTH = 64  # 16 KiB a weight


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Model:
    """Two products whose weights lie in a file; treated as too large for one message."""
    monkeypatch.setattr(sessions, "_IN_MEMORY", 2**13)
    proto = parse(f"agraph (float[2, {WIDTH}] x) => (float[2, {WIDTH}] y) {{ a = MatMul(x, v)  y = MatMul(a, w) }}")
    rng = np.random.default_rng(0)
    for name in ("v", "w"):
        values = rng.standard_normal((WIDTH, WIDTH)).astype(np.float32)
        proto.graph.initializer.append(onnx.numpy_helper.from_array(values, name))
    return load(Model.from_proto(proto).save(tmp_path / "model.onnx", external_data=True).path)


def expected(model: Model, x: np.ndarray) -> np.ndarray:
    v, w = (constant.values for constant in constants(model.graph))
    return np.asarray(x @ v @ w)


def check(model: Model) -> None:
    x = np.random.default_rng(1).standard_normal((2, WIDTH)).astype(np.float32)
    with open_session(model, optimize=False) as session:
        found = session.run({"x": x})["y"]
    np.testing.assert_allclose(found, expected(model, x), rtol=1e-4, atol=1e-4)


def test_external_data_stay_in_their_file(model: Model) -> None:
    loan = lend(model)
    assert not loan.values
    assert {tensor.external_data[0].value for tensor in loan.rest.graph.initializer} == {"model.onnx.data"}
    check(model)


def test_a_new_weight_is_lent_beside_them(model: Model) -> None:
    first = constants(model.graph)[0]
    first.values = np.eye(WIDTH, dtype=np.float32) * 3
    assert set(lend(model).values) == {first.name}
    check(model)


def test_a_renamed_weight_is_found(model: Model) -> None:
    constants(model.graph)[1].name = "other"
    assert not lend(model).values
    check(model)


def test_a_link_out_of_the_folder_is_lent(model: Model, tmp_path: Path) -> None:
    """As in download caches, where model and data are links into another folder."""
    folder = tmp_path / "links"
    folder.mkdir()
    for name in ("model.onnx", "model.onnx.data"):
        (folder / name).symlink_to(tmp_path / name)
    linked = load(folder / "model.onnx")
    assert set(lend(linked).values) == {"v", "w"}
    check(linked)


def test_data_that_are_not_aligned_are_lent(model: Model, tmp_path: Path) -> None:
    data = tmp_path / "model.onnx.data"
    data.write_bytes(b"\0\0\0\0" + data.read_bytes())
    proto = onnx.load(tmp_path / "model.onnx", load_external_data=False)
    for tensor in proto.graph.initializer:
        entries = {entry.key: entry for entry in tensor.external_data}
        entries["offset"].value = str(int(entries["offset"].value) + 4)
    (tmp_path / "model.onnx").write_bytes(proto.SerializeToString())
    moved = load(tmp_path / "model.onnx")
    assert set(lend(moved).values) == {"v", "w"}
    check(moved)
