"""ONNX Runtime's own record of what it does."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnxruntime as ort

from graphopt.errors import ModelError
from graphopt.runtime.messages import RUNTIME_ERRORS, one_line
from graphopt.runtime.session import CPU, Session

if TYPE_CHECKING:
    from graphopt.model import Model

_SILENT = 4  # severity: only what ends the process; everything else comes as an exception as well


def record(
    model: Model, use: Callable[[Session], None], *, optimize: bool = True, threads: int = 1
) -> list[dict[str, Any]]:
    """Open a model on the CPU, use it, and return the events that ONNX Runtime recorded.

    Args:
        model: Stays as it is.
        use: Runs the session.
        optimize: Whether the runtime's graph optimizations are on; without them the shapes of weights are told too.
        threads: Threads inside an operator.

    Raises:
        ModelError: ONNX Runtime does not take the model.
    """
    with tempfile.TemporaryDirectory(prefix="graphopt-") as folder:
        path = Path(folder) / "model.onnx"
        model.write_scratch(path)
        options = ort.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        options.log_severity_level = _SILENT
        if not optimize:
            options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
            options.add_session_config_entry("session.disable_prepacking", "1")  # packed weights are not recorded
        options.enable_profiling = True
        options.profile_file_prefix = str(Path(folder) / "profile")
        try:
            runtime = ort.InferenceSession(str(path), options, providers=[CPU])
        except RUNTIME_ERRORS as error:
            raise ModelError(f"ONNX Runtime does not take the model: {one_line(error)}") from error
        with Session(runtime, CPU) as session:
            try:
                use(session)
            finally:
                written = Path(runtime.end_profiling())
        events: list[dict[str, Any]] = json.loads(written.read_text(encoding="utf-8"))
        return events
