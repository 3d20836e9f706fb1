"""The page of results that `benchmarks.pruning` writes."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.machine import described
from benchmarks.onnxsim_pruning import PEERS
from benchmarks.zoo import Row, line

OURS, UNFITTED, FILTERS = "ours", "ours, not fitted", "L1 filters"
_METHODS = OURS, UNFITTED, FILTERS, *PEERS
_HEAD = """# Structured pruning at equal multiply-accumulates

    python -m benchmarks.pruning make zoo pruned --evaluator efficientnet_lite0=imagenet ...
    python -m benchmarks.pruning gains zoo pruned --only magika
    python -m benchmarks.pruning auto zoo pruned --only magika
    python -m benchmarks.pruning table zoo pruned --markdown pruning.md

{machine}, one thread.
Seconds are of one core, for planning and carrying out; of onnxsim those of one run. All start
from the same folded model. Latency is that of ours over the folded original's, with its 95 % interval."""
_COMMAND = "| model | file | zstd ratio | nodes | latency ratio (95 %) | metric | wall, peak memory | passes |"
_GAINS = """## Pruned and quantized

The whole command with all samples, `--max-drop {limit}`."""
_AUTO = """## As much as the limit allows

The whole command with all samples, `ratio=auto:budget=1`, `--max-drop {limit}`: rounds of a fifth of the work that is
left, then smaller ones, while the outputs stay within the limit."""


@dataclass(frozen=True)
class Entry:
    """One pruned model.

    Attributes:
        model: Name of the original.
        ratio: Wanted fraction of multiply-accumulates to go.
        method: Who pruned.
        macs: Fraction of the multiply-accumulates that is left, on the first sample; None: there is no result.
        metric: What the evaluator prints.
        seconds: Of one core, for planning and pruning; wall time of one run of onnxsim.
        note: Why there is no result.
    """

    model: str
    ratio: float
    method: str
    macs: float | None
    metric: dict[str, float]
    seconds: float
    note: str = ""


def page(keep: Path, latency: Callable[[Entry], str], remarks: Sequence[str]) -> str:
    """Return the page.

    Args:
        keep: Where the commands have put what they measured.
        latency: Returns the latency of our model of an entry.
        remarks: Paragraphs above the tables.
    """
    entries = [Entry(**json.loads(path.read_text())) for path in sorted(keep.glob("*.*.*.json")) if _is_entry(path)]
    parts = [_HEAD.format(machine=described()), *remarks, render(entries, keep, latency)]
    for title, kind in ((_GAINS, "gain*"), (_AUTO, "auto")):
        found = [json.loads(path.read_text()) for path in sorted(keep.glob(f"*.{kind}.command.json"))]
        if found:
            limits = ", ".join(dict.fromkeys(item["max_drop"] for item in found))
            rows = [line(Row(**item["row"])) for item in found]
            parts += [title.format(limit=limits), "\n".join((_COMMAND, "|" + "---|" * 8, *rows))]
    return "\n\n".join(parts)


def _is_entry(path: Path) -> bool:
    return not path.name.endswith(".command.json")


def render(entries: Sequence[Entry], keep: Path, latency: Callable[[Entry], str]) -> str:
    """Return the Markdown table, a line for each model and ratio."""
    head = "| model | ratio | original | " + " | ".join(f"{name}: MACs left, metric" for name in _METHODS)
    head += " | latency of ours | seconds of ours |"
    return "\n".join((head, "|---" * (head.count(" | ") + 1) + "|", *_lines(entries, keep, latency)))


def _lines(entries: Sequence[Entry], keep: Path, latency: Callable[[Entry], str]) -> Iterator[str]:
    found = {(entry.model, entry.ratio, entry.method): entry for entry in entries}
    for model, ratio in sorted({(entry.model, entry.ratio) for entry in entries}):
        before = json.loads((keep / f"{model}.before.json").read_text()) or {}
        row = [found.get((model, ratio, method)) for method in _METHODS]
        ours = row[0]
        timed = (latency(ours), f"{ours.seconds:.0f}") if ours is not None and ours.macs is not None else ("-", "-")
        yield "| " + " | ".join((model, f"{ratio:.0%}", _metric(before), *map(_cell, row), *timed)) + " |"


def _cell(entry: Entry | None) -> str:
    if entry is None or entry.macs is None:
        return "-" if entry is None else f"none: {entry.note}"
    return f"{entry.macs:.3f}: {_metric(entry.metric)}"


def _metric(found: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:.4g}" for name, value in found.items()) or "-"
