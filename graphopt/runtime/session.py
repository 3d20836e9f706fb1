"""Sessions of ONNX Runtime, opened in bounded memory; what goes wrong in them is told in one line."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import onnx
import onnxruntime as ort

from graphopt.errors import ModelError
from graphopt.model import Model
from graphopt.reader import load
from graphopt.runtime.hazards import hazard
from graphopt.runtime.lending import lend
from graphopt.runtime.messages import RUNTIME_ERRORS, one_line
from graphopt.runtime.values import is_foreign, run_foreign

if TYPE_CHECKING:
    from graphopt.samples import Feeds

CPU = "CPUExecutionProvider"
Outputs = dict[str, Any]
"""By output name an array, or, for outputs that are no tensors, a list, a dict or None."""

_Held = tempfile.TemporaryDirectory[str] | Mapping[str, ort.OrtValue] | None
"""What must last as long as a session: a folder with its files, or the weights that it was lent."""

_IN_MEMORY = 2**24  # bytes; larger models are not copied into one message
_DATA_FOLDER = "session.model_external_initializers_file_folder_path"
_NO_PREPACKING = "session.disable_prepacking"  # would copy the weights, which pays off only after some runs
_SILENT = 4  # severity: only what ends the process; everything else comes as an exception as well
_LEVELS = {False: ort.GraphOptimizationLevel.ORT_DISABLE_ALL, True: ort.GraphOptimizationLevel.ORT_ENABLE_ALL}


def available_providers() -> tuple[str, ...]:
    """Return the execution providers of the installed ONNX Runtime."""
    return tuple(ort.get_available_providers())


class Session:
    """A model ready to run; a context manager, or close it.

    Attributes:
        inputs: Names of the inputs that must be fed; initializers that may be overridden are not among them.
        outputs: Names of the outputs.
        provider: Execution provider that it runs on; what that cannot run is run on the CPU.
    """

    def __init__(self, session: Any, provider: str, held: _Held = None) -> None:
        self._session = session
        self._held = held
        self._types = {item.name: item for item in session.get_inputs()}
        self._foreign = any(is_foreign(item.type) for item in (*session.get_inputs(), *session.get_outputs()))
        self.provider = provider
        self.inputs = tuple(self._types)
        self.outputs = tuple(item.name for item in session.get_outputs())

    def run(self, feeds: Feeds, outputs: Sequence[str] | None = None) -> Outputs:
        """Run the model once.

        Args:
            feeds: One array (or, for other inputs, list or None) by input name.
            outputs: Names of the outputs that are wanted; all by default.

        Returns:
            The outputs by name, in the order asked for.

        Raises:
            ModelError: The feeds do not fit, or a node failed.
        """
        if self._session is None:
            raise RuntimeError("the session is closed")
        names = self.outputs if outputs is None else tuple(outputs)
        try:
            run = run_foreign if self._foreign else _run
            return dict(zip(names, run(self._session, names, dict(feeds)), strict=True))
        except RUNTIME_ERRORS as error:
            raise ModelError(self._misfit(feeds) or f"ONNX Runtime cannot run the model: {one_line(error)}") from error

    def _misfit(self, feeds: Feeds) -> str:
        """Return in what way the feeds do not fit the inputs, or an empty text if that is not it."""
        missing = [name for name in self.inputs if name not in feeds]
        if missing:
            return f"input '{missing[0]}' is not fed; the model needs {', '.join(self.inputs)}"
        known = {*self.inputs, *(item.name for item in self._session.get_overridable_initializers())}
        unknown = [name for name in feeds if name not in known]
        if unknown:
            return f"the model has no input '{unknown[0]}'; it has {', '.join(self.inputs)}"
        for name, value in feeds.items():
            if name in self._types and isinstance(value, np.ndarray) and not _fits(value, self._types[name].shape):
                wanted = ", ".join("?" if size is None else str(size) for size in self._types[name].shape)
                return f"input '{name}' has shape {list(value.shape)}; the model takes [{wanted}]"
        return ""

    def close(self) -> None:
        """Free the model and its temporary files; harmless when done twice."""
        self._session = None
        if isinstance(self._held, tempfile.TemporaryDirectory):
            self._held.cleanup()
        self._held = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def open_session(
    model: Model | onnx.ModelProto | Path, *, provider: str = CPU, threads: int = 1, optimize: bool = True
) -> Session:
    """Open a model in ONNX Runtime.

    Small models are handed over as bytes. Larger ones are written to a temporary folder with their weights beside
    them, so that at no time two copies of the weights are in memory; the folder goes when the session is closed.
    Without optimizations the weights stay where they are instead, in their file or in memory, which is quicker; they
    are not packed either, so that it opens at once and runs more slowly.

    Args:
        model: A model, a proto without external data, or the path of a model file.
        provider: Execution provider.
        threads: Threads inside an operator; 0 leaves the number to ONNX Runtime.
        optimize: Whether its graph optimizations are on.

    Raises:
        ModelError: ONNX Runtime does not take the model, or the provider is not installed or does not start.
    """
    return _open(model, provider, _options(threads, optimize))


def optimized_model(model: Model | onnx.ModelProto | Path, *, provider: str = CPU, threads: int = 1) -> onnx.ModelProto:
    """Return the graph that ONNX Runtime really runs on this machine: fused, and with its internal operators.

    Weights that it keeps outside of the file are not loaded: the result is to look at, not to run.

    Raises:
        ModelError: As `open_session`.
    """
    with tempfile.TemporaryDirectory(prefix="graphopt-") as folder:
        path = Path(folder) / "optimized.onnx"
        options = _options(threads, optimize=True)
        options.optimized_model_filepath = str(path)
        options.add_session_config_entry("session.optimized_model_external_initializers_file_name", "optimized.data")
        options.add_session_config_entry(_NO_PREPACKING, "1")
        _open(model, provider, options).close()
        return onnx.load(path, load_external_data=False)


def op_counts(proto: onnx.ModelProto) -> Counter[str]:
    """Return how often each operator occurs, bodies included; as ``domain:Op`` where it is not ONNX's own."""
    counts: Counter[str] = Counter()
    graphs = [proto.graph]
    while graphs:
        for node in graphs.pop().node:
            counts[f"{node.domain}:{node.op_type}" if node.domain not in ("", "ai.onnx") else node.op_type] += 1
            for attribute in node.attribute:
                graphs.extend([attribute.g] if attribute.HasField("g") else attribute.graphs)
    return counts


