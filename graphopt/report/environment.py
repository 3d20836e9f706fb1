"""Facts about the run that no pass knows: versions, machine, files, memory."""

from __future__ import annotations

import hashlib
import os
import platform
import sys
from importlib.metadata import version
from pathlib import Path

from graphopt import __version__
from graphopt.report import FileInfo, Machine
from graphopt.targets.machine import instructions

_PACKAGES = ("onnx", "onnxruntime", "onnx_graphsurgeon", "numpy")


def versions() -> dict[str, str]:
    """Return the versions of everything that decides the result."""
    import onnxruntime

    found = {"graphopt": __version__, "python": platform.python_version()}
    for package in _PACKAGES:
        # onnxruntime also comes as onnxruntime-gpu and the like: ask the module, not the distribution
        found[package] = onnxruntime.__version__ if package == "onnxruntime" else version(package)
    return found


def machine() -> Machine:
    """Return processor, usable cores and instruction sets."""
    info = _cpuinfo()
    name = info.get("model name") or platform.processor() or platform.machine()
    return Machine(cpu=name, cores=_cores(), instructions=tuple(sorted(instructions())))


def _cpuinfo() -> dict[str, str]:
    """Return the first processor's entries of Linux's /proc/cpuinfo; empty elsewhere."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return {}
    lines = text.split("\n\n", 1)[0].splitlines()
    return {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def file_info(path: Path, nbytes: int | None = None) -> FileInfo:
    """Return a file's digest and size.

    Args:
        path: A model file.
        nbytes: Its size with external data, where that is known; else the file's own.
    """
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return FileInfo(str(path), digest, path.stat().st_size if nbytes is None else nbytes)


def peak_memory() -> int | None:
    """Return the largest resident set of this process so far, in bytes; None where the system does not tell.

    Linux: VmHWM, because ru_maxrss survives exec and would count the parent that started the process.
    """
    try:
        status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
    except OSError:
        return _peak_rusage()
    sizes = [line.split()[1] for line in status.splitlines() if line.startswith("VmHWM:")]
    return int(sizes[0]) * 1024 if sizes else _peak_rusage()


def _peak_rusage() -> int | None:
    try:
        import resource
    except ImportError:  # Windows
        return None
    unit = 1 if sys.platform == "darwin" else 1024  # getrusage(2): bytes on macOS, kibibytes elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
