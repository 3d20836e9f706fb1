"""The judgements of the int8 benchmark: what is counted as left inside, and who must be beaten."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest

from benchmarks import int8_tools
from benchmarks.int8_race import Lap, read, rows, write
from benchmarks.int8_tools import Outcome, Speed, best_of_ours, best_peer, conversions
from graphopt.targets import get_target
from tests.helpers import parse

HEAD = "g (float[1, 4] x) => (float[1, 4] y) <float s = {0.1}, uint8 z = {128}, float t = {0.2}>"


@pytest.mark.parametrize(
    "nodes, wanted",
    [
        ("y = Relu(x)", (0, 0)),
        ("q = QuantizeLinear(x, s, z) y = DequantizeLinear(q, s, z)", (2, 0)),
        ("q = QuantizeLinear(x, s, z) d = DequantizeLinear(q, s, z) r = QuantizeLinear(d, t, z) "
         "y = DequantizeLinear(r, t, z)", (4, 1)),
        ("q = QuantizeLinear(x, s, z) d = DequantizeLinear(q, s, z) a = Sigmoid(d) r = QuantizeLinear(a, t, z) "
         "y = DequantizeLinear(r, t, z)", (4, 1)),
        ("q = QuantizeLinear(x, s, z) d = DequantizeLinear(q, s, z) a = Tanh(d) r = QuantizeLinear(a, t, z) "
         "y = DequantizeLinear(r, t, z)", (4, 0)),
    ],
)  # fmt: skip
def test_places_inside_an_integer_region_are_counted(nodes: str, wanted: tuple[int, int]) -> None:
    proto: onnx.ModelProto = parse(f"{HEAD} {{ {nodes} }}")
    assert conversions(proto.graph, 17) == wanted


def outcome(tool: str, score: float) -> Outcome:
    return Outcome(tool, 1, {"nll": 9.0, "acc": score}, 0, 0, 0.0, 0.0, 0)


def speed(median: float) -> Speed:
    return Speed(median, median, median, slower=False)


def test_the_fastest_peer_that_loses_a_point_at_most_must_be_beaten() -> None:
    scores = {"float": 0.9, "graphopt": 0.9, "ORT static": 0.85, "ORT static, 7 bits": 0.895, "ORT dynamic": 0.9}
    outcomes = {tool: outcome(tool, score) for tool, score in scores.items()}
    speeds = {"graphopt": speed(0.1), "ORT static": speed(0.3), "ORT static, 7 bits": speed(0.5)}
    assert best_peer(outcomes, {**speeds, "ORT dynamic": speed(0.8)}) == "ORT static, 7 bits"


def test_where_every_peer_is_slower_the_float_model_must_be_beaten() -> None:
    outcomes = {tool: outcome(tool, 0.9) for tool in ("float", "graphopt", "ORT static")}
    assert best_peer(outcomes, {"graphopt": speed(1.5), "ORT static": speed(1.4)}) == "float"


def test_of_both_limits_the_faster_result_counts_that_loses_no_more_than_the_peer() -> None:
    scores = {"float": 0.9, "graphopt": 0.9, "graphopt, 3 %": 0.896, "ORT static": 0.895}
    outcomes = {tool: outcome(tool, score) for tool, score in scores.items()}
    speeds = {"graphopt": speed(0.7), "graphopt, 3 %": speed(0.6), "ORT static": speed(0.65)}
    assert best_of_ours(outcomes, speeds, "ORT static") == "graphopt, 3 %"
    assert best_of_ours(outcomes, speeds, "float") == "graphopt"
    assert best_of_ours({**outcomes, "graphopt": outcome("graphopt", 0.8)}, speeds, "float") == "graphopt"


@pytest.mark.parametrize(("target", "tried"), [("cpu-avx2", True), ("cpu-vnni", False)])
def test_weights_of_7_bits_are_tried_only_where_8_saturate(
    monkeypatch: pytest.MonkeyPatch, target: str, tried: bool
) -> None:
    monkeypatch.setattr(int8_tools, "get_target", lambda _: get_target(target))
    assert ("ORT static, 7 bits" in int8_tools.tools("any")) == tried
    assert "ORT static, all operators" in int8_tools.tools("any")


def test_a_whole_run_may_take_half_of_the_processor_time_of_entropy_calibration(tmp_path: Path) -> None:
    laps = {
        "ORT entropy": [Lap(20.0, 8.0, 10**9), Lap(90.0, 8.2, 10**9), Lap(20.0, 9.0, 10**9)],
        "graphopt": [Lap(10.0, 4.1, 10**8, 3.0)],
        "graphopt static": [Lap(3.0, 4.2, 10**8, 2.0)],
    }
    write(laps, tmp_path / "race.json")
    assert read(tmp_path / "race.json") == laps
    _, _, peer, ours, static = rows({"m": laps})
    assert peer == "| m | ORT entropy | 8.2 s | 20.0 s | - | 1000 MB | - | - |", "the lap under load does not count"
    assert ours == "| m | graphopt | 4.1 s | 10.0 s | 3.0 s | 100 MB | 0.50 | yes |"
    assert static.endswith("| 0.51 | **no** |")
