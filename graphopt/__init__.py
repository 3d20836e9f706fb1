"""Compress ONNX models with a pipeline of passes, each checked and measured.

::

    import graphopt

    result = graphopt.compress("model.onnx", "fold,share,prune:ratio=0.3,quant", data="samples.npz")
    result.save("small.onnx")
    print(result.report.after.nbytes, result.report.latency)

Nothing heavy is imported before it is used (PEP 562).
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from graphopt.api import Result, compress, load
    from graphopt.base import Pass, PassReport, Skip
    from graphopt.context import Context
    from graphopt.errors import (
        GraphoptError,
        ModelError,
        PassError,
        RegistryError,
        SampleError,
        SpecError,
        UsageError,
    )
    from graphopt.model import Model
    from graphopt.pipeline import Pipeline
    from graphopt.report import Report
    from graphopt.targets import Target

__version__ = "0.1.0"

__all__ = [
    "Context",
    "GraphoptError",
    "Model",
    "ModelError",
    "Pass",
    "PassError",
    "PassReport",
    "Pipeline",
    "RegistryError",
    "Report",
    "Result",
    "SampleError",
    "Skip",
    "SpecError",
    "Target",
    "UsageError",
    "compress",
    "load",
]

_HOME = {
    "Context": "context",
    "GraphoptError": "errors",
    "Model": "model",
    "ModelError": "errors",
    "Pass": "base",
    "PassError": "errors",
    "PassReport": "base",
    "Pipeline": "pipeline",
    "RegistryError": "errors",
    "Report": "report",
    "Result": "api",
    "SampleError": "errors",
    "Skip": "base",
    "SpecError": "errors",
    "Target": "targets",
    "UsageError": "errors",
    "compress": "api",
    "load": "api",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'graphopt' has no attribute '{name}'")
    value = getattr(import_module(f"graphopt.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
