"""The report: JSON that its schema describes in full, and a terminal text that says no more than was measured."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from rich.console import Console

from graphopt.api import compress
from graphopt.base import PassReport, Skip
from graphopt.console import BarProgress, console_for
from graphopt.cost import Figures
from graphopt.evaluate import Drop
from graphopt.model import Model
from graphopt.pipeline import Step
from graphopt.report import FileInfo, Machine, Report, SampleInfo, Timing, schema
from graphopt.report import text as words
from graphopt.report.build import data_files
from graphopt.report.environment import file_info, machine, peak_memory, versions
from graphopt.report.terminal import by_reason, render
from graphopt.runtime.timing import Ratio
from graphopt.targets import get_target
from tests.helpers import parse

BIG = Figures(nodes=12, parameters=535_818, macs=535_000, nbytes=2_143_607, zstd_nbytes=1_980_000)
SMALL = Figures(nodes=5, parameters=535_818, macs=None, nbytes=549_000, zstd_nbytes=440_000)
DROP = Drop(value=0.002, low=-0.001, high=0.005, measure="agreement", details={"y": 0.998}, samples=6, random=False)
FASTER = Ratio(median=0.47, low=0.45, high=0.49, pairs=200)
PASS = PassReport(
    4,
    (Skip("a[1]", "no kernel"), Skip("b", "too small"), Skip("c", "no kernel")),
    {"bits": np.float32(8), "snr": float("inf")},  # type: ignore[dict-item]
    ("[bold]give samples[/bold]",),
)


def step(**fields: Any) -> Step:
    known: dict[str, Any] = {
        "spec": "quant:bits=8",
        "inserted": False,
        "outcome": "accepted",
        "reason": "",
        "report": PASS,
        "before": BIG,
        "after": SMALL,
        "drop": DROP,
        "latency": FASTER,
        "verified": "agreement on 6 samples",
        "seconds": 1.23456,
    }
    return Step(**{**known, **fields})


def report(**fields: Any) -> Report:
    target = get_target("cpu-avx2")
    known: dict[str, Any] = {
        "versions": versions(),
        "machine": Machine("Some CPU", 2, ("avx2",)),
        "input": FileInfo("m.onnx", "0" * 64, 2_143_607),
        "output": FileInfo("m.opt.onnx", "f" * 64, 549_000),
        "passes": "quant:bits=8",
        "target": target,
        "seed": 0,
        "max_drop": 0.01,
        "strict": False,
        "metric": None,
        "samples": SampleInfo("s.npz", 6, False),
        "steps": (step(),),
        "before": BIG,
        "after": SMALL,
        "drop": DROP,
        "drop_reason": "",
        "timings": (Timing(target.provider, 1, False, FASTER, ""),),
        "seconds": 2.5,
        "peak_memory_nbytes": 123_000_000,
        "warnings": (),
    }
    return Report(**{**known, **fields})


def bare() -> Report:
    """A report of a run where nothing could be measured."""
    failed = step(
        outcome="rolled back", reason="it failed", report=None, after=BIG, drop=None, latency=None, verified=""
    )
    timings = (Timing("CPUExecutionProvider", 1, True, None, "it was switched off"),)
    nothing = dict.fromkeys(("input", "output", "samples", "drop", "peak_memory_nbytes"))
    return report(**nothing, drop_reason="there are no samples", timings=timings, steps=(failed,), after=BIG)


def without_passes() -> Report:
    return report(passes="", steps=())


REPORTS: dict[str, Callable[[], Report]] = {"full": report, "bare": bare, "no passes": without_passes}


def shown(made: Report, verbosity: int = 0) -> list[str]:
    stream = io.StringIO()
    render(made, console_for(stream), verbosity)
    return [line.rstrip() for line in stream.getvalue().splitlines()]


def subschemas(node: Any, path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield every property of a schema with its path."""
    if isinstance(node, dict):
        for name, value in node.get("properties", {}).items():
            yield f"{path}/{name}", value
        for key, value in node.items():
            yield from subschemas(value, f"{path}/{key}")
    elif isinstance(node, list):
        for value in node:
            yield from subschemas(value, path)


@pytest.mark.parametrize("kind", REPORTS)
def test_json_fits_the_schema(kind: str) -> None:
    text = REPORTS[kind]().to_text()
    jsonschema.Draft202012Validator(schema()).validate(json.loads(text))


def test_schema_is_valid_and_documents_every_field() -> None:
    jsonschema.Draft202012Validator.check_schema(schema())
    described = list(subschemas(schema()))
    assert len(described) > 60
    assert [path for path, entry in described if not entry.get("description")] == []


