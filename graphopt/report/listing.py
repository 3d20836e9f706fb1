"""The list of passes for the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from rich.console import Console

    from graphopt.catalogue import PassInfo

_HINT = "Use: graphopt MODEL -p PASS[:option=value...][,PASS...]; all about one pass: graphopt passes NAME"


def render_passes(passes: Sequence[PassInfo], console: Console) -> None:
    """Print every pass with its one-line meaning and its options."""
    for info in passes:
        console.print(Text.assemble((info.name, "bold"), f"  {info.summary}"))
        if info.options:
            console.print(_options(info))
    console.print(Text(_HINT, style="dim"), soft_wrap=True)


def render_pass(info: PassInfo, console: Console) -> None:
    """Print all about one pass."""
    console.print(Text.assemble((info.name, "bold"), f"  {info.summary}"))
    facts = [
        "lossless: outputs stay equal" if info.lossless else "lossy: bound by --max-drop",
        *([f"after: {', '.join(info.requires)}"] if info.requires else []),
        f"from: {info.source}",
    ]
    for paragraph in (info.description.splitlines(), facts):
        if paragraph:
            console.print()
        for line in paragraph:
            console.print(f"    {line}".rstrip(), soft_wrap=True)
    if info.options:
        console.print()
        console.print(_options(info))
    if info.parts:
        console.print("\n    It is made of:\n")
        for name, meaning in info.parts:
            console.print(Text.assemble("  ", (name, "cyan"), f"  {meaning}"), soft_wrap=True)


def _options(info: PassInfo) -> Table:
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)  # indents
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for option in info.options:
        values = f"{option.meaning} [{option.allowed}; default {option.default}]".strip()
        table.add_row("  ", Text(option.name, style="cyan"), Text(values))
    return table
