"""The user's own functions: found by their name ``module:function``, and guarded when they are called."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from importlib import import_module
from pathlib import Path
from typing import Any

from graphopt.errors import GraphoptError, UsageError

Run = Callable[[Mapping[str, Any]], dict[str, Any]]  # feeds to outputs, both by name
Metric = Callable[[Run], float]


def load_function(text: str, what: str) -> Callable[..., Any]:
    """Import a function that the user named.

    Modules of the working folder are found first, as `python -m` does it, while the import lasts.

    Args:
        text: ``module:function``; both parts may have dots.
        what: What the text was given for, such as "--metric"; errors begin with it.

    Raises:
        UsageError: The text has another form, the module cannot be imported, or it has no such function.
    """
    module_name, colon, path = text.partition(":")
    if not (colon and _is_dotted(module_name) and _is_dotted(path)):
        raise UsageError(f"{what} '{text}': write module:function, such as evaluate:accuracy for a file evaluate.py")
    module = _import(module_name, f"{what} '{text}'")
    found: Any = module
    for part in path.split("."):
        if not hasattr(found, part):
            raise UsageError(f"{what} '{text}': '{module_name}' has no '{path}'; it has: {_functions(module)}")
        found = getattr(found, part)
    if not callable(found):
        raise UsageError(f"{what} '{text}': this is of type {type(found).__name__}, not a function")
    return found  # type: ignore[no-any-return]


@contextmanager
def importable(folder: str) -> Iterator[None]:
    """Have modules of a folder found first for a moment."""
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        with suppress(ValueError):  # the code that was run may have taken it out
            sys.path.remove(folder)


def _is_dotted(text: str) -> bool:
    return all(part.isidentifier() for part in text.split("."))


def _import(name: str, what: str) -> Any:
    folder = str(Path.cwd())
    try:
        with importable(folder):
            return import_module(name)
    except ModuleNotFoundError as error:
        if error.name is not None and (name == error.name or name.startswith(f"{error.name}.")):
            raise UsageError(f"{what}: there is no module '{error.name}' in {folder} or among the installed") from error
        raise UsageError(f"{what}: importing it failed: {error}") from error
    except (Exception, SystemExit) as error:  # the boundary to the user's own code
        reason = " ".join(str(error).split())
        raise UsageError(f"{what}: importing it failed: {type(error).__name__}: {reason}") from error


def _functions(module: Any) -> str:
    names = [name for name, value in vars(module).items() if callable(value) and not name.startswith("_")]
    return ", ".join(names) or "no functions"


def metric_name(metric: Metric | str) -> str:
    """Return what reports and errors call a metric."""
    if isinstance(metric, str):
        return metric
    return f"{getattr(metric, '__module__', '?')}:{getattr(metric, '__qualname__', type(metric).__qualname__)}"


def load_metric(metric: Metric | str) -> Metric:
    """Return a metric whose failures are errors of graphopt that name it; it may import from the working folder.

    Args:
        metric: A function, or its name as ``module:function``.

    Raises:
        UsageError: The text names no function.
    """
    name = metric_name(metric)
    function: Callable[..., Any] = load_function(metric, "--metric") if isinstance(metric, str) else metric
    folder = str(Path.cwd())

    def call(run: Run) -> float:
        try:
            with importable(folder):
                score = float(function(run))
        except GraphoptError as error:
            raise GraphoptError(f"metric '{name}': {error}") from error
        except (Exception, SystemExit) as error:  # the boundary to the user's own code
            reason = " ".join(str(error).split())
            raise GraphoptError(f"metric '{name}' failed: {type(error).__name__}: {reason}") from error
        if not math.isfinite(score):
            raise GraphoptError(f"metric '{name}' returned {score}; it must return a finite number")
        return score

    return call
