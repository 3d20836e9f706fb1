"""What `graphopt passes` tells about each pass: its docstring, taken apart."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from graphopt import registry
from graphopt.base import Pass
from graphopt.errors import RegistryError
from graphopt.spec import options

_SECTION = re.compile(r"^(Attributes|Args|Returns|Raises|Example|Examples|Note|Notes|References|Source):$", re.M)
_ENTRY = re.compile(r"^    (\w+)(?: \([^)]*\))?: *(.*)$")


@dataclass(frozen=True)
class OptionInfo:
    """One option of a pass.

    Attributes:
        name: As the user types it.
        default: Default value, as the user would type it.
        allowed: What values are accepted.
        meaning: What it does; empty where the pass does not say.
    """

    name: str
    default: str
    allowed: str
    meaning: str


@dataclass(frozen=True)
class PassInfo:
    """A pass as users see it.

    Attributes:
        name: What the user types after ``-p``.
        source: "module:Class".
        summary: First line of the docstring.
        description: The rest of it, up to its first section.
        options: Options in declaration order.
        lossless: Whether outputs stay equal.
        requires: Passes that run before it.
        parts: What a pass is made of, where it tells (the rules of `fold`): name and meaning.
    """

    name: str
    source: str
    summary: str
    description: str
    options: tuple[OptionInfo, ...]
    lossless: bool
    requires: tuple[str, ...]
    parts: tuple[tuple[str, str], ...] = ()


@runtime_checkable
class HasParts(Protocol):
    """A pass that can tell what it is made of."""

    @classmethod
    def parts(cls) -> Mapping[str, str]:
        """Return name -> meaning."""


def describe(name: str) -> PassInfo:
    """Return what a pass says about itself.

    Raises:
        RegistryError: There is no such pass, or it cannot be imported.
    """
    cls = registry.pass_class(name)
    text = _docstring(cls)
    summary, _, rest = _SECTION.split(text, maxsplit=1)[0].strip().partition("\n")
    meanings = attributes_of(text)
    described = tuple(
        OptionInfo(option.name, _typed(option.default), option.allowed, meanings.get(option.name, ""))
        for option in options(cls)
    )
    parts = tuple(cls.parts().items()) if isinstance(cls, HasParts) else ()
    source = registry.available()[name]
    return PassInfo(name, source, summary, rest.strip(), described, cls().lossless, cls.requires, parts)


def describe_all() -> tuple[list[PassInfo], list[str]]:
    """Return every pass that can be imported, and one line for each that cannot."""
    found, broken = [], []
    for name in registry.available():
        try:
            found.append(describe(name))
        except RegistryError as error:
            broken.append(str(error))
    return found, broken


def attributes_of(docstring: str) -> dict[str, str]:
    """Return option -> meaning from the ``Attributes:`` section, each on one line and with dashes for underscores."""
    parts = _SECTION.split(docstring)
    sections = dict(zip(parts[1::2], parts[2::2], strict=True))
    entries: dict[str, list[str]] = {}
    name = ""
    for line in sections.get("Attributes", "").splitlines():
        entry = _ENTRY.match(line)
        if entry:
            name = entry[1].replace("_", "-")
            entries[name] = [entry[2]]
        elif name and line.strip():
            entries[name].append(line.strip())
    return {name: " ".join(lines) for name, lines in entries.items()}


def _docstring(cls: type[Pass]) -> str:
    """Return the class's own docstring; empty where dataclass has only generated a signature."""
    text = inspect.cleandoc(cls.__doc__ or "")
    return "" if text.startswith(f"{cls.__name__}(") else text


def _typed(value: Any) -> str:
    if value == "":
        return "empty"
    return str(value).lower() if isinstance(value, bool) or value is None else str(value)