def _run(session: Any, names: Sequence[str], feeds: dict[str, Any]) -> list[Any]:
    outputs: list[Any] = session.run(list(names), feeds)
    return outputs


def _fits(value: np.ndarray, shape: Sequence[Any]) -> bool:
    """Whether the shape is allowed; symbolic names and None take any size."""
    return len(shape) == value.ndim and all(
        not isinstance(wanted, int) or wanted == size for wanted, size in zip(shape, value.shape, strict=True)
    )


def _options(threads: int, optimize: bool) -> Any:
    options = ort.SessionOptions()
    options.graph_optimization_level = _LEVELS[optimize]
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = _SILENT
    return options


def _open(model: Model | onnx.ModelProto | Path, provider: str, options: Any) -> Session:
    if provider not in available_providers():
        known = ", ".join(available_providers())
        raise ModelError(f"the installed onnxruntime has no {provider}; it has {known}")
    if options.graph_optimization_level != _LEVELS[False]:
        refuse_hazards(model)
    if isinstance(model, Path):
        return _create(str(model), provider, options, None)
    if isinstance(model, Model) and model.weight_bytes <= _IN_MEMORY:
        model = model.to_proto()
    if isinstance(model, onnx.ModelProto):
        if model.ByteSize() <= _IN_MEMORY:
            return _create(model.SerializeToString(), provider, options, None)
        model = Model.from_proto(model)
    if options.graph_optimization_level == _LEVELS[False]:
        loan = lend(model)
        if loan.rest.ByteSize() <= _IN_MEMORY:
            options.add_external_initializers(list(loan.values), list(loan.values.values()))
            options.add_session_config_entry(_NO_PREPACKING, "1")
            if loan.folder is not None:
                options.add_session_config_entry(_DATA_FOLDER, str(loan.folder))
            return _create(loan.rest.SerializeToString(), provider, options, loan.values)
    folder = tempfile.TemporaryDirectory(prefix="graphopt-")
    try:
        path = Path(folder.name) / "model.onnx"
        model.write_scratch(path)
        return _create(str(path), provider, options, folder)
    except ModelError:
        folder.cleanup()
        raise


def refuse_hazards(model: Model | onnx.ModelProto | Path) -> None:
    """Refuse what would end the process once ONNX Runtime optimizes it.

    Raises:
        ModelError: It is such a model.
    """
    try:
        if isinstance(model, Path):
            model = load(model)
        elif isinstance(model, onnx.ModelProto):
            model = Model.from_proto(model)
    except ModelError:
        return  # ONNX Runtime says itself what is wrong with it
    found = hazard(model.graph)
    if found:
        raise ModelError(found)


def _create(source: str | bytes, provider: str, options: Any, held: _Held) -> Session:
    providers = [provider] if provider == CPU else [provider, CPU]
    try:
        session = ort.InferenceSession(source, options, providers=providers, enable_fallback=0)
    except RUNTIME_ERRORS as error:
        raise ModelError(f"ONNX Runtime does not take the model: {one_line(error)}") from error
    if provider not in session.get_providers():
        raise ModelError(f"{provider} is installed but does not start here; its libraries or its device are missing")
    return Session(session, provider, held)
