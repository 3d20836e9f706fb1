"""Which passes exist: those of graphopt, and those that other distributions add.

A distribution adds a pass through the entry-point group ``graphopt.passes``; the entry's name is the pass's name and
its value is ``module:Class``. Nothing is imported before it is asked for.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import MISSING, fields
from functools import cache
from importlib.metadata import entry_points
from pkgutil import resolve_name

from graphopt.base import Pass
from graphopt.errors import RegistryError, did_you_mean

GROUP = "graphopt.passes"
BUILTIN = {
    "fold": "graphopt.passes.fold:Fold",
    "share": "graphopt.passes.share:Share",
    "pack": "graphopt.passes.pack:Pack",
    "prune": "graphopt.passes.prune:Prune",
    "quant": "graphopt.passes.quant:Quant",
    "half": "graphopt.passes.half:Half",
    "equalize": "graphopt.passes.equalize:Equalize",
}


@cache
def available() -> Mapping[str, str]:
    """Return name -> "module:Class" of every installed pass, sorted by name.

    Raises:
        RegistryError: Two distributions claim one name; the message names both.
    """
    found = dict(BUILTIN)
    owners = dict.fromkeys(BUILTIN, "graphopt")
    for entry in entry_points(group=GROUP):
        owner = entry.dist.name if entry.dist is not None else entry.value
        if found.get(entry.name, entry.value) != entry.value:
            raise RegistryError(
                f"pass '{entry.name}' is claimed by {owners[entry.name]} ({found[entry.name]}) and by {owner} "
                f"({entry.value}); uninstall one of them"
            )
        found[entry.name], owners[entry.name] = entry.value, owner
    return dict(sorted(found.items()))


def pass_class(name: str) -> type[Pass]:
    """Import and return the class of a pass.

    Raises:
        RegistryError: No such pass, or what is registered is not one, or does not declare what a pass must.
    """
    known = available()
    if name not in known:
        raise RegistryError(f"there is no pass '{name}'; available: {', '.join(known)}{did_you_mean(name, known)}")
    where = f"pass '{name}' ({known[name]})"
    try:
        found = resolve_name(known[name])
    except (ImportError, AttributeError, ValueError) as error:
        raise RegistryError(f"{where} cannot be imported: {error}") from error
    if not (isinstance(found, type) and issubclass(found, Pass)):
        raise RegistryError(f"{where} is not a subclass of graphopt.Pass")
    fault = _fault(found, name)
    if fault:
        raise RegistryError(f"{where} {fault}")
    return found


def _fault(found: type[Pass], name: str) -> str:
    """Return what is missing from the declaration of a pass, or an empty text."""
    abstract = inspect.getattr_static(found, "__abstractmethods__", frozenset())
    missing = [item for item in ("name", "lossless") if not hasattr(found, item) or item in abstract]
    if missing:
        return f"does not declare {' and '.join(missing)}"
    if inspect.isabstract(found):
        return "has no method run(model, context)"
    if found.name != name:
        return f"calls itself '{found.name}'"
    bare = [item.name for item in fields(found) if item.default is MISSING and item.default_factory is MISSING]
    return f"has options without a default: {', '.join(bare)}" if bare else ""