def test_schema_refuses_what_it_does_not_describe() -> None:
    made = report().to_json()
    validator = jsonschema.Draft202012Validator(schema())
    assert not validator.is_valid({**made, "more": 1})
    assert not validator.is_valid({name: value for name, value in made.items() if name != "steps"})
    made["steps"][0]["outcome"] = "maybe"
    assert not validator.is_valid(made)


@pytest.mark.parametrize("kind", REPORTS)
def test_fields_come_in_the_order_of_the_schema(kind: str) -> None:
    made, described = REPORTS[kind]().to_json(), schema()
    assert list(made) == list(described["properties"])
    for entry in made["steps"]:
        assert list(entry) == list(described["$defs"]["step"]["properties"])
    assert list(made["before"]) == list(described["$defs"]["figures"]["properties"])


def test_numbers_that_json_lacks_become_null() -> None:
    metrics = report().to_json()["steps"][0]["metrics"]
    assert metrics == {"bits": 8.0, "snr": None}
    assert type(metrics["bits"]) is float


def test_latency_is_that_of_the_target() -> None:
    slow = Timing("CUDAExecutionProvider", 1, False, Ratio(2.0, 1.9, 2.1, 9), "")
    own = Timing("CPUExecutionProvider", 1, False, FASTER, "")
    assert report(timings=(slow, own)).to_json()["latency"]["median"] == 0.47
    assert report(timings=(slow,)).latency is None


def test_terminal_shows_figures_and_conditions() -> None:
    lines = shown(report())
    assert lines[0].split() == ["pass", "outcome", "nodes", "params", "MACs", "size", "zstd", "latency", "drop"]
    row = next(line for line in lines if line.startswith("quant:bits=8"))
    assert row.split()[1:] == ["accepted", "5", "536", "k", "?", "549", "kB", "440", "kB", "0.47", "x", "0.20", "%"]
    assert "size     2.14 MB -> 549 kB, 3.9 x smaller; after zstd 1.98 MB -> 440 kB, 4.5 x smaller" in lines
    assert (
        "latency  0.47 x (0.45 to 0.49), 2.1 times faster; CPUExecutionProvider, 1 thread, inputs from the samples, "
        "200 pairs"
    ) in lines
    assert ("quality  agreement lost 0.20 % (-0.10 % to 0.50 %) on 6 samples; limit 1.00 %; y 0.998") in lines
    assert "quant: [bold]give samples[/bold]" in lines
    assert "quant: left 3 places alone; -v says why" in lines


def test_terminal_tells_a_count_above_the_limit_from_a_broken_limit() -> None:
    count = Drop(0.016, 0.004, 0.06, "agreement", {"y top-1": 0.984}, 64, False, established=0.004)
    assert any(
        "limit 1.00 %, which 64 samples do not prove to be exceeded;" in line for line in shown(report(drop=count))
    )
    broken = replace(count, established=None)
    assert not any("do not prove" in line for line in shown(report(drop=broken)))


def test_terminal_says_why_nothing_was_measured() -> None:
    lines = shown(bare())
    assert "latency  not measured on CPUExecutionProvider: it was switched off" in lines
    assert "quality  not measured: there are no samples" in lines
    assert next(line for line in lines if line.startswith("quant:bits=8")).split() == ["quant:bits=8", "rolled", "back"]


def test_terminal_shows_the_metric_before_and_after() -> None:
    drop = Drop(0.0021, 0.0021, 0.0021, "metric", {"before": 0.94, "after": 0.938}, 0, False)
    assert "quality  metric 0.94 -> 0.938, lost 0.21 %; limit 1.00 %" in shown(report(drop=drop, metric="a:b"))


def test_terminal_tells_the_agreement_of_the_worst_outputs() -> None:
    drop = Drop(0.002, 0.001, 0.003, "agreement", {f"y{index}": 0.998 for index in range(7)}, 6, False)
    (line,) = [line for line in shown(report(drop=drop)) if line.startswith("quality")]
    assert line.endswith("y0 0.998, y1 0.998, y2 0.998, y3 0.998, y4 0.998 and 2 more")


def test_terminal_groups_skips_by_reason() -> None:
    lines = shown(report(), verbosity=1)
    assert "quant: left alone 2 x, no kernel: a[1], c" in lines
    assert "quant: left alone 1 x, too small: b" in lines
    assert "quant: bits 8, snr inf" in lines
    assert "quant: 4 rewrites; agreement on 6 samples; 1.2 s" in lines
    many = PassReport(0, tuple(Skip(f"n{index}", "no kernel") for index in range(9)))
    lines = shown(report(steps=(step(report=many),)), verbosity=1)
    assert "quant: left alone 9 x, no kernel: n0, n1, n2, n3, n4, n5, n6, n7, n8" in lines


