"""Draw what graphopt reaches on every model beside the best peer: time and file, both of the float model's.

    python -m benchmarks.overview RESULTS [--storage JSON]... --svg FILE

RESULTS is the folder of `benchmarks.int8 make` and `time`, JSON what `benchmarks.storage --json` has written; nothing
is measured here. The peer is the one of the table of `benchmarks.int8`: the fastest that loses a point at most.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from benchmarks.int8 import outcomes
from benchmarks.plots import COLOURS, figure, save
from benchmarks.storage import read

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_PACK = "fold,share,pack:bits=auto"
_ROW, _REST = 0.26, 1.1  # inches of a model, and of title, axis and legend


@dataclass(frozen=True)
class Bar:
    """One model: time and bytes over the float model's.

    Attributes:
        model: Its name.
        ours: Of `quant`.
        peer: Of the best peer.
        packed: Bytes of `pack:bits=auto`, which runs at the float model's speed; None: not measured.
    """

    model: str
    ours: tuple[float, float]
    peer: tuple[float, float]
    packed: float | None


@click.command()
@click.argument("results", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--storage", multiple=True, type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--svg", required=True, type=click.Path(dir_okay=False, path_type=Path))
def main(results: Path, storage: tuple[Path, ...], svg: Path) -> None:
    """Draw time and file of every model that was timed."""
    packed = smallest(storage)
    bars = [bar(path.parent, packed) for path in sorted(results.glob("*/latency.json"))]
    draw(sorted(bars, key=lambda item: -item.ours[0]), svg)


def smallest(storage: Sequence[Path]) -> Mapping[str, float]:
    """Return the file that `pack:bits=auto` made, over the original, by model."""
    found: dict[str, float] = {}
    for result in (item for path in storage for item in read(path)):
        if result.mode == _PACK and result.row.after_bytes:
            ratio = result.row.after_bytes / result.row.before_bytes
            found[result.row.model] = min(ratio, found.get(result.row.model, ratio))
    return found


def bar(folder: Path, packed: Mapping[str, float]) -> Bar:
    """Return what is drawn of one model."""
    made, times = outcomes(folder), json.loads((folder / "latency.json").read_text())
    whole = made["float"].nbytes

    def point(tool: str) -> tuple[float, float]:
        nbytes = made[tool].nbytes
        assert whole
        assert nbytes
        return (times["speeds"][tool]["median"] if tool != "float" else 1.0), nbytes / whole

    return Bar(folder.name, point(times["mine"]), point(times["best"]), packed.get(folder.name))


def draw(bars: Sequence[Bar], path: Path) -> None:
    """Write both panels as SVG."""
    drawn, (times, files) = figure(2, height=_ROW * len(bars) + _REST, share_y=True)
    rows = range(len(bars))
    for axes, index, title in ((times, 0, "time, of the float model's"), (files, 1, "file, of the float model's")):
        axes.axvline(1, color=COLOURS["float"], linewidth=0.8)
        peers, ours = [item.peer[index] for item in bars], [item.ours[index] for item in bars]
        axes.hlines(rows, [min(pair) for pair in zip(peers, ours, strict=True)], 1, color="#dddddd", zorder=1)
        axes.scatter(peers, rows, s=26, c=COLOURS["onnxruntime"], marker="s", label="best peer, int8")
        axes.scatter(ours, rows, s=30, c=COLOURS["graphopt"], label="graphopt quant")
        axes.set_xlim(0, 1.08)
        axes.set_title(title, fontsize=9)
    _add_packed(files, bars)
    times.set_yticks(rows, [item.model for item in bars])
    drawn.legend(*files.get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize=7)
    save(drawn, path)


def _add_packed(axes: Axes, bars: Sequence[Bar]) -> None:
    found = [(item.packed, row) for row, item in enumerate(bars) if item.packed is not None]
    if found:
        sizes, rows = zip(*found, strict=True)
        axes.scatter(sizes, rows, s=34, c=COLOURS["graphopt"], marker="*", label="graphopt pack, time as float")


if __name__ == "__main__":
    main()
