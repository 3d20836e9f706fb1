"""ARCHITECTURE.md says what the code says: every file, class, field and signature that it lists is there."""

from __future__ import annotations

import importlib
import inspect
import re
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
CONTRACTS = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)[-1]
SECTIONS = re.split(r"^# (\S+\.py)$", CONTRACTS, flags=re.MULTILINE)[1:]


@pytest.mark.parametrize(("path", "text"), list(zip(SECTIONS[::2], SECTIONS[1::2], strict=True)))
def test_contracts(path: str, text: str) -> None:
    module = importlib.import_module("graphopt." + path.removesuffix(".py").removesuffix("/__init__").replace("/", "."))
    owner: Any = module
    listed = 0
    for line in text.splitlines():
        code = line.partition("#")[0].rstrip()
        opened = re.fullmatch(r"class (\w+):(.*)", code)
        defined = re.match(r"( *)def (\w+)\((.*)\)", code)
        if opened:
            owner, fields = getattr(module, opened[1]), opened[2]
        elif defined:
            function = getattr(owner if defined[1] else module, defined[2])
            assert parameters(defined[3]) == list(inspect.signature(function).parameters), line
            fields = ""
        else:
            fields = code
        for name in re.findall(r"(?:^|;)\s*(\w+):", fields):
            assert name in attributes(owner), f"{owner} has no {name}"
        listed += bool(code.strip())
    assert listed


def parameters(text: str) -> list[str]:
    """Return the names of parameters; brackets may hold commas."""
    while re.search(r"\[[^\[\]]*\]|\([^()]*\)", text):
        text = re.sub(r"\[[^\[\]]*\]|\([^()]*\)", "", text)
    names = (re.match(r"\s*(\w*)", part) for part in text.split(","))
    return [match[1] for match in names if match and match[1]]


def attributes(owner: Any) -> set[str]:
    """Return the fields and properties of a class; those that its constructor sets are told by its docstring."""
    return {
        *dir(owner),
        *inspect.get_annotations(owner),
        *re.findall(r"^\s+(\w+): ", owner.__doc__ or "", re.MULTILINE),
    }


def test_rooms() -> None:
    """The table of rooms names modules and folders that are there, and all folders."""
    table = TEXT.partition("## Rooms")[2].partition("\n\n`passes/`")[0]
    cells = [line.split("|")[1] for line in table.splitlines() if line.startswith("| `")]
    named = {name.removeprefix("graphopt/").rstrip("/") for cell in cells for name in re.findall(r"`([^`]+)`", cell)}
    package = ROOT / "graphopt"
    assert [name for name in sorted(named - {"benchmarks"}) if not (package / name).exists()] == []
    assert {path.parent.name for path in package.glob("*/__init__.py")} <= named
