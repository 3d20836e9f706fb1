"""The report for the terminal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from rich import box
from rich.table import Table
from rich.text import Text

from graphopt.report.text import (
    count,
    figure,
    interval,
    loss,
    percent,
    plural,
    seconds,
    shrinkage,
    size,
    size_or_unknown,
    speed,
    visible,
)

if TYPE_CHECKING:
    from rich.console import Console

    from graphopt.base import Skip
    from graphopt.cost import Figures
    from graphopt.evaluate import Drop
    from graphopt.pipeline import Step
    from graphopt.report import Report, Timing
    from graphopt.runtime.timing import Ratio

_STYLES = {"accepted": "green", "unchanged": "dim", "rolled back": "yellow"}
_SHOWN = 5  # outputs whose agreement is told
_ROOMY = 100  # columns from which on the table gets wider gaps


def render(report: Report, console: Console, verbosity: int = 0) -> None:
    """Print a report.

    Args:
        report: What to print.
        console: Where to; must not interpret markup, for names come from the model.
        verbosity: 0: table and result; 1 and more: also metrics and conditions, and every skipped place by reason.
    """
    console.print(_table(report, roomy=console.width >= _ROOMY))
    for label, line in _lines(report):
        console.print(Text.assemble((f"{label:<9}", "bold"), visible(line)), soft_wrap=True)
    names = [step.spec.partition(":")[0] for step in report.steps]
    for step, name in zip(report.steps, names, strict=True):
        _render_step(step, name if names.count(name) == 1 else step.spec, console, verbosity)
    if verbosity > 0:
        console.print(_text(_conditions(report)), soft_wrap=True, style="dim")


def _text(line: str) -> Text:
    return Text(visible(line))


def _table(report: Report, *, roomy: bool) -> Table:
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1 if roomy else 0, 0, 0))
    table.add_column("pass", overflow="fold", max_width=40)
    table.add_column("outcome", no_wrap=True)
    for title in ("nodes", "params", "MACs", "size", "zstd", "latency", "drop"):
        table.add_column(title, justify="right", no_wrap=True)
    table.add_row("input", "", *_cells(report.before), "", "")
    for step in report.steps:
        name = step.spec + (" (inserted)" if step.inserted else "")
        figures = _cells(step.after) if step.outcome == "accepted" else ("",) * 5
        outcome = Text(step.outcome, style=_STYLES[step.outcome])
        table.add_row(_text(name), outcome, *figures, _ratio(step.latency), _drop(step.drop))
    if report.steps:
        table.add_section()
    table.add_row("output", "", *_cells(report.after), _ratio(report.latency), _drop(report.drop), style="bold")
    return table


def _cells(figures: Figures) -> tuple[str, ...]:
    counts = (str(figures.nodes), count(figures.parameters), count(figures.macs))
    return (*counts, size(figures.nbytes), size_or_unknown(figures.zstd_nbytes))


def _ratio(ratio: Ratio | None) -> str:
    return "" if ratio is None else f"{ratio.median:.2f} x"


def _drop(drop: Drop | None) -> str:
    return "" if drop is None else percent(drop.value)


def _lines(report: Report) -> Iterator[tuple[str, str]]:
    before, after = report.before, report.after
    sizes = f"{size(before.nbytes)} -> {size(after.nbytes)}, {shrinkage(before.nbytes, after.nbytes)}"
    if before.zstd_nbytes is not None and after.zstd_nbytes is not None:
        zstd = f"after zstd {size(before.zstd_nbytes)} -> {size(after.zstd_nbytes)}"
        sizes += f"; {zstd}, {shrinkage(before.zstd_nbytes, after.zstd_nbytes)}"
    yield ("size", sizes)
    for index, timing in enumerate(report.timings):
        yield ("" if index else "latency", timing_line(timing))
    yield ("quality", quality_line(report))
    if report.output is not None:
        yield ("output", report.output.path)


def timing_line(timing: Timing) -> str:
    """Return one latency ratio with its conditions, or why there is none."""
    if timing.ratio is None:
        return f"not measured on {timing.provider}: {timing.reason}"
    inputs = "random inputs" if timing.random_inputs else "inputs from the samples"
    if timing.chosen:
        shapes = [f"{name} {'x'.join(map(str, shape))}" for name, shape in timing.chosen.items()]
        inputs += f" ({_first(shapes)})"
    return (
        f"{interval(timing.ratio)}, {speed(timing.ratio)}; {timing.provider}, {plural(timing.threads, 'thread')}, "
        f"{inputs}, {plural(timing.ratio.pairs, 'pair')}"
    )


def quality_line(report: Report) -> str:
    """Return the loss against the original with its conditions, or why there is none."""
    drop = report.drop
    if drop is None:
        return f"not measured: {report.drop_reason}"
    limit = f"limit {percent(report.max_drop)}"
    if drop.value > report.max_drop and drop.within(report.max_drop):
        limit += f", which {drop.samples} samples do not prove to be exceeded"
    details = dict(drop.details)
    if drop.measure == "metric":
        return f"metric {details.get('before', 0):.6g} -> {details.get('after', 0):.6g}, lost {loss(drop)}; {limit}"
    shown = _first([f"{name} {value:.6g}" for name, value in details.items()])
    return f"{drop.measure} lost {loss(drop)} on {drop.describe_samples()}; {limit}; {shown}"


def _render_step(step: Step, name: str, console: Console, verbosity: int) -> None:
    if step.report is None:
        return
    if step.outcome == "rolled back":
        name += " (rolled back)"
    for note in step.report.notes:
        console.print(_text(f"{name}: {note}"), soft_wrap=True)
    skipped = step.report.skipped
    if skipped and verbosity == 0:
        console.print(_text(f"{name}: left {plural(len(skipped), 'place')} alone; -v says why"), soft_wrap=True)
    if verbosity == 0:
        return
    if step.report.metrics:
        metrics = ", ".join(f"{key.replace('_', ' ')} {figure(value)}" for key, value in step.report.metrics.items())
        console.print(_text(f"{name}: {metrics}"), soft_wrap=True)
    verified = f"; {step.verified}" if step.verified else ""
    line = f"{name}: {plural(step.report.changed, 'rewrite')}{verified}; {seconds(step.seconds)}"
    console.print(_text(line), soft_wrap=True)
    for reason, places in by_reason(skipped).items():
        console.print(_text(f"{name}: left alone {len(places)} x, {reason}: {', '.join(places)}"), soft_wrap=True)


def by_reason(skipped: Sequence[Skip]) -> dict[str, list[str]]:
    """Return the places by reason, most frequent reason first."""
    groups: dict[str, list[str]] = {}
    for skip in skipped:
        groups.setdefault(skip.reason, []).append(skip.where)
    return dict(sorted(groups.items(), key=lambda item: -len(item[1])))


def _first(items: Sequence[str]) -> str:
    shown = ", ".join(items[:_SHOWN])
    return shown if len(items) <= _SHOWN else f"{shown} and {len(items) - _SHOWN} more"


def _conditions(report: Report) -> str:
    software = ", ".join(f"{name} {version}" for name, version in report.versions.items())
    machine = f"{report.machine.cpu}, {plural(report.machine.cores, 'core')}, {' '.join(report.machine.instructions)}"
    memory = "" if report.peak_memory_nbytes is None else f", peak memory {size(report.peak_memory_nbytes)}"
    return (
        f"{seconds(report.seconds)}{memory}; target {report.target.name}, seed {report.seed}; {machine.strip(', ')}; "
        f"{software}"
    )
