"""What it takes to open a model: time and memory of fresh processes that have only ONNX Runtime."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from graphopt.model import Model

_OPENINGS = 3  # of each model, in turns; the least counts, for others can only add to it
_TIMEOUT = 600  # seconds; who waits longer than that knows enough
_OPEN = """
import json, sys, time
import onnxruntime
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = 1
options.log_severity_level = 4
start = time.perf_counter()
onnxruntime.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
seconds, peak = time.perf_counter() - start, None
try:
    with open("/proc/self/status") as status:
        peak = next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM"))
except OSError:
    pass
print(json.dumps([seconds, peak]))
"""


@dataclass(frozen=True)
class Loading:
    """What opening a model takes.

    Attributes:
        seconds: Wall time of making a session with one thread.
        peak_bytes: Largest resident set of the process, libraries included; None where the system does not tell.
    """

    seconds: float
    peak_bytes: int | None


def compare_loading(before: Model, after: Model) -> tuple[Loading, Loading] | None:
    """Open two models, in turns and in processes of their own; return what that takes, or None if it fails."""
    with tempfile.TemporaryDirectory(prefix="graphopt-") as folder:
        paths = Path(folder) / "before.onnx", Path(folder) / "after.onnx"
        for model, path in zip((before, after), paths, strict=True):
            model.save(path)
        found = [[_opened(path) for path in paths] for _ in range(_OPENINGS)]
    first, second = (_least([pair[index] for pair in found]) for index in range(2))
    return None if first is None or second is None else (first, second)


def describe(before: Loading, after: Loading) -> str:
    """Return the comparison in words."""
    text = (
        f"opening takes {after.seconds / before.seconds:.1f} x the time ({before.seconds:.3f} -> {after.seconds:.3f} s)"
    )
    if before.peak_bytes is None or after.peak_bytes is None:
        return f"{text}, in fresh processes"
    megabytes = f"{before.peak_bytes / 1e6:.0f} -> {after.peak_bytes / 1e6:.0f} MB"
    return f"{text} and {after.peak_bytes / before.peak_bytes:.2f} x the memory ({megabytes}), in fresh processes"


def _opened(path: Path) -> Loading | None:
    command = [sys.executable, "-c", _OPEN, str(path)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    seconds, peak = json.loads(done.stdout.splitlines()[-1])
    return Loading(float(seconds), None if peak is None else int(peak))


def _least(found: list[Loading | None]) -> Loading | None:
    """Return the least time and memory of several openings; None if one of them failed."""
    opened = [loading for loading in found if loading is not None]
    if len(opened) < len(found):
        return None
    peaks = [loading.peak_bytes for loading in opened if loading.peak_bytes is not None]
    return Loading(min(loading.seconds for loading in opened), min(peaks, default=None))
