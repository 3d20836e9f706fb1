"""The command: the happy path, every usage error with its message, exit statuses, and files left as they were."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import onnx
import pytest
from click.testing import CliRunner, Result

from graphopt import __version__, registry
from graphopt.base import Pass, PassReport, Skip
from graphopt.cli import main
from graphopt.context import Context
from graphopt.errors import RegistryError
from graphopt.ir.clean import disconnect
from graphopt.model import Model
from graphopt.targets import target_names

TEXT = """
<ir_version: 8, opset_import: ["" : 17]>
g (float[N, 4] x) => (float[N, 3] y)
<float[4, 3] w = {1, 2, 3, 4, 5, 6, 7, 8, 9, -1, -2, -3}>
{
  h = MatMul(x, w)
  i = Identity(h)
  y = Tanh(i)
}
"""
Command = Callable[..., Result]


@dataclass(frozen=True)
class Tidy(Pass):
    """Remove Identity nodes."""

    name: ClassVar[str] = "tidy"
    lossless: ClassVar[bool] = True

    def run(self, model: Model, context: Context) -> PassReport:
        found = [node for node in model.graph.nodes if node.op == "Identity"]
        for node in found:
            for user in list(node.outputs[0].outputs):
                user.inputs[0] = node.inputs[0]
            disconnect(node)
        kept = tuple(Skip(node.name or node.op, "is no Identity") for node in model.graph.nodes if node not in found)
        return PassReport(len(found), kept, {"removed": len(found)}, ("looked at [all] nodes",))


@dataclass(frozen=True)
class Scale(Pass):
    """Multiply the weights by a factor.

    More about it.

    Attributes:
        by: Factor for every weight,
            above 0.
        how_often: Times to do it.
    """

    name: ClassVar[str] = "scale"
    lossless: ClassVar[bool] = False
    accepted_unjudged: ClassVar[bool] = True
    requires: ClassVar[tuple[str, ...]] = ("tidy",)
    by: float = 1.0001
    how_often: int = 1

    def __post_init__(self) -> None:
        if self.by <= 0:
            raise ValueError(f"by must be above 0, not {self.by}")

    def run(self, model: Model, context: Context) -> PassReport:
        weight = model.graph.nodes[0].inputs[1]
        weight.values = weight.values * np.float32(self.by**self.how_often)
        return PassReport(1)


@dataclass(frozen=True)
class Broken(Pass):
    name: ClassVar[str] = "broken"
    lossless: ClassVar[bool] = True

    def run(self, model: Model, context: Context) -> PassReport:
        raise IndexError("list index\nout of range")


@dataclass(frozen=True)
class Interrupted(Pass):
    name: ClassVar[str] = "interrupted"
    lossless: ClassVar[bool] = True

    def run(self, model: Model, context: Context) -> PassReport:
        raise KeyboardInterrupt


PASSES = {cls.name: f"{__name__}:{cls.__name__}" for cls in (Broken, Interrupted, Scale, Tidy)}


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Work in a folder with a model, samples and a metric; only the passes of this file exist."""
    (tmp_path / "m.onnx").write_bytes(onnx.parser.parse_model(TEXT).SerializeToString())
    np.savez(tmp_path / "s.npz", x=np.random.default_rng(0).normal(size=(6, 4)).astype(np.float32))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(registry, "available", lambda: PASSES)
    return tmp_path


def graphopt(*args: str) -> Result:
    """Run the command; an exception that is not an exit is a bug."""
    result = CliRunner().invoke(main, args, prog_name="graphopt")
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def quick(*args: str) -> Result:
    """Run the main command on the model without timing it."""
    return graphopt("m.onnx", "--no-benchmark", *args)


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def one_line(result: Result) -> str:
    """Return the only line of an error."""
    assert result.stdout == ""
    assert result.stderr.startswith("graphopt: error: ")
    assert result.stderr.count("\n") == 1, result.stderr
    return result.stderr


def test_compresses_beside_the_input(folder: Path) -> None:
    before = files(folder)
    result = quick("-p", "tidy")
    assert result.exit_code == 0, result.output
    after = files(folder)
    assert after.keys() - before.keys() == {"m.opt.onnx"}
    assert {name: after[name] for name in before} == before
    assert [node.op_type for node in onnx.load(folder / "m.opt.onnx").graph.node] == ["MatMul", "Tanh"]
    assert result.stderr == ""