def test_terminal_shows_counts_in_full_and_lines_unbroken() -> None:
    made = PassReport(1, metrics={"zeros_before": 1048576.0, "sparsity": 0.29999923, "huge": 1e20})
    lines = shown(report(steps=(step(report=made, verified="a reason " * 30),)), verbosity=1)
    assert "quant: zeros before 1048576, sparsity 0.299999, huge 1e+20" in lines
    assert any(line.startswith("quant: 1 rewrite; a reason") and line.endswith("; 1.2 s") for line in lines)


def test_notes_of_a_rolled_back_pass_say_so() -> None:
    lines = shown(report(steps=(step(outcome="rolled back", reason="it lost too much"),)))
    assert "quant (rolled back): [bold]give samples[/bold]" in lines


def test_terminal_tells_a_repeated_pass_apart() -> None:
    lines = shown(report(steps=(step(spec="quant"), step(spec="quant:bits=8"))))
    assert [line for line in lines if line.endswith("-v says why")] == [
        "quant: left 3 places alone; -v says why",
        "quant:bits=8: left 3 places alone; -v says why",
    ]


def test_terminal_fits_into_80_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    lines = shown(report())
    table = lines[: next(index for index, line in enumerate(lines) if line.startswith("size"))]
    assert max(map(len, table)) <= 80
    assert any(line.startswith("quant:bits=8") for line in table)


def test_most_frequent_reason_first() -> None:
    skips = [Skip("a", "x"), Skip("b", "y"), Skip("c", "y")]
    assert list(by_reason(skips).items()) == [("y", ["b", "c"]), ("x", ["a"])]


def test_terminal_is_plain_where_it_is_no_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    lines = shown(report(steps=(step(spec="prune:" + "x" * 60), step(inserted=True))))
    assert not any("\x1b" in line for line in lines)
    table = lines[: lines.index("")] if "" in lines else lines
    assert max(map(len, table)) <= 140
    assert any("(inserted)" in line for line in lines)
    stream = io.StringIO()
    render(report(), Console(file=stream, force_terminal=True, color_system="standard", width=200, markup=False))
    assert "\x1b" in stream.getvalue()


@pytest.mark.parametrize(
    ("nbytes", "text"),
    [(0, "0 B"), (999, "999 B"), (1000, "1.00 kB"), (999_499, "999 kB"), (999_500, "1.00 MB"), (9_995_000, "10.0 MB")],
)
def test_size(nbytes: int, text: str) -> None:
    assert words.size(nbytes) == text


@pytest.mark.parametrize(
    ("number", "text"), [(None, "?"), (0, "0"), (999, "999"), (1234, "1.23 k"), (2_500_000_000, "2.50 G")]
)
def test_count(number: int | None, text: str) -> None:
    assert words.count(number) == text


@pytest.mark.parametrize(
    ("fraction", "text"), [(0, "0.00 %"), (0.01, "1.00 %"), (1e-7, "<0.01 %"), (-1e-7, ">-0.01 %"), (-0.5, "-50.00 %")]
)
def test_percent(fraction: float, text: str) -> None:
    assert words.percent(fraction) == text


@pytest.mark.parametrize(
    ("before", "after", "text"),
    [
        (8, 2, "4.0 x smaller"),
        (10, 9, "1.11 x smaller"),
        (100, 99, "1.00 % smaller"),
        (10**6, 10**6 + 1, "<0.01 % larger"),
        (0, 5, "5.0 x larger"),
        (2, 2, "the same"),
        (2, 3, "1.50 x larger"),
    ],
)
def test_shrinkage(before: int, after: int, text: str) -> None:
    assert words.shrinkage(before, after) == text


def test_speed_is_claimed_only_outside_the_interval() -> None:
    assert words.speed(Ratio(0.5, 0.4, 0.6, 9)) == "2.0 times faster"
    assert words.speed(Ratio(1.5, 1.2, 1.6, 9)) == "1.50 times slower"
    for ratio in (Ratio(0.9, 0.8, 1.05, 9), Ratio(0.97, 0.96, 0.985, 9), Ratio(1.015, 1.01, 1.02, 9)):
        assert words.speed(ratio) == "no measurable difference"


