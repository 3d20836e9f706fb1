"""Where a run of the command reads and writes: checked before any work, so that nothing is lost or left half done."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from graphopt.errors import ModelError, UsageError

if TYPE_CHECKING:
    from graphopt.model import Model


@dataclass(frozen=True)
class Files:
    """Where a run reads and writes.

    Attributes:
        model: The input.
        output: The compressed model.
        report: The JSON report, or None.
    """

    model: Path
    output: Path
    report: Path | None


def output_path(model: Path, output: Path | None, *, in_place: bool) -> Path:
    """Return where the result goes.

    Raises:
        UsageError: Both an output and in-place are given.
        ModelError: The model is a folder without a name, such as "." or "/".
    """
    if not model.name:
        raise ModelError(f"'{model}' is a folder; give the .onnx file in it")
    if in_place and output is not None:
        raise UsageError("--in-place and --output exclude each other")
    if in_place:
        return model
    if output is not None:
        return output
    name = model.name.removesuffix(".zst")
    return model.with_name(f"{name.removesuffix('.onnx')}.opt.onnx")


def check_files(files: Files, *, in_place: bool) -> None:
    """Refuse, before any work, what could not be written or would destroy an input.

    Raises:
        UsageError: The message names the file and what to do.
    """
    if not files.model.exists():
        raise ModelError(f"cannot read '{files.model}': no such file")
    _check_writable(files.output, "--output")
    if files.output.exists() and not files.output.is_file():  # an atomic write would put a file in a device's place
        raise UsageError(f"--output '{files.output}' is not a regular file")
    if not in_place and _is_same(files.output, files.model):
        raise UsageError(f"the output '{files.output}' is the input; to replace it say --in-place, without -o")
    if files.report is None:
        return
    _check_writable(files.report, "--report")
    for other, what in ((files.model, "input"), (files.output, "output")):
        if _is_same(files.report, other):
            raise UsageError(f"--report '{files.report}' is the {what} model")


def _check_writable(path: Path, what: str) -> None:
    if path.is_dir():
        raise UsageError(f"{what} '{path}' is a folder; give a file name")
    if _is_stream(path):
        return
    folder = path.resolve().parent if path.is_symlink() else path.parent
    if not folder.is_dir():
        raise UsageError(f"{what} '{path}': there is no folder '{folder}'")
    if not os.access(folder, os.W_OK):
        raise UsageError(f"{what} '{path}': the folder '{folder}' is not writable")


def _is_same(one: Path, other: Path) -> bool:
    """Whether two paths are one file, also through links; files that do not exist are compared by name."""
    if one.exists() and other.exists():
        return one.samefile(other)
    return one.resolve() == other.resolve()


def spare_weights(model: Model, files: Files) -> None:
    """Refuse to write over a file that the input keeps its weights in."""
    from graphopt.report.build import data_files

    for written in (files.output, files.report):
        for used in data_files(model):
            if written is not None and _is_same(written, used):
                raise UsageError(f"'{written}' holds weights of the input '{files.model}'; give another name")


def prove_writable(path: Path, text: str) -> None:
    """Find out whether a report fits on the disk before the model is written.

    Raises:
        ModelError: It does not.
    """
    if not _is_stream(path):
        target = path.resolve()
        probe = target.with_name(f".{target.name}.{os.getpid()}.probe")
        try:
            write_text(probe, text)
        finally:
            probe.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file: a stream as it is, else atomically; of a link, the file that it leads to.

    Raises:
        ModelError: It cannot be written.
    """
    try:
        if _is_stream(path):
            path.write_text(text, encoding="utf-8")
        else:
            _replace(path.resolve(), text)
    except OSError as error:
        raise ModelError(f"cannot write '{path}': {error.strerror or error}") from error


def _is_stream(path: Path) -> bool:
    """Whether a path is to be written into, not replaced: a pipe, a device, /dev/stdout even if it leads to a file."""
    system = any(path.absolute().is_relative_to(folder) for folder in ("/dev", "/proc"))
    return path.exists() and (system or not path.is_file())


def _replace(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
