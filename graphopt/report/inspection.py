"""Facts about a model for the terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.table import Table
from rich.text import Text

from graphopt.report.text import count, percent, plural, size, size_or_unknown, visible

if TYPE_CHECKING:
    from rich.console import Console

    from graphopt.inspection import Inspection
    from graphopt.model import TensorSpec

_LARGEST = 10  # layers shown by parameters and by MACs
_ENDS = 8  # inputs shown, and outputs
_OPERATORS = 20  # operators shown


def render_inspection(inspection: Inspection, console: Console) -> None:
    """Print what is in a model."""
    figures = inspection.figures
    opsets = ", ".join(f"{domain or 'ai.onnx'} {version}" for domain, version in inspection.opsets.items())
    compressed = size_or_unknown(figures.zstd_nbytes)
    facts = {
        "file": f"{inspection.file.path}, {size(inspection.file.nbytes)}, after zstd {compressed}",
        "sha256": inspection.file.sha256,
        "made by": inspection.producer or "unknown",
        "version": f"IR {inspection.ir_version}; opset {opsets}",
        "size": f"{plural(figures.nodes, 'node')}, {count(figures.parameters)} parameters, {count(figures.macs)} MACs",
    }
    for kind, specs in (("input", inspection.interface.inputs), ("output", inspection.interface.outputs)):
        for index, spec in enumerate(specs[:_ENDS]):
            facts[f"{kind} {index}"] = _spec(spec)
        if specs[_ENDS:]:
            facts[f"{kind}s"] = f"and {len(specs) - _ENDS} more; --json lists all"
    for label, text in facts.items():
        console.print(Text.assemble((f"{label:<9}", "bold"), " ", visible(text)), soft_wrap=True)
    _section(console, "operators", _operators(inspection))
    for figure, title in (("parameters", "largest by parameters"), ("macs", "largest by MACs")):
        if inspection.largest(figure):
            _section(console, title, _layers(inspection, figure))


def _spec(spec: TensorSpec) -> str:
    dims = "unknown rank" if spec.shape is None else ", ".join("?" if dim is None else str(dim) for dim in spec.shape)
    return f"{spec.name}: {'no tensor' if spec.dtype is None else spec.dtype.name} [{dims}]"


def _section(console: Console, title: str, table: Table) -> None:
    console.print(Text(title, style="bold"))
    console.print(table)


def _grid(numbers: int) -> Table:
    """Return an indented table that begins with columns of numbers."""
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column()
    for _ in range(numbers):
        table.add_column(justify="right", no_wrap=True)
    return table


def _operators(inspection: Inspection) -> Table:
    table = _grid(numbers=1)
    names = list(inspection.operators)
    for name in names[:_OPERATORS]:
        table.add_row("", str(inspection.operators[name]), Text(visible(name)))
    if names[_OPERATORS:]:
        rest = sum(inspection.operators[name] for name in names[_OPERATORS:])
        table.add_row("", str(rest), f"of {plural(len(names) - _OPERATORS, 'other kind')}")
    return table


def _layers(inspection: Inspection, figure: str) -> Table:
    table = _grid(numbers=2)
    total = sum(getattr(cost, figure) or 0 for cost in inspection.nodes)
    for cost in inspection.largest(figure, _LARGEST):
        value = getattr(cost, figure)
        table.add_row("", count(value), percent(value / total), Text(visible(cost.op)), Text(visible(cost.node)))
    return table