def test_prints_what_was_measured(folder: Path) -> None:
    result = graphopt("m.onnx", "-p", "tidy", "--data", "s.npz")
    lines = result.stdout.splitlines()
    assert lines[0].split() == ["pass", "outcome", "nodes", "params", "MACs", "size", "zstd", "latency", "drop"]
    assert [line.split()[:2] for line in lines if line.startswith(("input", "tidy ", "output "))][:3] == [
        ["input", "3"],
        ["tidy", "accepted"],
        ["output", "2"],
    ]
    assert "\x1b" not in result.stdout
    assert "tidy: looked at [all] nodes" in lines
    assert any(
        line.startswith("latency") and "CPUExecutionProvider, 1 thread, inputs from the" in line for line in lines
    )
    assert any(line.startswith("quality") and "agreement lost 0.00 %" in line for line in lines)
    assert "output   m.opt.onnx" in lines


def test_writes_a_report(folder: Path) -> None:
    result = quick("-p", "scale", "--data", "s.npz", "-o", "out.onnx", "--report", "r.json", "-q", "--seed", "3")
    assert (result.exit_code, result.output) == (0, "")
    report = json.loads((folder / "r.json").read_text())
    assert report["output"]["path"] == "out.onnx"
    assert report["output"]["nbytes"] == (folder / "out.onnx").stat().st_size == report["after"]["nbytes"]
    assert [(step["spec"], step["inserted"]) for step in report["steps"]] == [("tidy", True), ("scale", False)]
    assert report["seed"] == 3
    assert {path.name for path in folder.iterdir()} == {"m.onnx", "s.npz", "out.onnx", "r.json"}


def test_report_may_go_to_a_pipe(folder: Path) -> None:
    os.mkfifo(folder / "pipe")
    with os.fdopen(os.open(folder / "pipe", os.O_RDONLY | os.O_NONBLOCK)) as reader:
        assert quick("-p", "tidy", "-q", "--report", "pipe").exit_code == 0
        assert json.loads(reader.read())["passes"] == "tidy"
    assert not (folder / "pipe").is_file()


@pytest.mark.parametrize("spec", [("-p", "tidy,scale:by=1.001"), ("-p", "tidy", "-p", " scale:by=1.001")])
def test_passes_add_up(folder: Path, spec: tuple[str, ...]) -> None:
    quick(*spec, "--report", "r.json")
    assert json.loads((folder / "r.json").read_text())["passes"] == "tidy,scale:by=1.001"


def test_options_may_come_first(folder: Path) -> None:
    assert graphopt("-p", "tidy", "--no-benchmark", "-q", "m.onnx").exit_code == 0
    assert (folder / "m.opt.onnx").exists()


def test_verbose_tells_why_places_were_skipped() -> None:
    assert "left 2 places alone; -v says why" in quick("-p", "tidy").stdout
    verbose = quick("-p", "tidy", "-v").stdout
    assert "tidy: left alone 2 x, is no Identity: " in verbose
    assert "tidy: removed 1" in verbose
    assert f"graphopt {__version__}" in verbose


def test_says_when_figures_rest_on_random_samples() -> None:
    result = quick("-p", "scale", "--data", "random")
    assert "warning: the samples are random" in result.stderr
    assert "random inputs" in result.stdout


def test_says_when_nothing_judged_the_loss() -> None:
    assert "warning: nothing judged the loss of scale: give samples with --data" in quick("-p", "scale").stderr


def test_rolls_back_with_a_warning(folder: Path) -> None:
    result = quick("-p", "tidy,scale:by=9", "--data", "s.npz")
    assert result.exit_code == 0
    assert "warning: pass 'scale:by=9.0' was rolled back: agreement dropped by" in result.stderr
    weights = onnx.numpy_helper.to_array(onnx.load(folder / "m.opt.onnx").graph.initializer[0])
    assert weights.flat[0] == 1


def test_a_failing_pass_costs_only_itself() -> None:
    result = quick("-p", "broken,tidy")
    assert result.exit_code == 0
    assert "warning: pass 'broken' was rolled back: it failed: IndexError: list index out of range" in result.stderr