def test_plural_and_seconds() -> None:
    assert [words.plural(1, "pass"), words.plural(2, "pass"), words.plural(0, "node")] == [
        "1 pass",
        "2 passes",
        "0 nodes",
    ]
    assert [words.seconds(0.0456), words.seconds(3.14), words.seconds(125)] == ["46 ms", "3.1 s", "2 min 5 s"]
    assert [words.seconds(0.9996), words.seconds(119.97), words.seconds(179.9)] == ["1.0 s", "2 min 0 s", "3 min 0 s"]


def test_environment(tmp_path: Path) -> None:
    assert versions().keys() == {"graphopt", "python", "onnx", "onnxruntime", "onnx_graphsurgeon", "numpy"}
    here = machine()
    assert here.cpu
    assert here.cores >= 1
    memory = peak_memory()
    assert memory is None or memory > 10_000_000
    (tmp_path / "f").write_bytes(b"abc")
    assert file_info(tmp_path / "f") == FileInfo(
        str(tmp_path / "f"), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad", 3
    )
    assert file_info(tmp_path / "f", 10).nbytes == 10


def test_peak_memory_grows() -> None:
    before = peak_memory()
    block = np.ones(30_000_000, np.uint8)
    after = peak_memory()
    assert block[-1] == 1
    assert before is None or (after is not None and after >= before)


def test_bars_show_nested_steps_and_go_away() -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=80)
    bars = BarProgress(console)
    seen = [(a, b) for a in bars.track([1, 2], "outer") for b in bars.track(iter("xy"), "inner", total=2)]
    assert seen == [(1, "x"), (1, "y"), (2, "x"), (2, "y")]
    assert bars._bars is None
    stream = console.file
    assert isinstance(stream, io.StringIO)
    assert "outer" in stream.getvalue()


def test_bars_go_away_when_a_step_fails() -> None:
    bars = BarProgress(Console(file=io.StringIO(), force_terminal=True))
    with bars:
        under_way = bars.track([1, 2], "work")
        next(under_way)
        assert bars._bars is not None
    assert bars._bars is None
    under_way.close()
    assert bars._bars is None


def test_a_report_can_name_its_output_later() -> None:
    made = replace(report(output=None), output=FileInfo("x.onnx", "a" * 64, 5))
    assert made.to_json()["output"] == {"path": "x.onnx", "sha256": "a" * 64, "nbytes": 5}


def test_names_do_not_steer_the_terminal() -> None:
    hostile = PassReport(1, (Skip("n\x1b[2J\n", "bad \x9bname\r"),), notes=("\x07note",))
    text = "\n".join(shown(report(steps=(step(report=hostile),)), verbosity=1))
    assert "quant: left alone 1 x, bad \\x9bname\\x0d: n\\x1b[2J\\x0a" in text
    assert "quant: \\x07note" in text
    assert not {"\x1b", "\x9b", "\r", "\x07"} & set(text)


def test_any_path_can_be_told() -> None:
    made = report(output=FileInfo("\udcff.onnx", "f" * 64, 1))
    assert json.loads(made.to_text())["output"]["path"] == "\udcff.onnx"
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    render(made, console_for(stream))
    stream.flush()
    assert b"output   \\udcff.onnx" in stream.buffer.getvalue()


def test_data_files_of_a_model_with_functions(capfd: pytest.CaptureFixture[str]) -> None:
    text = """
    <ir_version: 8, opset_import: ["" : 17, "my" : 1]>
    g (float[2] x) => (float[2] y) { y = my.twice(x) }
    <domain: "my", opset_import: ["" : 17]>
    twice (a) => (b) { b = Add(a, a) }
    """
    assert data_files(Model.from_proto(onnx.parser.parse_model(text))) == frozenset()
    assert capfd.readouterr().out == "", "GraphSurgeon complains on stdout about attributes that a Function lacks"


def test_passes_that_nothing_verified_are_named() -> None:
    """Tokens that random numbers do not fit: a lossless pass is accepted, and the user is told that nobody looked."""
    proto = parse("g (int64[32] x) => (float[32, 3] y) { a = Gather(w, x) b = Identity(a) y = Relu(b) }")
    proto.graph.initializer.append(numpy_helper.from_array(np.ones((1, 3), np.float32), "w"))
    (told,) = (line for line in compress(proto, "fold", benchmark=False).report.warnings if "verified" in line)
    assert told.startswith("nothing verified fold: the model does not run on random inputs: ")
    assert told.endswith("; give samples with --data")
    feeds = [{"x": np.zeros(32, np.int64)}]
    assert compress(proto, "fold", data=feeds, benchmark=False).report.warnings == ()
