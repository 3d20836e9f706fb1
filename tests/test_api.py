"""The library's front door."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import jsonschema
import numpy as np
import onnx
import pytest

import graphopt
import graphopt.registry
from graphopt.base import Pass, PassReport
from graphopt.context import Context
from graphopt.errors import GraphoptError, ModelError, PassError, SampleError, UsageError
from graphopt.evaluate import Drop
from graphopt.model import Model
from graphopt.pipeline import Pipeline
from graphopt.plugins import load_function, load_metric, metric_name
from graphopt.report import schema
from graphopt.report.build import warnings_for
from graphopt.runtime.session import open_session

TEXT = """
<ir_version: 8, opset_import: ["" : 17]>
g (float[N, 4] x) => (float[N, 3] y)
<float[4, 3] w = {1, 2, 3, 4, 5, 6, 7, 8, 9, -1, -2, -3}>
{
  h = MatMul(x, w)
  y = Tanh(h)
}
"""
ROOT = Path(graphopt.__file__).parents[1]


@dataclass(frozen=True)
class Scale(Pass):
    """Multiply the weights."""

    name: ClassVar[str] = "scale"
    lossless: ClassVar[bool] = False
    accepted_unjudged: ClassVar[bool] = True
    by: float = 1.0001

    def run(self, model: Model, context: Context) -> PassReport:
        weight = model.graph.nodes[0].inputs[1]
        weight.values = weight.values * np.float32(self.by)
        return PassReport(1)


@dataclass(frozen=True)
class Speedy(Scale):
    """Scale, and promise speed."""

    name: ClassVar[str] = "speedy"
    promises_speed: ClassVar[bool] = True


@dataclass(frozen=True)
class Unreachable(Scale):
    """Fail the test when it runs."""

    def run(self, model: Model, context: Context) -> PassReport:
        raise KeyboardInterrupt


@dataclass(frozen=True)
class DropTanh(Pass):
    """Remove the last node."""

    name: ClassVar[str] = "drop-tanh"
    lossless: ClassVar[bool] = False
    accepted_unjudged: ClassVar[bool] = True

    def run(self, model: Model, context: Context) -> PassReport:
        matmul, tanh = model.graph.nodes
        output = tanh.outputs[0]
        tanh.outputs.clear()
        matmul.outputs[0] = output
        return PassReport(1)


def proto() -> onnx.ModelProto:
    return onnx.parser.parse_model(TEXT)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    file = tmp_path / "m.onnx"
    file.write_bytes(proto().SerializeToString())
    np.savez(tmp_path / "s.npz", x=np.random.default_rng(0).normal(size=(6, 4)).astype(np.float32))
    return file


def positive(run: Callable[[Any], dict[str, Any]]) -> float:
    """Fraction of positive outputs."""
    return float((run({"x": np.eye(4, dtype=np.float32)})["y"] > 0).mean())


def first_output(run: Callable[[Any], dict[str, Any]]) -> float:
    """An output that scaling changes."""
    return float(run({"x": np.full((1, 4), 0.01, np.float32)})["y"][0, 0])


@pytest.mark.parametrize("kind", ["path", "text", "proto", "model"])
def test_takes_any_form_of_model(path: Path, kind: str) -> None:
    forms = {"path": path, "text": str(path), "proto": proto(), "model": graphopt.load(path)}
    result = graphopt.compress(forms[kind], [Scale()], benchmark=False)  # type: ignore[arg-type]
    assert (result.report.input is None) == (kind == "proto")
    assert [step.outcome for step in result.report.steps] == ["accepted"]


def test_leaves_the_model_alone(path: Path) -> None:
    model = graphopt.load(path)
    before = model.to_proto().SerializeToString(deterministic=True)
    result = graphopt.compress(model, [Scale(by=1.001)], benchmark=False)
    assert model.to_proto().SerializeToString(deterministic=True) == before
    assert result.model is not model


def test_saves_and_reports(path: Path) -> None:
    result = graphopt.compress(path, [Scale()], data=str(path.parent / "s.npz"), seed=1)
    assert result.report.output is None
    saved = result.save(path.parent / "out.onnx")
    assert saved.report.output is not None
    assert saved.report.output.nbytes == (path.parent / "out.onnx").stat().st_size == result.report.after.nbytes
    open_session(path.parent / "out.onnx").close()
    made = saved.report.to_json()
    jsonschema.Draft202012Validator(schema()).validate(made)
    assert made["input"]["nbytes"] == path.stat().st_size
    assert made["samples"] == {"source": str(path.parent / "s.npz"), "count": 6, "random": False}
    assert made["drop"]["measure"] == "agreement"
    assert made["latency"]["low"] <= made["latency"]["median"] <= made["latency"]["high"]
    assert made["timings"][0]["ratio"] == made["latency"]
    assert made["timings"][1] == {
        "provider": "CUDAExecutionProvider",
        "threads": 1,
        "random_inputs": False,
        "ratio": None,
        "reason": "the installed onnxruntime does not have it",
        "chosen": {},
    }


def test_passes_may_be_mixed(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graphopt.registry, "available", lambda: {"scale": f"{__name__}:Scale"})
    result = graphopt.compress(path, [Scale(), "scale:by=1.0002"], benchmark=False)
    assert result.report.passes == "scale,scale:by=1.0002"


def test_no_passes_change_nothing(path: Path) -> None:
    result = graphopt.compress(path, "", data=path.parent / "s.npz")
    assert result.report.before == result.report.after
    assert result.report.timings[0].reason == "no pass changed the model"
    assert result.save(path.parent / "o.onnx").report.output is not None


def test_report_of_a_target_that_is_not_here(path: Path) -> None:
    report = graphopt.compress(path, [Scale()], target="cuda").report
    assert report.latency is None
    assert [timing.provider for timing in report.timings] == ["CUDAExecutionProvider", "CPUExecutionProvider"]
    assert report.timings[1].ratio is not None


def test_external_data_counts_as_input(path: Path) -> None:
    model = proto()
    model.graph.initializer[0].CopyFrom(onnx.numpy_helper.from_array(np.ones((4, 3), np.float32), "w"))
    onnx.save(model, path.parent / "e.onnx", save_as_external_data=True, location="e.bin", size_threshold=0)
    report = graphopt.compress(path.parent / "e.onnx", [Scale()], benchmark=False).report
    assert report.input is not None
    sizes = [(path.parent / name).stat().st_size for name in ("e.onnx", "e.bin")]
    assert report.input.nbytes == sum(sizes)


def test_output_is_counted_with_its_weights(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(path.parent)
    model = proto()
    model.graph.initializer[0].CopyFrom(onnx.numpy_helper.from_array(np.ones((4, 300), np.float32), "w"))
    model.graph.output[0].type.tensor_type.shape.dim[1].dim_value = 300
    output = graphopt.compress(model, [Scale()], benchmark=False).save("o.onnx", external_data=True).report.output
    assert output is not None
    assert output.path == "o.onnx"
    assert output.nbytes == Path("o.onnx").stat().st_size + Path("o.onnx.data").stat().st_size > 4800


def test_warns_when_the_whole_lost_too_much(path: Path) -> None:
    context = SimpleNamespace(samples=None, max_drop=0.01)
    run = SimpleNamespace(steps=(), context=context, pipeline=Pipeline(()))
    drop = Drop(0.02, 0.01, 0.03, "agreement", {}, 6, False)
    expected = ["the result as a whole lost 2.00%, more than the limit of 1.00%"]
    assert warnings_for(run, drop) == expected  # type: ignore[arg-type]
    assert warnings_for(run, replace(drop, value=0.01)) == []  # type: ignore[arg-type]


def test_without_samples_nothing_is_judged(path: Path) -> None:
    report = graphopt.compress(path, [Scale(by=3)], benchmark=False).report
    assert report.drop is None
    assert report.drop_reason == "there are no samples (--data) and no metric (--metric) to judge on"
    assert report.warnings == ("nothing judged the loss of scale: give samples with --data",)


def test_samples_that_prove_nothing_do_not_end_the_run(path: Path) -> None:
    samples = {"x": np.full((2, 4), np.nan, np.float32)}
    report = graphopt.compress(path, [Scale()], data=samples, benchmark=False).report
    assert [step.outcome for step in report.steps] == ["rolled back"]
    assert report.drop is None
    assert "nothing but NaN" in report.drop_reason
    jsonschema.validate(report.to_json(), schema())


def test_metric_decides(path: Path) -> None:
    report = graphopt.compress(path, [Scale(by=3)], metric=positive, benchmark=False).report
    assert report.metric == f"{__name__}:positive"
    assert report.drop is not None
    assert (report.drop.measure, report.drop.value) == ("metric", 0)
    report = graphopt.compress(path, [Scale(by=0.5)], metric=first_output, benchmark=False).report
    assert [step.outcome for step in report.steps] == ["rolled back"]
    assert report.warnings[0].startswith("pass 'scale:by=0.5' was rolled back: metric dropped by 4")


def test_metric_that_fails_is_no_roll_back(path: Path) -> None:
    with pytest.raises(GraphoptError, match=r"^metric '.*<lambda>' failed: ZeroDivisionError: division by zero$"):
        graphopt.compress(path, [Scale()], metric=lambda run: 1 / 0, benchmark=False)


def test_metric_that_fails_ends_the_run_at_once(path: Path) -> None:
    with pytest.raises(GraphoptError, match="ZeroDivisionError"):
        graphopt.compress(path, [Unreachable()], metric=lambda run: 1 / 0, benchmark=False)


def test_metric_is_taken_once_a_model(path: Path) -> None:
    taken = []

    def score(run: Callable[[Any], dict[str, Any]]) -> float:
        taken.append(1)
        return positive(run)

    graphopt.compress(path, [Scale()], metric=score, benchmark=False)
    assert len(taken) == 2


def test_ends_are_those_of_the_whole_run(path: Path) -> None:
    report = graphopt.compress(path, [DropTanh(), Scale()], benchmark=False).report
    assert (report.before.nodes, report.steps[0].after.nodes, report.after.nodes) == (2, 1, 1)


@pytest.mark.parametrize("benchmark", [True, False])
def test_benchmark_may_be_left_out(path: Path, benchmark: bool) -> None:
    report = graphopt.compress(path, [Speedy()], data="random", benchmark=benchmark).report
    assert (report.steps[0].latency is not None) == benchmark
    assert (report.latency is not None) == benchmark
    assert report.timings[0].reason == ("" if benchmark else "it was switched off")
    assert report.timings[0].random_inputs


def test_strict(path: Path) -> None:
    with pytest.raises(PassError, match="pass 'scale': agreement dropped by"):
        graphopt.compress(path, [Scale(by=3)], data="random", strict=True, benchmark=False)


def test_random_samples_are_named(path: Path) -> None:
    report = graphopt.compress(path, [Scale()], data="random", benchmark=False).report
    assert report.samples is not None
    assert report.samples.random
    assert report.warnings == ("the samples are random: calibration, agreement and latency rest on invented inputs",)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"passes": "nope"}, UsageError, "there is no pass 'nope'"),
        ({"target": "gpu"}, UsageError, "gpu"),
        ({"seed": -1}, UsageError, "seed must be 0 or more, not -1"),
        ({"max_drop": 1.5}, UsageError, "max_drop must be between 0 and 1, not 1.5"),
        ({"max_drop": float("nan")}, UsageError, "max_drop must be between 0 and 1, not nan"),
        ({"threads": 0}, UsageError, "threads must be between 1 and 1024, not 0"),
        ({"metric": "nope"}, UsageError, "--metric 'nope': write module:function"),
        ({"data": "no.npz"}, SampleError, "no.npz"),
        ({"model": "no.onnx"}, ModelError, "cannot read 'no.onnx'"),
    ],
)
def test_refuses(path: Path, options: dict[str, Any], error: type[GraphoptError], message: str) -> None:
    with pytest.raises(error) as raised:
        graphopt.compress(**{"model": path, "passes": [Scale()], "benchmark": False, **options})
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)


def test_refuses_a_model_that_cannot_run(path: Path) -> None:
    text = TEXT.replace("MatMul(x, w)", "my.MatMul(x, w)").replace('["" : 17]', '["" : 17, "my" : 1]')
    with pytest.raises(ModelError, match=r"'g': ONNX Runtime does not take the model: .*my.*MatMul"):
        graphopt.compress(onnx.parser.parse_model(text), [Scale()])


def test_same_seed_same_bytes(path: Path) -> None:
    made = [graphopt.compress(path, [Scale()], data="random", benchmark=False, seed=5) for _ in range(2)]
    first, second = (item.model.to_proto().SerializeToString(deterministic=True) for item in made)
    assert first == second


def test_progress_is_told(path: Path) -> None:
    told: list[str] = []

    class Recorder:
        def track(self, items: Any, what: str, total: int | None = None) -> Any:
            told.append(what)
            yield from items

    graphopt.compress(path, [Scale()], data=path.parent / "s.npz", benchmark=False, progress=Recorder())
    assert told


def test_public_names() -> None:
    for name in graphopt.__all__:
        assert getattr(graphopt, name).__name__ == name
    assert set(graphopt.__all__) <= set(dir(graphopt))
    with pytest.raises(AttributeError, match="module 'graphopt' has no attribute 'nope'"):
        graphopt.nope  # noqa: B018


def test_import_is_light() -> None:
    code = (
        "import sys, time; start = time.process_time(); import graphopt; print(time.process_time() - start)\n"
        "heavy = {'numpy', 'onnx', 'onnxruntime', 'click', 'rich', 'onnx_graphsurgeon'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    seconds, heavy = run.stdout.splitlines()
    assert float(seconds) < 0.05
    assert heavy == "[]"


def test_runs_as_a_module() -> None:
    run = subprocess.run([sys.executable, "-m", "graphopt", "--version"], cwd=ROOT, capture_output=True, text=True)
    assert run.stdout == f"graphopt {graphopt.__version__}\n"


class TestLoadFunction:
    """Functions named as text."""

    def test_finds_a_neighbour(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        (tmp_path / "neighbour_one.py").write_text("class A:\n  def f(run):\n    import neighbour_two\n    return 7\n")
        (tmp_path / "neighbour_two.py").touch()
        before = sys.path[:]
        assert load_function("neighbour_one:A.f", "--metric").__name__ == "f"
        assert load_metric("neighbour_one:A.f")(lambda feeds: {}) == 7
        assert sys.path == before

    @pytest.mark.parametrize("text", ["", "a", "a:", ":b", "a:b:c", "a b:c", "a:b-c"])
    def test_form(self, text: str) -> None:
        with pytest.raises(UsageError, match="write module:function"):
            load_function(text, "--metric")

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            ("import no_such_module_x", "importing it failed: No module named 'no_such_module_x'"),
            ("1 / 0", "importing it failed: ZeroDivisionError: division by zero"),
            ("def (", "importing it failed: SyntaxError: "),
            ("f = 1\ndef g(): pass", "'broken_mod' has no 'h'; it has: g"),
        ],
    )
    def test_broken(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str, message: str) -> None:
        monkeypatch.chdir(tmp_path)
        (tmp_path / "broken_mod.py").write_text(content)
        try:
            with pytest.raises(UsageError) as raised:
                load_function("broken_mod:h", "--data")
        finally:
            sys.modules.pop("broken_mod", None)
        assert str(raised.value).startswith("--data 'broken_mod:h': ")
        assert message in str(raised.value)

    def test_metric_must_return_a_finite_number(self) -> None:
        with pytest.raises(GraphoptError, match="returned nan; it must return a finite number"):
            load_metric(lambda run: float("nan"))(lambda feeds: {})
        with pytest.raises(GraphoptError, match="failed: TypeError"):
            load_metric(lambda run: None)(lambda feeds: {})  # type: ignore[arg-type, return-value]

    def test_metric_name(self) -> None:
        class Score:
            def __call__(self, run: Any) -> float:
                return 1.0

        assert metric_name("a:b") == "a:b"
        assert metric_name(positive) == f"{__name__}:positive"
        assert metric_name(Score()).endswith("Score")