def test_strict_turns_a_roll_back_into_a_failure(folder: Path) -> None:
    before = files(folder)
    result = quick("-p", "tidy,broken", "--strict", "--report", "r.json")
    assert result.exit_code == 1
    assert "pass 'broken': it failed: IndexError" in one_line(result)
    assert files(folder) == before


def test_interrupt_is_quiet(folder: Path) -> None:
    before = files(folder)
    result = quick("-p", "interrupted")
    assert (result.exit_code, result.output) == (130, "")
    assert files(folder) == before


def test_in_place(folder: Path) -> None:
    assert quick("-p", "tidy", "--in-place").exit_code == 0
    assert {path.name for path in folder.iterdir()} == {"m.onnx", "s.npz"}
    assert len(onnx.load(folder / "m.onnx").graph.node) == 2


def test_in_place_says_which_file_of_weights_is_left_over(folder: Path) -> None:
    """A name of the user's own may be that of a file which other models use, so it is not removed."""
    tensors = [onnx.numpy_helper.from_array(np.ones(1000, np.float32), name) for name in ("a", "b")]
    nodes = [onnx.helper.make_node("Add", ["a", "b"], ["c"]), onnx.helper.make_node("Add", ["c", "x"], ["y"])]
    ends = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1000]) for name in "xy"]
    proto = onnx.helper.make_model(onnx.helper.make_graph(nodes, "g", ends[:1], ends[1:], tensors))
    onnx.save(proto, folder / "big.onnx", save_as_external_data=True, location="shared.bin")
    result = CliRunner().invoke(main, ["big.onnx", "-p", "tidy", "--in-place", "--report", "r.json", "--no-benchmark"])
    assert result.exit_code == 0
    line = "'shared.bin' holds weights of the model that was replaced; remove it unless another model uses it"
    assert f"warning: {line}" in result.stderr
    assert line in json.loads((folder / "r.json").read_text())["warnings"]
    assert (folder / "shared.bin").exists()
    again = CliRunner().invoke(main, ["big.onnx", "-p", "tidy", "--in-place", "--no-benchmark"])
    assert "replaced" not in again.stderr, "what is named after the model is removed"
    assert len(list(folder.glob("big.onnx*.data"))) == 1


