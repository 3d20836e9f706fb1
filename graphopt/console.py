"""Terminals: consoles for result and messages, and progress bars."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator, Sized
from io import TextIOWrapper
from types import TracebackType
from typing import Self, TextIO, TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from graphopt.report.text import visible

ItemT = TypeVar("ItemT")

_PLAIN_WIDTH = 140  # columns where there is no terminal, so that a table in a log is not broken


def console_for(stream: TextIO) -> Console:
    """Return a console that prints text as it is: names in it come from models and never mean markup."""
    if isinstance(stream, TextIOWrapper):  # a name that the terminal's encoding lacks must not end the run
        stream.reconfigure(errors="backslashreplace")
    width = None if stream.isatty() or "COLUMNS" in os.environ else _PLAIN_WIDTH
    return Console(file=stream, width=width, markup=False, highlight=False, emoji=False)


def result_console() -> Console:
    """Return the console for results, standard output."""
    return console_for(sys.stdout)


def message_console() -> Console:
    """Return the console for progress and warnings, standard error."""
    return console_for(sys.stderr)


def warn(lines: Iterable[str]) -> None:
    """Print warnings to standard error."""
    console = message_console()
    for line in lines:
        console.print(f"warning: {visible(line)}", style="yellow", soft_wrap=True)


class BarProgress:
    """Shows a bar for each step that is under way, and removes it afterwards; a context manager, for runs that fail.

    Args:
        console: Where the bars are drawn.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bars: Progress | None = None

    def track(self, items: Iterable[ItemT], what: str, total: int | None = None) -> Iterator[ItemT]:
        """Yield the items and advance a bar; see `graphopt.progress.Progress`."""
        if total is None and isinstance(items, Sized):
            total = len(items)
        bars = self._started()
        task = bars.add_task(what, total=total)
        try:
            for item in items:
                yield item
                bars.advance(task)
        finally:
            bars.remove_task(task)
            if not bars.task_ids:  # between steps the display's thread would disturb measurements of time
                self.close()

    def close(self) -> None:
        """Take the display down."""
        if self._bars is not None:
            self._bars.stop()
            self._bars = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _started(self) -> Progress:
        if self._bars is None:
            columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn())
            self._bars = Progress(*columns, TimeRemainingColumn(), console=self._console, transient=True)
            self._bars.start()
        return self._bars
