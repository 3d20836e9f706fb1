"""On what figures were measured."""

from __future__ import annotations

import os
import platform
from datetime import date
from importlib.metadata import version
from pathlib import Path

from graphopt.targets import get_target

_PACKAGES = "onnxruntime", "onnx", "numpy"


def described() -> str:
    """Return date, processor with the instructions that kernels use, and versions, in one line."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    used = ", ".join(sorted(get_target("cpu").instructions)) or "none of avx2, avx512, vnni"
    versions = ", ".join(f"{name} {version(name)}" for name in _PACKAGES)
    return f"{date.today()}; {_processor()}, {cores} cores ({used}); Python {platform.python_version()}, {versions}"


def _processor() -> str:
    """Return the name of the processor as the system tells it."""
    told = Path("/proc/cpuinfo")
    lines = told.read_text().splitlines() if told.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