USAGE = {
    "no passes": (["m.onnx"], "give the passes to run with -p; available: broken, interrupted, scale, tidy"),
    "empty passes": (["m.onnx", "-p", ""], "give the passes to run with -p"),
    "no such command": (["pases"], "there is no file and no command 'pases'; commands: "),
    "no such command with a file": (["inspct", "m.onnx"], "there is no command 'inspct'; commands: "),
    "command that is nearly right": (["inspct", "m.onnx"], "; did you mean 'inspect'?"),
    "file that is nearly a command": (["bnch"], "; did you mean 'bench'?"),
    "passes without -p": (["m.onnx", "tidy"], "'tidy' is one argument too many; one model a run, and passes follow -p"),
    "unknown pass": (["m.onnx", "-p", "fald"], "there is no pass 'fald'; available: "),
    "pass that is nearly right": (["m.onnx", "-p", "tidi"], "; did you mean 'tidy'?"),
    "option that is nearly right": (["m.onnx", "-p", "scale:how-ofen=2"], "; did you mean 'how-often'?"),
    "unknown option of a pass": (
        ["m.onnx", "-p", "scale:to=2"],
        "has no option 'to'; it has: by, how-often",
    ),
    "wrong value": (["m.onnx", "-p", "scale:by=x"], "pass 'scale': option 'by': 'x' is not allowed; use number"),
    "refused value": (["m.onnx", "-p", "scale:by=-1"], "pass 'scale': by must be above 0, not -1.0"),
    "unknown option": (["m.onnx", "-p", "tidy", "--sed", "1"], "No such option"),
    "seed": (["m.onnx", "-p", "tidy", "--seed", "-1"], "'--seed'"),
    "threads": (["m.onnx", "-p", "tidy", "--threads", "0"], "'--threads'"),
    "max-drop": (["m.onnx", "-p", "tidy", "--max-drop", "5"], "'5' is not allowed; write a percentage such as 1%"),
    "max-drop text": (["m.onnx", "-p", "tidy", "--max-drop", "nan"], "'nan' is not allowed"),
    "target": (["m.onnx", "-p", "tidy", "--target", "gpu"], "gpu"),
    "metric form": (["m.onnx", "-p", "tidy", "--metric", "acc"], "--metric 'acc': write module:function"),
    "metric module": (["m.onnx", "-p", "tidy", "--metric", "no_mod:f"], "there is no module 'no_mod'"),
    "metric function": (["m.onnx", "-p", "tidy", "--metric", "math:nope"], "'math' has no 'nope'; it has: "),
    "metric value": (["m.onnx", "-p", "tidy", "--metric", "math:pi"], "this is of type float, not a function"),
    "quiet and verbose": (["m.onnx", "-p", "tidy", "-q", "-v"], "--quiet and --verbose exclude each other"),
    "in-place and output": (["m.onnx", "-p", "tidy", "--in-place", "-o", "x.onnx"], "exclude each other"),
    "output is input": (["m.onnx", "-p", "tidy", "-o", "m.onnx"], "the output 'm.onnx' is the input"),
    "output is input by another path": (["m.onnx", "-p", "tidy", "-o", "./../{name}/m.onnx"], "is the input"),
    "output folder": (["m.onnx", "-p", "tidy", "-o", "no/x.onnx"], "--output 'no/x.onnx': there is no folder 'no'"),
    "output is a folder": (["m.onnx", "-p", "tidy", "-o", "."], "--output '.' is a folder; give a file name"),
    "report folder": (["m.onnx", "-p", "tidy", "--report", "no/r.json"], "there is no folder 'no'"),
    "report is input": (["m.onnx", "-p", "tidy", "--report", "m.onnx"], "--report 'm.onnx' is the input model"),
    "report is output": (["m.onnx", "-p", "tidy", "-o", "a", "--report", "a"], "--report 'a' is the output model"),
    "pass to describe": (["passes", "fald"], "there is no pass 'fald'; available: "),
}


@pytest.mark.parametrize("case", USAGE)
def test_usage_error(folder: Path, case: str) -> None:
    args, message = USAGE[case]
    before = files(folder)
    result = graphopt(*(arg.replace("{name}", folder.name) for arg in args))
    assert result.exit_code == 2, result.output
    assert message in result.stderr
    assert result.stderr.startswith("Usage: graphopt ")
    assert result.stdout == ""
    assert files(folder) == before


def test_output_that_is_a_device_is_refused(folder: Path) -> None:
    os.mkfifo(folder / "pipe")
    result = quick("-p", "tidy", "-o", "pipe")
    assert result.exit_code == 2
    assert "--output 'pipe' is not a regular file" in result.stderr
    assert not (folder / "pipe").is_file()


def test_a_report_goes_where_its_link_leads(folder: Path) -> None:
    (folder / "reports").mkdir()
    (folder / "link.json").symlink_to(folder / "reports" / "r.json")
    for _ in range(2):
        assert quick("-p", "tidy", "--report", "link.json").exit_code == 0
        assert (folder / "link.json").is_symlink()
        assert json.loads((folder / "reports" / "r.json").read_text())["passes"] == "tidy"
    assert [path.name for path in (folder / "reports").iterdir()] == ["r.json"]


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs Linux")
def test_a_stream_is_written_into_even_if_it_leads_to_a_file(folder: Path) -> None:
    """As /dev/stdout does where standard output is redirected: replacing that would break the system."""
    with (folder / "redirected.json").open("w") as stream:
        result = quick("-p", "tidy", "--report", f"/proc/self/fd/{stream.fileno()}")
        assert result.exit_code == 0, result.stderr
        assert os.fstat(stream.fileno()).st_ino == (folder / "redirected.json").stat().st_ino
    assert json.loads((folder / "redirected.json").read_text())["passes"] == "tidy"


@pytest.mark.parametrize("link", [os.symlink, os.link])
@pytest.mark.parametrize("name", ["other.onnx", "m.opt.onnx"])
def test_output_that_links_to_the_input_is_refused(folder: Path, link: Callable[..., None], name: str) -> None:
    link(folder / "m.onnx", folder / name)
    before = files(folder)
    result = quick("-p", "tidy", *(["-o", name] if name == "other.onnx" else []))
    assert result.exit_code == 2
    assert f"the output '{name}' is the input" in result.stderr
    assert files(folder) == before


