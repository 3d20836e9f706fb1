"""The errors that graphopt raises on purpose.

::

    GraphoptError            one line for the user; the command exits with status 1
    ├── ModelError           the model cannot be read, carried, run or written
    ├── SampleError          the samples do not fit the model
    │   └── UnjudgedError    nothing can be judged on them
    ├── PassError            a pass failed or broke its contract (strict runs)
    └── UsageError           the request is wrong; the command exits with status 2
        ├── SpecError        the text of a pipeline is wrong
        └── RegistryError    a pass name is unknown or claimed twice

Every message says what was found, what is allowed, the name of the thing, and what to do. Anything else that is raised
is a bug and keeps its traceback.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class GraphoptError(Exception):
    """Base of every error that a user can cause or cure."""

    exit_code = 1


class ModelError(GraphoptError):
    """The model cannot be read, carried, run or written."""


class SampleError(GraphoptError):
    """The samples do not fit the model."""


class UnjudgedError(SampleError):
    """The samples tell nothing about how good a model is."""


class PassError(GraphoptError):
    """A pass failed or broke its contract."""

    def __init__(self, pass_name: str, message: str) -> None:
        super().__init__(f"pass '{pass_name}': {message}")
        self.pass_name = pass_name


class UsageError(GraphoptError):
    """The request itself is wrong."""

    exit_code = 2


class SpecError(UsageError):
    """The text of a pipeline is wrong."""


class RegistryError(UsageError):
    """A pass name is unknown, or claimed by two distributions."""


def did_you_mean(given: str, known: Iterable[str]) -> str:
    """Return a question that ends the line about an unknown name, or an empty text where none is like it."""
    close = difflib.get_close_matches(given, list(known), n=1)
    return f"; did you mean '{close[0]}'?" if close else ""
