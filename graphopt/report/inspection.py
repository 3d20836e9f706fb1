"""Facts about a model for the terminal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from rich import box
from rich.table import Table
from rich.text import Text

from graphopt.report.text import count, percent, plural, seconds, size, size_or_unknown, visible

if TYPE_CHECKING:
    from rich.console import Console

    from graphopt.inspection import Figure, Inspection, NodeFacts
    from graphopt.model import TensorSpec
    from graphopt.weightfacts import WeightFacts

_ORDERS: tuple[Figure, ...] = ("time", "macs", "parameters")
_ENDS = 8  # inputs shown, and outputs
_OPERATORS = 20  # operators shown
_ROOMY = 120  # columns of a terminal that all figures of a node fit into
_SPARED = frozenset({"size", "near 0", "range"})  # where they do not


def render_inspection(inspection: Inspection, console: Console, *, by: Figure | None = None, top: int = 15) -> None:
    """Print what is in a model.

    Args:
        inspection: The facts.
        console: Where to.
        by: What nodes are ordered by; time where it is known, else MACs or parameters.
        top: How many nodes are shown; 0 for all.
    """
    for label, text in _facts(inspection):
        console.print(Text.assemble((f"{label:<9}", "bold"), " ", visible(text)), soft_wrap=True)
    console.print()
    console.print(_operators(inspection))
    order = by or _telling(inspection)
    if inspection.largest(order):
        console.print()
        console.print(_layers(inspection, order, top or None, roomy=console.width >= _ROOMY))


def _telling(inspection: Inspection) -> Figure:
    """Return the first of time, MACs and parameters that there is any of."""
    for figure in _ORDERS:
        if inspection.total(figure):
            return figure
    return "bytes"


def _facts(inspection: Inspection) -> Iterator[tuple[str, str]]:
    figures = inspection.figures
    opsets = ", ".join(f"{domain or 'ai.onnx'} {version}" for domain, version in inspection.opsets.items())
    compressed = size_or_unknown(figures.zstd_nbytes)
    yield "file", f"{inspection.file.path}, {size(inspection.file.nbytes)}, after zstd {compressed}"
    yield "sha256", inspection.file.sha256
    yield "made by", inspection.producer or "unknown"
    yield "version", f"IR {inspection.ir_version}; opset {opsets}"
    macs = _macs(inspection.nodes) if figures.macs is None else count(figures.macs)
    yield "size", f"{plural(figures.nodes, 'node')}, {count(figures.parameters)} parameters, {macs} MACs"
    if inspection.weights:
        yield "weights", _weights(inspection.weights)
    yield "time", _time(inspection)
    for kind, specs in (("input", inspection.interface.inputs), ("output", inspection.interface.outputs)):
        for index, spec in enumerate(specs[:_ENDS]):
            yield f"{kind} {index}", _spec(spec) + _taken(inspection, spec)
        if specs[_ENDS:]:
            yield f"{kind}s", f"and {len(specs) - _ENDS} more; --json lists all"


def _weights(weights: tuple[WeightFacts, ...]) -> str:
    elements = sum(weight.elements for weight in weights)
    floats = [weight for weight in weights if weight.near_zero is not None]
    parts = [f"{percent(sum(weight.zeros for weight in weights) / max(elements, 1))} zeros"]
    if floats:
        near = sum(weight.near_zero or 0 for weight in floats) / max(sum(weight.elements for weight in floats), 1)
        parts.append(f"{percent(near)} within half an 8-bit step of zero")
    channels = sum(weight.channels or 0 for weight in weights)
    if channels:
        repeated = sum(weight.repeated or 0 for weight in weights)
        parts.append(f"{repeated:,} of {plural(channels, 'channel')} repeat another")
    return ", ".join(parts)


def _time(inspection: Inspection) -> str:
    timing = inspection.timing
    if timing.seconds is None:
        return f"not measured: {timing.reason}"
    runtime = f"{percent(timing.added / timing.seconds)} of it added by the runtime" if timing.seconds else ""
    threads = plural(timing.threads, "thread")
    return f"{seconds(timing.seconds)} in kernels of CPUExecutionProvider, {threads}, {runtime}".rstrip(", ")


def _macs(nodes: Sequence[NodeFacts]) -> str:
    """Return the MACs of some nodes together; of nodes that were not reached they may be unknown."""
    known = sum(node.macs or 0 for node in nodes)
    if all(node.macs is not None for node in nodes):
        return count(known)
    return f"{count(known)} + ?" if known else "?"


def _spec(spec: TensorSpec) -> str:
    dims = "unknown rank" if spec.shape is None else ", ".join("?" if dim is None else str(dim) for dim in spec.shape)
    return f"{spec.name}: {'no tensor' if spec.dtype is None else spec.dtype.name} [{dims}]"


def _taken(inspection: Inspection, spec: TensorSpec) -> str:
    """Return the sizes that an input of open dimensions was given, or nothing."""
    shape = inspection.sizes.get(spec.name)
    if shape is None or shape == spec.shape:
        return ""
    return f"; figures are for [{', '.join(map(str, shape))}]"


def _table(*titles: str) -> Table:
    """Return a table with columns of numbers."""
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    for title in titles:
        table.add_column(title, justify="right", no_wrap=True)
    return table


def _operators(inspection: Inspection) -> Table:
    """Return nodes, parameters, MACs and time by operator, the most frequent first."""
    shown = list(inspection.operators)[:_OPERATORS]
    rows: dict[str, list[NodeFacts]] = {name: [] for name in (*shown, "others")}
    for node in inspection.nodes:
        rows[node.operator if node.operator in rows else "others"].append(node)
    table = _table("nodes", "params", "MACs", "time")
    table.add_column("operator")
    for name, nodes in rows.items():
        if nodes:
            table.add_row(str(len(nodes)), *_sums(inspection, nodes), Text(visible(name)))
    table.add_section()
    table.add_row(str(len(inspection.nodes)), *_sums(inspection, inspection.nodes), "in total", style="bold")
    return table


def _sums(inspection: Inspection, nodes: Sequence[NodeFacts]) -> tuple[str, str, str]:
    spent = sum(node.amount("time") for node in nodes)
    return count(sum(node.parameters for node in nodes)), _macs(nodes), _share(inspection, "time", spent)


def _share(inspection: Inspection, figure: Figure, amount: float) -> str:
    total = inspection.total(figure)
    return percent(amount / total) if total else ""


def _layers(inspection: Inspection, by: Figure, top: int | None, *, roomy: bool) -> Table:
    """Return the nodes with the most of something, and the others in one row."""
    titles = ("time", "MACs", "", "params", "size", "zeros", "near 0", "range", "repeats")
    kept = [place for place, title in enumerate(titles) if roomy or title not in _SPARED]
    table = _table(*(titles[place] for place in kept))
    for title in ("operator", "node"):
        table.add_column(title, overflow="fold", min_width=8)
    nodes = inspection.largest(by)
    for node in nodes[:top]:
        cells = (*_amounts(inspection, [node]), *_looks(node.weight))
        table.add_row(*(cells[place] for place in kept), Text(visible(node.operator)), Text(visible(node.node)))
    others = nodes[len(nodes[:top]) :]
    if others:
        cells = (*_amounts(inspection, others), *_looks(None))
        table.add_row(*(cells[place] for place in kept), "", f"{len(others)} more; --top 0 shows all")
    return table


def _amounts(inspection: Inspection, nodes: Sequence[NodeFacts]) -> tuple[str, str, str, str, str]:
    """Return share of time, MACs, their share, parameters and bytes of nodes; empty where there are none."""
    spent, macs, parameters = (sum(node.amount(figure) for node in nodes) for figure in _ORDERS)
    timed = _share(inspection, "time", spent) if spent else ""
    counted = _macs(nodes) if macs or any(node.macs is None for node in nodes) else ""
    share = _share(inspection, "macs", macs) if macs else ""
    held = (count(int(parameters)), size(sum(node.nbytes for node in nodes))) if parameters else ("", "")
    return timed, counted, share, *held


def _looks(weight: WeightFacts | None) -> tuple[str, str, str, str]:
    """Return share of zeros, share near zero, range, and repeated channels of a weight."""
    if weight is None:
        return "", "", "", ""
    elements = max(weight.elements, 1)
    near = "" if weight.near_zero is None else percent(weight.near_zero / elements)
    limits = "not finite" if weight.low is None else f"{weight.low:.3g} to {weight.high:.3g}"
    repeats = "" if weight.channels is None else f"{weight.repeated} of {weight.channels}"
    return percent(weight.zeros / elements), near, limits, repeats