@pytest.mark.parametrize("option", ["-o", "--report"])
def test_weights_of_the_input_are_not_overwritten(folder: Path, option: str) -> None:
    proto = onnx.load(folder / "m.onnx")
    proto.graph.initializer[0].CopyFrom(onnx.numpy_helper.from_array(np.ones((4, 3), np.float32), "w"))
    onnx.save(proto, folder / "e.onnx", save_as_external_data=True, location="e.bin", size_threshold=0)
    before = files(folder)
    result = graphopt("e.onnx", "-p", "tidy", "--no-benchmark", option, "e.bin")
    assert result.exit_code == 2, result.output
    assert "'e.bin' holds weights of the input 'e.onnx'" in result.stderr
    assert files(folder) == before


FAILURES = {
    "missing model": (["no.onnx", "-p", "tidy"], "cannot read 'no.onnx'"),
    "model is a folder": ([".", "-p", "tidy", "-o", "x.onnx"], "'.' is a folder; give the .onnx file in it"),
    "model is a folder without a name": ([".", "-p", "tidy"], "'.' is a folder; give the .onnx file in it"),
    "model is a device": (["/dev/zero", "-p", "tidy", "-o", "x.onnx"], "'/dev/zero' is a device or a pipe"),
    "metric ends the process": (
        ["m.onnx", "-p", "scale", "--metric", "bad:ends"],
        "metric 'bad:ends' failed: SystemExit",
    ),
    "metric feeds a wrong name": (
        ["m.onnx", "-p", "scale", "--metric", "bad:misfed"],
        "metric 'bad:misfed': input 'x'",
    ),
    "empty model": (["empty.onnx", "-p", "tidy"], "'empty.onnx' is empty"),
    "no model": (["s.npz", "-p", "tidy"], "'s.npz' is not an ONNX model"),
    "cannot run": (["odd.onnx", "-p", "tidy"], "'odd.onnx': ONNX Runtime does not take the model: "),
    "missing samples": (["m.onnx", "-p", "tidy", "--data", "no.npz"], "no.npz"),
    "samples of another model": (["m.onnx", "-p", "tidy", "--data", "t.npz"], "x"),
    "metric raises": (["m.onnx", "-p", "scale", "--metric", "bad:fails"], "metric 'bad:fails' failed: KeyError: 'y2'"),
    "metric is not finite": (["m.onnx", "-p", "scale", "--metric", "bad:nan"], "metric 'bad:nan' returned nan"),
}


@pytest.mark.parametrize("case", FAILURES)
def test_failure(folder: Path, case: str) -> None:
    args, message = FAILURES[case]
    (folder / "empty.onnx").touch()
    odd = TEXT.replace("MatMul(x, w)", "my.MatMul(x, w)").replace('["" : 17]', '["" : 17, "my" : 1]')
    (folder / "odd.onnx").write_bytes(onnx.parser.parse_model(odd).SerializeToString())
    np.savez(folder / "t.npz", z=np.zeros((2, 4), np.float32))
    (folder / "bad.py").write_text(
        "def fails(run):\n    raise KeyError('y2')\ndef nan(run):\n    return float('nan')\n"
        "def ends(run):\n    raise SystemExit(0)\ndef misfed(run):\n    return run({'q': 1})\n"
    )
    before = files(folder)
    result = graphopt(*args, "--no-benchmark", "--report", "r.json")
    assert result.exit_code == 1, result.output
    assert message in one_line(result)
    sys.modules.pop("bad", None)
    after = {name: content for name, content in files(folder).items() if not name.endswith(".pyc")}
    assert after == before


def test_metric_is_kept(folder: Path) -> None:
    (folder / "mine.py").write_text(
        "import numpy as np\n"
        "def weight(run):\n"
        "    return float(run({'x': np.full((1, 4), 0.01, np.float32)})['y'][0, 0])\n"
    )
    result = quick("-p", "scale:by=0.5", "--metric", "mine:weight")
    sys.modules.pop("mine", None)
    assert result.exit_code == 0, result.output
    assert "was rolled back: metric dropped by 4" in result.stderr


