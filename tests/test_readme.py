"""The documents tell the truth: their commands run, their links lead somewhere.

Blocks marked ``sh`` and ``python`` are for running. What makes an environment or installs is left to `.ci/run`, which
runs the first two blocks of the README as they stand; here the command of graphopt in them runs in this environment.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from graphopt.cli import compress
from graphopt.registry import BUILTIN
from graphopt.targets import target_names

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
DOCUMENTS = sorted(ROOT.glob("*.md")) + sorted(ROOT.glob("docs/*.md")) + [ROOT / "benchmarks" / "README.md"]


def blocks(text: str, language: str) -> list[str]:
    """Return the fenced blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)


def commands(text: str) -> list[list[str]]:
    """Return the commands of graphopt in the shell blocks, as lists of arguments."""
    lines = [line for block in blocks(text, "sh") for line in block.splitlines()]
    parts = [shlex.split(part) for line in lines for part in line.split("&&")]
    return [part[1:] for part in parts if part[0].endswith("/graphopt")]


@pytest.fixture
def workplace(tmp_path: Path) -> Path:
    """Return a folder with a copy of the examples, so that results are not written into the source tree."""
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    return tmp_path


def run(command: list[str], folder: Path) -> str:
    """Run in a folder with this source tree on the path; return what is printed."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "COLUMNS": "120"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "warning" not in done.stderr
    return done.stdout


def test_the_first_two_blocks_install_and_run_and_test() -> None:
    first, second, *_ = blocks(README, "sh")
    assert [part.split()[0] for part in first.split(" && ")] == ["python3", "python3", ".venv/bin/graphopt"]
    assert first.count("\n") == second.count("\n") == 1, "each is one command line"
    assert second.endswith(".venv/bin/pytest\n")


@pytest.mark.parametrize("arguments", commands(README), ids=" ".join)
def test_commands_run(arguments: list[str], workplace: Path) -> None:
    compresses = "--metric" in arguments
    untimed = ["--no-benchmark"] if compresses else []  # on a busy machine int8 may not be seen to pay
    printed = run([sys.executable, "-m", "graphopt", *arguments, *untimed], workplace)
    assert printed
    if compresses:
        before, after = map(float, re.findall(r"metric (\S+) -> (\S+),", printed)[0])
        assert before > 0.97
        assert after > 0.97
        assert (workplace / "examples" / "digits" / "model.opt.onnx").stat().st_size < 200_000


def test_python_runs(workplace: Path) -> None:
    (code,) = blocks(README, "python")
    printed = run([sys.executable, "-c", code.replace('target="cpu"', 'target="cpu", benchmark=False')], workplace)
    assert "prune:ratio=0.3 accepted" in printed
    assert (workplace / "digits.onnx").is_file()


def test_the_pass_in_contributing_runs(workplace: Path) -> None:
    (code,) = blocks((ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"), "python")
    use = """
import graphopt

model = graphopt.load("examples/digits/model.onnx")
model.graph.nodes[0].residue.doc_string = "a long story"
result = graphopt.compress(model, [Forget(longer_than=3)], benchmark=False)
print(result.report.steps[0].spec, result.report.steps[0].outcome, result.report.steps[0].report.changed)
"""
    (workplace / "forget.py").write_text(code + use)
    assert run([sys.executable, "forget.py"], workplace).split() == ["forget:longer-than=3", "accepted", "1"]


def test_options_passes_and_targets_exist() -> None:
    known = {name for parameter in compress.params for name in parameter.opts}
    table = README[README.index("| option |") : README.index("### Samples")]
    assert set(re.findall(r"`(--?[a-z][a-z-]*)", table)) <= known
    assert set(target_names()) <= set(re.findall(r"`([a-z0-9-]+)`", table))
    passes = README[README.index("| pass |") : README.index("Zeros of `prune`")]
    assert set(re.findall(r"^\| `(\w+)`", passes, re.MULTILINE)) <= set(BUILTIN)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(document: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", document.read_text(encoding="utf-8")):
        if "://" not in target:
            assert (document.parent / target).exists(), f"{document.name}: {target}"


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_that_are_named_exist(document: Path) -> None:
    for name in re.findall(
        r"`((?:graphopt|passes|tests|examples|benchmarks|\.ci)/[\w./]*)`", document.read_text("utf-8")
    ):
        assert (ROOT / name).exists(), f"{document.name}: {name}"
