"""A pass from another distribution: built, installed, listed, run, and refused when names clash."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import onnx
import pytest

from tests.helpers import parse, write

ROOT = Path(__file__).parents[1]
TEXT = "agraph (float[2] x) => (float[2] y) { [one] a = Neg(x) [two] y = Neg(a) }"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the plugin installed in it: built to a wheel and unpacked, as pip does, without pip."""
    source, target = tmp_path_factory.mktemp("plugin") / "source", tmp_path_factory.mktemp("site")
    shutil.copytree(ROOT / "tests" / "plugin", source)
    build = "from setuptools.build_meta import build_wheel; print(build_wheel('.'))"
    subprocess.run([sys.executable, "-c", build], cwd=source, check=True, capture_output=True)
    (wheel,) = source.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(target)
    return target


def graphopt(*arguments: str, path: Path) -> subprocess.CompletedProcess[str]:
    """Run the command with one more folder to import from."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(path), str(ROOT)])}
    command = [sys.executable, "-m", "graphopt", *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def test_it_is_listed(site: Path) -> None:
    run = graphopt("passes", path=site)
    assert run.returncode == 0, run.stderr
    assert "strip-docs" in run.stdout
    assert "longer-than" in run.stdout


def test_it_runs(site: Path, tmp_path: Path) -> None:
    proto = parse(TEXT)
    for node, text in zip(proto.graph.node, ("a long stack trace", "short"), strict=True):
        node.doc_string = text
    path, report = write(proto, tmp_path / "m.onnx"), tmp_path / "report.json"
    run = graphopt(
        str(path), "-p", "strip-docs:longer-than=5", "--no-benchmark", "--report", str(report), path=site
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    assert [node.doc_string for node in onnx.load(tmp_path / "m.opt.onnx").graph.node] == ["", "short"]
    assert "strip-docs:longer-than=5" in report.read_text()
    assert "its doc string has only 5 characters" in json.dumps(json.loads(report.read_text()))


def test_its_rule_of_fold_is_listed_and_runs(site: Path, tmp_path: Path) -> None:
    listed = graphopt("passes", "fold", path=site)
    assert "double-negation  ``-(-x) -> x``." in listed.stdout, listed.stderr
    assert "pad-into-conv  ``Conv(Pad(x, p), q) -> Conv(x, p + q)``." in listed.stdout
    text = "g (float[2] x) => (float[2] y) { a = Exp(x) b = Neg(a) c = Neg(b) y = Sqrt(c) }"
    path = write(parse(text), tmp_path / "m.onnx")
    for spec, left in (("fold", 2), ("fold:without=double-negation", 4)):
        run = graphopt(str(path), "-p", spec, "--no-benchmark", path=site)
        assert run.returncode == 0, run.stderr
        assert len(onnx.load(tmp_path / "m.opt.onnx").graph.node) == left
    unchanged = graphopt(str(path), "-p", "fold:without=nope", path=site)
    assert "double-negation" in unchanged.stderr


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("double-negation = graphopt_strip:StripDocs", "is not a subclass of graphopt.passes.fold.Rule"),
        ("double-negation = graphopt_strip.rules:Nothing", "cannot be imported"),
        ("other = graphopt_strip.rules:DoubleNegation", "must state name = 'other'"),
    ],
)
def test_what_is_no_rule_is_refused(site: Path, tmp_path: Path, entry: str, message: str) -> None:
    broken = tmp_path / "site"
    shutil.copytree(site, broken)
    (entries,) = broken.glob("*.dist-info/entry_points.txt")
    entries.write_text(entries.read_text().replace("double-negation = graphopt_strip.rules:DoubleNegation", entry))
    run = graphopt("passes", "fold", path=broken)
    assert run.returncode == 2
    assert message in " ".join(run.stderr.split())


def test_its_options_are_checked(site: Path, tmp_path: Path) -> None:
    path = write(parse(TEXT), tmp_path / "m.onnx")
    run = graphopt(str(path), "-p", "strip-docs:longer-than=-1", path=site)
    assert run.returncode == 2
    assert "pass 'strip-docs': longer-than must be 0 or more, not -1" in run.stderr


def test_a_clash_names_both(site: Path, tmp_path: Path) -> None:
    """The plugin's metadata is changed to claim the name of a pass of graphopt."""
    clash = tmp_path / "site"
    shutil.copytree(site, clash)
    (entries,) = clash.glob("*.dist-info/entry_points.txt")
    entries.write_text(entries.read_text().replace("strip-docs", "fold"))
    run = graphopt("passes", path=clash)
    assert run.returncode == 2
    message = " ".join(run.stderr.split())
    assert "pass 'fold' is claimed by graphopt (graphopt.passes.fold:Fold) and by graphopt-strip" in message