@pytest.mark.parametrize(
    ("text", "fraction"), [("1%", 0.01), ("0.01", 0.01), ("0", 0.0), ("100%", 1.0), ("0.5 %", 0.005)]
)
def test_max_drop(folder: Path, text: str, fraction: float) -> None:
    assert quick("-p", "tidy", "--max-drop", text, "--report", "r.json").exit_code == 0
    assert json.loads((folder / "r.json").read_text())["max_drop"] == fraction


def test_same_seed_same_bytes(folder: Path) -> None:
    for name in ("a", "b"):
        assert quick("-p", "scale", "--data", "random", "-q", "-o", f"{name}.onnx").exit_code == 0
    assert (folder / "a.onnx").read_bytes() == (folder / "b.onnx").read_bytes()


def test_lists_passes() -> None:
    result = graphopt("passes")
    assert result.exit_code == 0
    lines = [line.strip() for line in result.stdout.splitlines()]
    assert "scale  Multiply the weights by a factor." in lines
    assert "by         Factor for every weight, above 0. [number; default 1.0001]" in lines
    assert "how-often  Times to do it. [whole number; default 1]" in lines


def test_describes_a_pass() -> None:
    result = graphopt("passes", "scale")
    assert result.exit_code == 0
    for text in ("More about it.", "lossy: bound by --max-drop", "after: tidy", f"from: {__name__}:Scale", "how-often"):
        assert text in result.stdout


def test_lists_passes_beside_a_broken_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "available", lambda: {"gone": "no_module:Gone", **PASSES})
    result = graphopt("passes")
    assert result.exit_code == 0
    assert "warning: pass 'gone' (no_module:Gone) cannot be imported" in result.stderr
    assert "tidy  Remove Identity nodes." in result.stdout


def test_inspects_a_model(folder: Path) -> None:
    result = graphopt("inspect", "m.onnx")
    assert result.exit_code == 0, result.output
    lines = [" ".join(line.split()) for line in result.stdout.splitlines()]
    for line in (
        "input 0 x: float32 [N, 4]; figures are for [1, 4]",
        "output 0 y: float32 [N, 3]",
        "version IR 8; opset ai.onnx 17",
        "size 3 nodes, 12 parameters, 12 MACs",
    ):
        assert line in lines
    assert any(re.fullmatch(r"1 12 12 [\d.<]+ % MatMul", line) for line in lines)
    assert any(re.fullmatch(r"3 12 12 [\d.]+ % in total", line) for line in lines)
    bare = graphopt("inspect", "m.onnx", "--no-run", "--shape", "N=5", "--sort", "parameters", "--top", "1").stdout
    lines = [" ".join(line.split()) for line in bare.splitlines()]
    for line in ("time not measured: not asked for", "size 3 nodes, 12 parameters, 60 MACs"):
        assert line in lines
    facts = json.loads(graphopt("inspect", "m.onnx", "--json").stdout)
    assert facts["operators"] == {"Identity": 1, "MatMul": 1, "Tanh": 1}
    assert facts["figures"]["nodes"] == len(facts["nodes"]) == 3
    assert facts["inputs"] == [{"name": "x", "dtype": "float32", "shape": ["N", 4]}]


def test_inspect_refuses_what_is_no_model() -> None:
    result = graphopt("inspect", "s.npz")
    assert result.exit_code == 1
    assert "'s.npz' is not an ONNX model" in one_line(result)


def test_times_two_models() -> None:
    result = graphopt("bench", "m.onnx", "m.onnx", "--seconds", "0.2")
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith("'m.onnx' takes ")
    assert "x the time (" in result.stdout
    assert "CPUExecutionProvider, 1 thread, random inputs" in result.stdout
    facts = json.loads(graphopt("bench", "m.onnx", "m.onnx", "--seconds", "0.2", "--data", "s.npz", "--json").stdout)
    assert facts["ratio"]["low"] <= facts["ratio"]["median"] <= facts["ratio"]["high"]
    assert facts["random_inputs"] is False


