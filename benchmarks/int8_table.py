"""The tables of `benchmarks.int8`."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from benchmarks.int8_race import read as read_race
from benchmarks.int8_race import rows as race_rows
from benchmarks.int8_tools import CALIBRATION, OURS, RACE, Outcome, Speed

Read = Callable[[Path], dict[str, Outcome]]
_SLACK_SECONDS, _FACTOR, _EXTRA_BYTES = 2.0, 1.5, 400e6  # what calibration may take beyond plain inference


def render(folders: Mapping[str, Path], read: Read) -> str:
    """Return four tables in Markdown: who reaches the best peer, all results, what calibration and whole runs take.

    Args:
        folders: Where results are kept, by model.
        read: Returns the outcomes that a folder keeps.
    """
    found = {name: (read(folder), _latency(folder)) for name, folder in folders.items()}
    calibrations = {name: _json(folder / f"{CALIBRATION}.json") for name, folder in folders.items()}
    races = {name: read_race(folder / RACE) for name, folder in folders.items() if (folder / RACE).exists()}
    return "\n".join(
        (
            *_bars(found),
            "",
            *_results(found),
            "",
            *_calibrations({name: figures for name, figures in calibrations.items() if figures is not None}),
            "",
            *race_rows(races),
        )
    )


Found = Mapping[str, tuple[dict[str, Outcome], dict[str, Any] | None]]


def _bars(found: Found) -> Iterator[str]:
    yield "| model | to beat | its latency ratio, loss in points | ours | our time over its | reached? |"
    yield "|---" * 6 + "|"
    for name, (outcomes, latency) in found.items():
        if latency is None or latency["ours"] is None or OURS not in outcomes:
            continue
        best, mine, ours = latency["best"], latency.get("mine", OURS), Speed(**latency["ours"])
        losses = {tool: 100 * (outcomes["float"].score() - outcomes[tool].score()) for tool in (mine, best)}
        ratios = {tool: latency["speeds"].get(tool, {"median": 1.0})["median"] for tool in (mine, best)}
        missed = ["latency"] if ours.slower else []
        missed += ["loss"] if losses[mine] > max(losses[best], 0.0) + 1e-9 else []
        texts = {tool: f"{ratios[tool]:.2f}, {losses[tool]:.2f}" for tool in (best, mine)}
        cells = (name, best, texts[best], texts[mine] + mine.removeprefix(OURS), _ratio(ours))
        yield f"| {' | '.join(cells)} | {'**missed: ' + ', '.join(missed) + '**' if missed else 'yes'} |"


def _results(found: Found) -> Iterator[str]:
    yield "| model | tool | file | latency ratio (95 %) | metric | Q and DQ left (inside) | wall, CPU, peak memory |"
    yield "|---" * 7 + "|"
    for name, (outcomes, latency) in found.items():
        real = outcomes["float"].nbytes
        assert real
        for tool, item in outcomes.items():
            if item.error:
                cells = [f"FAILED: {item.error}", "", "", ""]
            else:
                assert item.nbytes is not None
                speed = (latency or {"speeds": {}})["speeds"].get(tool)
                cells = [
                    f"{item.nbytes / real:.2f}",
                    "-" if speed is None else _ratio(Speed(**speed)),
                    _metric(item.metric),
                    "-" if tool == "float" else f"{item.conversions} ({item.inside})",
                ]
            cost = f"{item.seconds:.1f} s, {item.cpu_seconds:.1f} s, {item.peak_bytes / 1e6:.0f} MB"
            yield f"| {name} | {tool} | {' | '.join(cells)} | {'-' if tool == 'float' else cost} |"


def _calibrations(found: Mapping[str, Mapping[str, float]]) -> Iterator[str]:
    yield "| model | samples | plain inference | calibration | allowed | peak memory before, after | within? |"
    yield "|---" * 7 + "|"
    for name, item in found.items():
        allowed = _FACTOR * item["inference_seconds"] + _SLACK_SECONDS
        extra = item["peak_bytes"] - item["peak_before_bytes"]
        within = item["calibration_seconds"] <= allowed and extra <= _EXTRA_BYTES
        times = (f"{seconds:.2f} s" for seconds in (item["inference_seconds"], item["calibration_seconds"], allowed))
        memory = f"{item['peak_before_bytes'] / 1e6:.0f}, {item['peak_bytes'] / 1e6:.0f} MB"
        cells = (name, f"{item['samples']:.0f}", *times, memory, "yes" if within else "**no**")
        yield f"| {' | '.join(cells)} |"


def _latency(folder: Path) -> dict[str, Any] | None:
    return _json(folder / "latency.json")


def _json(path: Path) -> dict[str, Any] | None:
    return json.loads(path.read_text()) if path.exists() else None


def _ratio(speed: Speed) -> str:
    return f"{speed.median:.2f} ({speed.low:.2f}-{speed.high:.2f})"


def _metric(metric: Mapping[str, float] | None) -> str:
    return ", ".join(f"{key} {value:.4g}" for key, value in (metric or {}).items())
