"""Which rules there are: those of graphopt, and those that other distributions add.

A distribution adds a rule through the entry-point group ``graphopt.fold_rules``; its value is ``module:Class``, and the
entry's name is the rule's name. Such rules are tried after those of graphopt.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from functools import cache
from importlib.metadata import EntryPoint, entry_points

from graphopt.errors import RegistryError
from graphopt.passes.fold.rules import RULES
from graphopt.passes.fold.rules.rule import Rule

GROUP = "graphopt.fold_rules"


@cache
def installed_rules() -> tuple[Rule, ...]:
    """Return the rules in the order in which they are tried.

    Raises:
        RegistryError: What a distribution added is no rule, or its name is taken.
    """
    added = [_load(entry) for entry in sorted(entry_points(group=GROUP), key=lambda entry: entry.name)]
    rules = (*RULES, *added)
    names = [rule.name for rule in rules]
    taken = next((name for name in names if names.count(name) > 1), None)
    if taken is not None:
        raise RegistryError(f"two rules of fold are called '{taken}'; uninstall one of the distributions that add it")
    return rules


def _load(entry: EntryPoint) -> Rule:
    owner = entry.dist.name if entry.dist is not None else entry.value
    where = f"rule '{entry.name}' of fold ({entry.value}, from {owner})"
    try:
        found = entry.load()
    except (ImportError, AttributeError) as error:
        raise RegistryError(f"{where} cannot be imported: {error}") from error
    if not (isinstance(found, type) and issubclass(found, Rule)) or inspect.isabstract(found):
        raise RegistryError(f"{where} is not a subclass of graphopt.passes.fold.Rule with a method apply(node, bench)")
    if getattr(found, "name", None) != entry.name or not getattr(found, "ops", None):
        raise RegistryError(f"{where} must state name = '{entry.name}', and in ops the operators that it starts at")
    return found()


def summaries() -> Mapping[str, str]:
    """Return name -> what it does, of every rule: the first paragraph of its docstring on one line."""
    return {rule.name: _summary(type(rule)) for rule in installed_rules()}


def _summary(rule: type[Rule]) -> str:
    return " ".join(inspect.cleandoc(rule.__doc__ or "").split("\n\n")[0].split())