def test_sizes_of_made_up_inputs(folder: Path) -> None:
    for result in (
        graphopt("m.onnx", "-p", "tidy", "--shape", "N=7"),
        graphopt("bench", "m.onnx", "m.opt.onnx", "--shape", "x=7,4", "--seconds", "0.1"),
    ):
        assert "random inputs (x 7x4)" in result.output, result.output
    result = graphopt("m.onnx", "-p", "tidy", "--shape", "x=7,5")
    assert result.exit_code == 2
    assert "--shape x=7,5 does not fit; the model takes [N, 4]" in result.output


def test_bench_wants_the_same_inputs(folder: Path) -> None:
    other = onnx.parser.parse_model(TEXT.replace("float[N, 4] x", "float[N, 4] z").replace("(x, w)", "(z, w)"))
    (folder / "z.onnx").write_bytes(other.SerializeToString())
    result = graphopt("bench", "m.onnx", "z.onnx")
    assert result.exit_code == 2
    assert "the two models have different inputs: x: float32 and z: float32" in result.stderr


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (OSError(28, "No space left on device", "some/file"), "[Errno 28] No space left on device: 'some/file'"),
        (MemoryError("Unable to allocate 46.6 TiB"), "out of memory: Unable to allocate 46.6 TiB"),
        (MemoryError(), "out of memory"),
    ],
)
def test_a_full_disk_or_memory_is_one_line(error: Exception, line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object, **options: object) -> None:
        raise error

    monkeypatch.setattr("graphopt.api.compress", fail)
    result = quick("-p", "tidy")
    assert result.exit_code == 1
    assert one_line(result) == f"graphopt: error: {line}\n"


@pytest.mark.parametrize("args", [["--help"], ["-h"], ["m.onnx", "--help"], ["-q", "--help"]])
def test_help(args: list[str]) -> None:
    result = graphopt(*args)
    assert result.exit_code == 0
    assert result.stdout.startswith("Usage: graphopt MODEL -p PASS[:OPTION=VALUE...][,PASS...] [OPTIONS]\n")
    for text in ("--max-drop", "passes ", "Examples:", "graphopt model.onnx -p fold,share", "Exit status:"):
        assert text in result.stdout


def test_help_names_what_can_be_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    text = " ".join(graphopt("--help").stdout.split()).replace("- ", "-")  # names are wrapped at hyphens
    for name in (*target_names(), *registry.available()):
        assert name in text
    assert "x>=" not in text
    assert "<=x<=" not in text

    def two_claim_it() -> None:
        raise RegistryError("pass 'a' is claimed by b and by c")

    monkeypatch.setattr("graphopt.registry.available", two_claim_it)
    result = graphopt("--help")
    assert result.exit_code == 0
    assert "pass 'a' is claimed by b and by c" in result.stdout


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("--threads", "0"), "'--threads': '0' is not allowed; write a whole number from 1 to 1024"),
        (("--threads", "1.5"), "'--threads': '1.5' is not allowed; write a whole number from 1 to 1024"),
        (("--seed", "-1"), "'--seed': '-1' is not allowed; write a whole number of 0 or more"),
    ],
)
def test_numbers_out_of_bounds(folder: Path, args: tuple[str, ...], message: str) -> None:
    result = quick("-p", "tidy", *args)
    assert result.exit_code == 2
    assert message in result.stderr


@pytest.mark.parametrize("seconds", ["nan", "inf", "0", "soon"])
def test_seconds_out_of_bounds(folder: Path, seconds: str) -> None:
    result = graphopt("bench", "m.onnx", "m.onnx", "--seconds", seconds)
    assert result.exit_code == 2
    assert f"'{seconds}' is not allowed; write a number from 0.1 to 600" in result.stderr


def test_version() -> None:
    assert graphopt("--version").stdout == f"graphopt {__version__}\n"


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys, graphopt.cli as cli\n"
        "try:\n    cli.main(['--help'])\nexcept SystemExit as end:\n    assert end.code == 0\n"
        "print(sorted({'numpy', 'onnx', 'onnxruntime', 'onnx_graphsurgeon', 'rich'} & set(sys.modules)))"
    )
    root = Path(main.callback.__code__.co_filename).parents[1]  # type: ignore[union-attr]
    run = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert run.stdout.splitlines()[-1] == "[]"
