"""Whole processes, measured from outside."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Run:
    """One finished process.

    Attributes:
        status: Exit status; negative for a signal.
        seconds: Wall time.
        peak_bytes: Largest resident set of the process.
        output: What it printed, both streams together.
    """

    status: int
    seconds: float
    peak_bytes: int
    output: str


def measure(command: Sequence[str | Path], *, cwd: Path | None = None) -> Run:
    """Run a command to its end and measure it."""
    start = time.perf_counter()
    process = subprocess.Popen(
        [str(part) for part in command],
        cwd=cwd,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        stdin=subprocess.DEVNULL,
        text=True,
    )
    assert process.stdout is not None
    output = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    seconds = time.perf_counter() - start
    unit = 1 if sys.platform == "darwin" else 1024  # getrusage(2): bytes on macOS, kibibytes on Linux
    return Run(process.returncode, seconds, usage.ru_maxrss * unit, output)
