"""Whole runs of quant beside onnxruntime.quantization with entropy calibration: `benchmarks.int8 race`."""

from __future__ import annotations

import json
import statistics
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import click

from benchmarks.int8_tools import ENTROPY, OURS, command
from benchmarks.process import measure

RACERS = (ENTROPY, OURS, f"{OURS} static")
_PART = 0.5  # of the peer's time that a whole run may take


@dataclass(frozen=True)
class Lap:
    """One run of one tool.

    Attributes:
        seconds: Wall time of the command.
        cpu_seconds: Of the processor.
        peak_bytes: Largest resident set.
        step_seconds: Wall time of the pass alone, without loading, folding and the final timing; 0 for the peer.
    """

    seconds: float
    cpu_seconds: float
    peak_bytes: int
    step_seconds: float = 0.0


def race(model: Path, samples: Path, peers: str, rounds: int) -> dict[str, list[Lap]]:
    """Run the tools in turn and return their laps.

    Args:
        model: To quantize.
        samples: To calibrate on.
        peers: Interpreter that has the peer.
        rounds: Laps of each.

    Raises:
        ClickException: A tool failed.
    """
    laps: dict[str, list[Lap]] = {tool: [] for tool in RACERS}
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(rounds):
            for tool in RACERS:
                output = Path(folder) / f"{tool}.onnx"
                run = measure(command(tool, peers, model, output, samples))
                if run.status != 0:
                    raise click.ClickException(f"{tool} failed on {model.stem}: {run.output[-500:]}")
                step = _step_seconds(output.with_suffix(".report.json"))
                laps[tool].append(Lap(run.seconds, run.cpu_seconds, run.peak_bytes, step))
    return laps


def write(laps: Mapping[str, Sequence[Lap]], path: Path) -> None:
    """Keep laps."""
    path.write_text(json.dumps({tool: [asdict(lap) for lap in own] for tool, own in laps.items()}, indent=1) + "\n")


def read(path: Path) -> dict[str, list[Lap]]:
    """Return the laps that were kept."""
    return {tool: [Lap(**lap) for lap in own] for tool, own in json.loads(path.read_text()).items()}


def rows(found: Mapping[str, Mapping[str, Sequence[Lap]]]) -> Iterator[str]:
    """Return the lines of a table in Markdown: medians over laps, by model."""
    yield "| model | tool | CPU | wall | quant alone, wall | peak memory | CPU over the peer's | half? |"
    yield "|---" * 8 + "|"
    for model, laps in found.items():
        peer = _median(laps[ENTROPY], "cpu_seconds")
        for tool, own in laps.items():
            part = _median(own, "cpu_seconds") / peer
            times = [f"{_median(own, name):.1f} s" for name in ("cpu_seconds", "seconds", "step_seconds")]
            memory = f"{_median(own, 'peak_bytes') / 1e6:.0f} MB"
            judged = ("-", "-") if tool == ENTROPY else (f"{part:.2f}", "yes" if part <= _PART else "**no**")
            alone = "-" if tool == ENTROPY else times[2]
            yield f"| {' | '.join((model, tool, *times[:2], alone, memory, *judged))} |"


def _median(laps: Sequence[Lap], name: str) -> float:
    return statistics.median(float(getattr(lap, name)) for lap in laps)


def _step_seconds(report: Path) -> float:
    if not report.exists():
        return 0.0
    return float(json.loads(report.read_text())["steps"][-1]["seconds"])
