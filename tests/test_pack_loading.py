"""What opening a model takes, measured in processes of their own."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from graphopt.model import Model
from graphopt.passes.pack import loading, pack
from graphopt.passes.pack.loading import Loading, compare_loading, describe
from graphopt.spec import parse_pass
from tests.test_pack import context_for


def model(*, broken: bool = False) -> Model:
    weight = numpy_helper.from_array(np.tile(np.arange(16, dtype=np.float32), (64, 4)), "w")
    infos = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 64]) for name in "xy"]
    node = helper.make_node("Unknown" if broken else "MatMul", ["x", "w"], ["y"])
    graph = helper.make_graph([node], "g", infos[:1], infos[1:], [weight])
    return Model.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))


@pytest.fixture(autouse=True)
def _once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "_OPENINGS", 1)


def test_both_models_are_opened() -> None:
    found = compare_loading(model(), model())
    assert found is not None
    assert all(item.seconds > 0 for item in found)
    assert all(item.peak_bytes is None or item.peak_bytes > 2**20 for item in found)


def test_what_cannot_be_opened_has_no_figures() -> None:
    assert compare_loading(model(), model(broken=True)) is None


def test_in_words() -> None:
    text = describe(Loading(0.1, 50_000_000), Loading(0.15, 60_000_000))
    assert (
        text
        == "opening takes 1.5 x the time (0.100 -> 0.150 s) and 1.20 x the memory (50 -> 60 MB), in fresh processes"
    )
    assert describe(Loading(0.1, None), Loading(0.15, None)).endswith("(0.100 -> 0.150 s), in fresh processes")


def test_pack_reports_it_of_models_that_are_large_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not parse_pass("pack").run(model(), context_for(model())).notes
    monkeypatch.setattr(pack, "_MEASURED", (1, 2**29))
    (note,) = parse_pass("pack").run(model(), context_for(model())).notes
    assert note.startswith("opening takes")
