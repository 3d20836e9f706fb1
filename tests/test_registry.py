"""Which passes exist, and what is said about those that cannot be used."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from graphopt import registry
from graphopt.base import Pass
from graphopt.errors import RegistryError, UsageError

MODULE = """
from dataclasses import dataclass
from typing import ClassVar

from graphopt.base import Pass, PassReport


@dataclass(frozen=True)
class Good(Pass):
    name: ClassVar[str] = "good"
    lossless: ClassVar[bool] = True

    def run(self, model, context):
        return PassReport(0)


class Misnamed(Good):
    name = "other"


class Abstract(Pass):
    name = "abstract"
    lossless = True


class Undeclared(Pass):
    def run(self, model, context):
        return PassReport(0)


@dataclass(frozen=True)
class Demanding(Good):
    name: ClassVar[str] = "demanding"
    size: int


class NoPass:
    pass


instance = Good()
"""


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[object]:
    """Return a function that adds a distribution with entry points to this process."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def add(distribution: str, **entries: str) -> None:
        folder = tmp_path / f"{distribution}-1.0.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.0\n")
        lines = [f"{name} = {value}" for name, value in entries.items()]
        (folder / "entry_points.txt").write_text("\n".join([f"[{registry.GROUP}]", *lines]))
        (tmp_path / "plugin_module.py").write_text(MODULE)
        registry.available.cache_clear()

    yield add
    registry.available.cache_clear()


def test_our_own() -> None:
    assert set(registry.BUILTIN) <= set(registry.available())
    assert list(registry.available()) == sorted(registry.available())


def test_a_plugin(install) -> None:  # type: ignore[no-untyped-def]
    install("some-plugin", good="plugin_module:Good")
    assert registry.available()["good"] == "plugin_module:Good"
    cls = registry.pass_class("good")
    assert issubclass(cls, Pass)
    assert cls().name == "good"


def test_nothing_is_imported_by_listing(install) -> None:  # type: ignore[no-untyped-def]
    install("some-plugin", bad="no_such_module:Bad")
    assert "bad" in registry.available()


def test_two_distributions_with_one_name(install) -> None:  # type: ignore[no-untyped-def]
    install("first-plugin", good="plugin_module:Good")
    install("second-plugin", good="elsewhere:Good")
    with pytest.raises(
        RegistryError, match=r"pass 'good' is claimed by (first|second)-plugin .* and by (first|second)"
    ):
        registry.available()


def test_a_plugin_with_one_of_our_names(install) -> None:  # type: ignore[no-untyped-def]
    install("some-plugin", share="plugin_module:Good")
    with pytest.raises(
        RegistryError, match=r"'share' is claimed by graphopt \(graphopt.passes.share:Share\) and by some-"
    ):
        registry.available()


@pytest.mark.parametrize(
    ("name", "value", "match"),
    [
        ("missing", "no_such_module:Pass", "cannot be imported: No module named 'no_such_module'"),
        ("attribute", "plugin_module:Nothing", "cannot be imported: .*Nothing"),
        ("syntax", "not a name", "cannot be imported"),
        ("plain", "plugin_module:NoPass", "is not a subclass of graphopt.Pass"),
        ("instance", "plugin_module:instance", "is not a subclass of graphopt.Pass"),
        ("abstract", "plugin_module:Abstract", r"has no method run\(model, context\)"),
        ("undeclared", "plugin_module:Undeclared", "does not declare name and lossless"),
        ("good", "plugin_module:Misnamed", "calls itself 'other'"),
        ("demanding", "plugin_module:Demanding", "has options without a default: size"),
    ],
)
def test_what_is_registered_must_be_a_pass(name: str, value: str, match: str, install) -> None:  # type: ignore[no-untyped-def]
    install("some-plugin", **{name: value})
    with pytest.raises(RegistryError, match=match) as caught:
        registry.pass_class(name)
    assert f"pass '{name}'" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_unknown_name() -> None:
    with pytest.raises(RegistryError, match=r"there is no pass 'nope'; available: .*fold.*") as caught:
        registry.pass_class("nope")
    assert isinstance(caught.value, UsageError)
    assert caught.value.exit_code == 2
