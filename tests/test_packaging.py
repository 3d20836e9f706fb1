"""What is installed is what is in the tree, and nothing else."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import venv
import zipfile
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

import graphopt

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def project() -> dict[str, Any]:
    """Return pyproject.toml."""
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def folders_with_code(top: str) -> set[str]:
    """Return the folders that have Python files, relative to the root; links are not followed."""
    found: set[str] = set()
    stack = [ROOT / top]
    while stack:
        folder = stack.pop()
        inside = [item for item in folder.iterdir() if item.name != "__pycache__" and not item.is_symlink()]
        stack.extend(item for item in inside if item.is_dir())
        if any(item.suffix == ".py" for item in inside):
            found.add(folder.relative_to(ROOT).as_posix())
    return found


def test_every_folder_with_code_is_a_listed_package(project: dict[str, Any]) -> None:
    tree = {f"graphopt.{folder}" for folder in folders_with_code("passes")} | folders_with_code("graphopt")
    assert {name.replace("/", ".") for name in tree} == set(project["tool"]["setuptools"]["packages"])


def test_every_package_has_an_init_file_and_is_mapped_to_its_folder(project: dict[str, Any]) -> None:
    places = project["tool"]["setuptools"]["package-dir"]
    for package in project["tool"]["setuptools"]["packages"]:
        folder = package.replace(".", "/")
        if package.startswith("graphopt.passes"):
            folder = folder.removeprefix("graphopt/")
            assert places[package] == folder
        assert (ROOT / folder / "__init__.py").is_file(), f"{folder}/__init__.py is missing"


def test_every_data_file_is_there_and_every_other_file_is_listed(project: dict[str, Any]) -> None:
    listed = project["tool"]["setuptools"]["package-data"]
    named = {ROOT / package.replace(".", "/") / name for package, names in listed.items() for name in names}
    found = {path for path in (ROOT / "graphopt").rglob("*") if path.is_file() and path.suffix not in (".py", ".pyc")}
    assert {path for path in found if not path.relative_to(ROOT).is_relative_to("graphopt/passes")} == named
    others = {path for path in (ROOT / "passes").rglob("*") if path.is_file() and path.suffix not in (".py", ".pyc")}
    assert not others


def test_the_link_shows_the_passes() -> None:
    link = ROOT / "graphopt" / "passes"
    if not link.is_symlink():
        pytest.skip("a checkout without links")
    assert link.readlink() == Path("..") / "passes"


def test_the_version_is_that_of_the_library(project: dict[str, Any]) -> None:
    assert project["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "graphopt.__version__"}
    assert re.fullmatch(r"\d+\.\d+\.\d+", graphopt.__version__)
    assert f"## {graphopt.__version__}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert f"{sys.version_info.major}.{sys.version_info.minor}" >= project["project"]["requires-python"].strip(">=")


def test_third_party_imports_are_dependencies(project: dict[str, Any]) -> None:
    wanted = {re.split(r"[<>=~\[]", item)[0].replace("-", "_") for item in project["project"]["dependencies"]}
    files = [path for folder in ("graphopt", "passes") for path in (ROOT / folder).rglob("*.py")]
    imported = {name.partition(".")[0] for path in files for name in imports(path)}
    known = {"google": "onnx"}  # protobuf comes with onnx and in the version that onnx needs
    third_party = {known.get(name, name) for name in imported - set(sys.stdlib_module_names) - {"graphopt"}}
    assert third_party == wanted


def imports(path: Path) -> list[str]:
    """Return the modules that a file imports, at the top or later."""
    found: list[str] = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found.extend(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.append(node.module)
    return found


def test_every_dependency_that_is_installed_is_recent_enough(project: dict[str, Any]) -> None:
    for requirement in project["project"]["dependencies"]:
        name, _, floor = requirement.partition(">=")
        installed = [int(part) for part in re.findall(r"\d+", metadata.version(name))[:3]]
        assert installed >= [int(part) for part in floor.split(".")], name


@pytest.mark.slow  # makes environments and needs a package registry for setuptools and the dependencies
def test_a_source_distribution_gives_a_wheel_that_works(tmp_path: Path) -> None:
    source = tmp_path / "source"
    ignored = shutil.ignore_patterns(".*", "build", "*.egg-info", "__pycache__")
    shutil.copytree(ROOT, source, symlinks=True, ignore=ignored)
    venv.create(tmp_path / "venv", with_pip=True)
    python = tmp_path / "venv" / ("Scripts" if sys.platform == "win32" else "bin") / "python"
    run(python, "-m", "pip", "install", "-q", "build")
    run(python, "-m", "build", "-q", "--outdir", str(tmp_path / "dist"), str(source))
    (sdist,), (wheel,) = (tmp_path / "dist").glob("*.tar.gz"), (tmp_path / "dist").glob("*.whl")
    with tarfile.open(sdist) as archive:
        members = {name.partition("/")[2] for name in archive.getnames()}
    assert {
        "tests/helpers.py",
        "benchmarks/README.md",
        "examples/digits/model.onnx",
        "passes/prune/prune.py",
    } <= members
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    assert {name.split("/")[0] for name in names} == {"graphopt", f"graphopt-{graphopt.__version__}.dist-info"}
    assert {"graphopt/py.typed", "graphopt/report/schema.json", "graphopt/passes/prune/prune.py"} <= names
    run(python, "-m", "pip", "install", "-q", str(wheel))
    assert "prune" in run(python.parent / "graphopt", "passes", cwd=tmp_path)
    assert run(python, "-m", "graphopt", "--version", cwd=tmp_path).strip() == f"graphopt {graphopt.__version__}"
    run(python, "-c", "from importlib.util import find_spec; assert find_spec('passes') is None", cwd=tmp_path)


def run(*command: str | Path, cwd: Path | None = None) -> str:
    """Return what a command prints; fail with its error if it fails."""
    done = subprocess.run([str(part) for part in command], cwd=cwd, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout
