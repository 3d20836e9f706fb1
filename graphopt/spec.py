"""The text of a pipeline, ``prune:ratio=0.5,quant``, and back.

Grammar: passes separated by commas; after a pass name its options, each ``:option=value``. Underscores of a field are
dashes in text. A value may hold anything but commas and colons, so nothing needs quoting in a shell.
"""

from __future__ import annotations

import math
import types
import typing
from dataclasses import MISSING, Field, dataclass, fields
from typing import Any, Literal, get_args, get_origin

from graphopt.base import Pass
from graphopt.errors import RegistryError, SpecError, did_you_mean
from graphopt.registry import pass_class

_NAMES: dict[Any, str] = {bool: "true|false", int: "whole number", float: "number", str: "text"}
_TRUE, _FALSE = frozenset({"true", "yes", "on", "1"}), frozenset({"false", "no", "off", "0"})


@dataclass(frozen=True)
class Option:
    """One option of a pass.

    Attributes:
        name: As the user types it.
        default: Default value.
        allowed: What values are accepted, for people.
    """

    name: str
    default: Any
    allowed: str


def parse_pipeline(text: str) -> tuple[Pass, ...]:
    """Return the passes that the text names; the empty text names none.

    Raises:
        SpecError: A name, an option or a value is wrong; the message says what is allowed.
        RegistryError: There is no such pass.
    """
    return tuple(parse_pass(item.strip()) for item in text.split(",")) if text.strip() else ()


def parse_pass(text: str) -> Pass:
    """Return one pass from its text; see `parse_pipeline`."""
    name, *items = text.split(":")
    if not name:
        place = f"before '{text}'" if text else "beside a comma"
        raise SpecError(f"a pass name is missing {place}; write NAME[:option=value...][,NAME...]")
    cls = pass_class(name)
    by_name = {field.name.replace("_", "-"): field for field in fields(cls)}
    types_ = _option_types(cls)
    values: dict[str, Any] = {}
    for item in items:
        option, equals, value = item.partition("=")
        if option not in by_name:
            known = ", ".join(by_name) or "none"
            raise SpecError(f"pass '{name}' has no option '{option}'; it has: {known}{did_you_mean(option, by_name)}")
        if not equals:
            raise SpecError(f"pass '{name}': option '{option}' needs a value: {option}=...")
        field = by_name[option]
        if field.name in values:
            raise SpecError(f"pass '{name}': option '{option}' is given twice")
        values[field.name] = _convert(value, types_[field.name], f"pass '{name}': option '{option}'")
    try:
        return cls(**values)
    except ValueError as error:
        raise SpecError(f"pass '{name}': {error}") from error


def format_pipeline(passes: tuple[Pass, ...]) -> str:
    """Return the text that `parse_pipeline` reads back as the same passes; defaults are left out."""
    return ",".join(format_pass(item) for item in passes)


def format_pass(item: Pass) -> str:
    """Return the text of one pass.

    Raises:
        SpecError: A value holds a comma or colon, which end a value.
    """
    text = item.name
    for field in fields(item):
        value = getattr(item, field.name)
        if value == _default(field):
            continue
        option, shown = field.name.replace("_", "-"), _text(value)
        if "," in shown or ":" in shown:
            raise SpecError(f"pass '{item.name}': option '{option}' cannot hold a comma or colon: '{shown}'")
        text += f":{option}={shown}"
    return text


def options(cls: type[Pass]) -> tuple[Option, ...]:
    """Return the options of a pass in declaration order.

    Raises:
        RegistryError: An option has a type that cannot be written as text.
    """
    types_ = _option_types(cls)
    return tuple(
        Option(field.name.replace("_", "-"), _default(field), _allowed(types_[field.name])) for field in fields(cls)
    )


def _option_types(cls: type[Pass]) -> dict[str, Any]:
    hints = typing.get_type_hints(cls)
    kinds = {field.name: hints[field.name] for field in fields(cls)}
    for name, kind in kinds.items():
        parts = get_args(kind) if _is_union(kind) else (kind,)
        if not all(part in (*_NAMES, type(None)) or get_origin(part) is Literal for part in parts):
            raise RegistryError(f"pass '{cls.name}': option '{name}' has the type {kind}, which has no form as text")
    return kinds


def _default(field: Field[Any]) -> Any:
    return field.default_factory() if field.default_factory is not MISSING else field.default


def _text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) or value is None else str(value)


def _allowed(kind: Any) -> str:
    if get_origin(kind) is Literal:
        return "|".join(map(str, get_args(kind)))
    if _is_union(kind):
        return "|".join("none" if part is type(None) else _allowed(part) for part in get_args(kind))
    return _NAMES[kind]


def _is_union(kind: Any) -> bool:
    return get_origin(kind) in (typing.Union, types.UnionType)


def _convert(text: str, kind: Any, what: str) -> Any:
    """Return the text as a value of the option's type; of a union, the narrowest type that takes it."""
    parts = get_args(kind) if _is_union(kind) else (kind,)
    for part in sorted(parts, key=_width):
        accepted, value = _try_convert(text, part)
        if accepted:
            return value
    raise SpecError(f"{what}: '{text}' is not allowed; use {_allowed(kind)}")


def _width(kind: Any) -> int:
    """Order in which the types of a union are tried: "none" is text too, and "1" a number and a truth value."""
    order = (type(None), Literal, int, float, bool, str)
    return order.index(get_origin(kind) or kind)


def _try_convert(text: str, kind: Any) -> tuple[bool, Any]:
    if kind is type(None):
        return text == "none", None
    if get_origin(kind) is Literal:
        chosen = [value for value in get_args(kind) if str(value) == text]
        return bool(chosen), chosen[0] if chosen else None
    if kind is bool:
        return text.lower() in _TRUE | _FALSE, text.lower() in _TRUE
    try:
        value = kind(text)
    except ValueError:
        return False, None
    return not (isinstance(value, float) and math.isnan(value)), value
