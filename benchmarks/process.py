"""Whole processes, measured from outside."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

# A process starts with its parent's peak memory on Linux, so the command is started by a small one.
_LAUNCHER = """
import json, os, subprocess, sys, time
start = time.perf_counter()
process = subprocess.Popen(sys.argv[2:], stdin=subprocess.DEVNULL)
_, status, usage = os.wait4(process.pid, 0)
seconds = time.perf_counter() - start
figures = [os.waitstatus_to_exitcode(status), seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss]
open(sys.argv[1], "w").write(json.dumps(figures))
"""


@dataclass(frozen=True)
class Run:
    """One finished process.

    Attributes:
        status: Exit status; negative for a signal.
        seconds: Wall time.
        cpu_seconds: Time that it computed, all threads together: other work on the machine hardly changes it.
        peak_bytes: Largest resident set of the process.
        output: What it printed, both streams together.
    """

    status: int
    seconds: float
    cpu_seconds: float
    peak_bytes: int
    output: str


def measure(command: Sequence[str | Path], *, cwd: Path | None = None, env: Mapping[str, str] | None = None) -> Run:
    """Run a command to its end and measure it.

    Args:
        command: Program and arguments.
        cwd: Working folder.
        env: What is different in its environment.
    """
    with tempfile.NamedTemporaryFile("r", suffix=".json") as figures:
        launcher = [sys.executable, "-S", "-c", _LAUNCHER, figures.name]
        start = time.perf_counter()
        process = subprocess.run(
            [*launcher, *map(str, command)],
            cwd=cwd,
            env={**os.environ, **(env or {})},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        if process.returncode != 0:  # the command could not be started
            return Run(process.returncode, time.perf_counter() - start, 0.0, 0, process.stdout)
        status, seconds, cpu_seconds, peak = json.load(figures)
    unit = 1 if sys.platform == "darwin" else 1024  # getrusage(2): bytes on macOS, kibibytes on Linux
    return Run(status, seconds, cpu_seconds, peak * unit, process.stdout)
