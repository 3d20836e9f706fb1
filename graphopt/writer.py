"""Writing model files: atomic, streamed, the same bytes every time."""

from __future__ import annotations

import mmap
import os
import re
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

import numpy as np
import onnx
from google.protobuf.message import DecodeError

from graphopt.compressed import compressed, is_compressed
from graphopt.errors import ModelError
from graphopt.ir.exporter import PayloadWriter
from graphopt.ir.payload import StoredTensor, tensors_of
from graphopt.ir.tensors import elsewhere, inline
from graphopt.ir.wire import Pieces, raw_chunks, serialized

_THRESHOLD = 1024  # bytes; smaller weights stay in the model file, where shape inference can see them
_ALIGNMENT = 64  # bytes: a cache line, the widest vector; whole pages would let a file outgrow its source


@dataclass(frozen=True)
class SavedModel:
    """The files of a saved model.

    Attributes:
        path: The model file.
        data_path: The file with its external data, or None.
        nbytes: Bytes of both.
        left_over: Files with weights of the model that was replaced. They have names that others may use too, so
            they stay.
    """

    path: Path
    data_path: Path | None
    nbytes: int
    left_over: tuple[Path, ...] = ()


def save_model(export: Callable[[PayloadWriter], onnx.ModelProto], path: Path, external_data: bool) -> SavedModel:
    """Write a model file and, if asked, its external data.

    The data file gets a name that no file has, the model file is replaced last, and only then the data file of the
    replaced model is removed, if it is named after the model: a crash at any point leaves one complete model.

    Args:
        export: Makes the proto, given where weights go.
        path: Model file; the whole of it is compressed if its name ends in `.zst`.
        external_data: Whether weights of a kilobyte and more go to `NAME.data` beside it.

    Raises:
        ModelError: The folder is missing, the disk is full, or the like.
    """
    try:
        if path.is_dir():
            raise ModelError(f"cannot write '{path}': it is a folder")
        if is_compressed(path) and external_data:
            raise ModelError(f"cannot write '{path}': a compressed model is one file, without external data")
        path = _behind_link(path, external_data)
        outdated = _data_files(path)
        data_path = _free_data_path(path) if external_data else None
        saved = _save_pair(export, path, data_path) if data_path is not None else _save_single(export, path)
        own = [file for file in outdated if _is_named_after(file, path)]
        for file in own:
            file.unlink(missing_ok=True)
    except OSError as error:
        raise ModelError(f"cannot write '{path}': {error.strerror or error}") from error
    return replace(saved, left_over=tuple(file for file in outdated if file not in own and file.is_file()))


def write_scratch(export: Callable[[PayloadWriter], onnx.ModelProto], path: Path) -> None:
    """Write a model with external data that only this process reads: neither atomic nor brought to the disk.

    Args:
        export: Makes the proto, given where weights go.
        path: Model file in a folder of its own; the data lie in `NAME.data` beside it.

    Raises:
        ModelError: The disk is full, or the like.
    """
    data_path = path.with_name(f"{path.name}.data")
    try:
        with data_path.open("wb") as data_file, path.open("wb") as model_file:
            model_file.write(serialized(export(DataStream(data_file, data_path.name).write)))
    except OSError as error:
        raise ModelError(f"cannot write '{path}': {error.strerror or error}") from error


def _behind_link(path: Path, external_data: bool) -> Path:
    """Return the file that a link leads to. With data of its own the link is replaced: both must lie in one folder."""
    if not path.is_symlink():
        return path
    try:
        target = path.resolve()
    except RuntimeError as error:
        raise ModelError(f"cannot write '{path}': {error}") from error
    return path if external_data and target.parent != path.parent.resolve() else target


def _save_single(export: Callable[[PayloadWriter], onnx.ModelProto], path: Path) -> SavedModel:
    with _temporary(path) as (file, temporary):
        if is_compressed(path):
            file.write(compressed(b"".join(_whole(export))))
        else:
            file.writelines(_whole(export))
        _finish(file)
        os.replace(temporary, path)
    _flush_folder(path.parent)
    return SavedModel(path, None, path.stat().st_size)


def _whole(export: Callable[[PayloadWriter], onnx.ModelProto]) -> Iterator[bytes | memoryview]:
    """Yield a model file with all weights in it."""
    pieces = Pieces()
    return pieces.of(export(pieces.write))


def _save_pair(export: Callable[[PayloadWriter], onnx.ModelProto], path: Path, data_path: Path) -> SavedModel:
    with _temporary(path) as (data_file, data_temporary), _temporary(path) as (model_file, model_temporary):
        stream = DataStream(data_file, data_path.name)
        model_file.write(serialized(export(stream.write)))
        _finish(data_file)
        _finish(model_file)
        if stream.used == 0:
            os.replace(model_temporary, path)
            return SavedModel(path, None, path.stat().st_size)
        os.replace(data_temporary, data_path)
        try:
            _flush_folder(path.parent)
            os.replace(model_temporary, path)
        except BaseException:
            data_path.unlink(missing_ok=True)
            raise
    _flush_folder(path.parent)
    return SavedModel(path, data_path, path.stat().st_size + data_path.stat().st_size)


class DataStream:
    """Appends weights to the data file, aligned; a weight that several scopes hold is written once."""

    def __init__(self, file: BinaryIO, location: str) -> None:
        self._file = file
        self._location = location
        self._written: dict[int, tuple[int, int]] = {}
        self._kept: list[object] = []  # keeps the ids in `_written` from being used again
        self.used = 0

    def write(self, name: str, held: StoredTensor | np.ndarray) -> onnx.TensorProto:
        if held.nbytes < _THRESHOLD or held.dtype == object:
            return inline(name, held)
        if id(held) not in self._written:
            self._kept.append(held)
            self._written[id(held)] = self._append(held)
        offset, length = self._written[id(held)]
        return elsewhere(name, held, location=self._location, offset=offset, length=length)

    def _append(self, held: StoredTensor | np.ndarray) -> tuple[int, int]:
        offset = -(-self.used // _ALIGNMENT) * _ALIGNMENT
        self._file.write(bytes(offset - self.used))
        self.used = offset
        for chunk in raw_chunks(held):
            self._file.write(chunk)
            self.used += len(chunk)
        return offset, self.used - offset


@contextmanager
def _temporary(path: Path) -> Iterator[tuple[BinaryIO, Path]]:
    """Open a file beside `path` that is gone afterwards unless it was renamed."""
    mode = path.stat().st_mode & 0o777 if path.exists() else 0o666 & ~_umask()
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    temporary = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as file:
            temporary.chmod(mode)
            yield file, temporary
    finally:
        temporary.unlink(missing_ok=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _finish(file: BinaryIO) -> None:
    """Bring the bytes to the disk and close the file; some systems cannot rename an open one."""
    file.flush()
    os.fsync(file.fileno())
    file.close()


def _flush_folder(folder: Path) -> None:
    """Bring new names to the disk, where the system can."""
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _free_data_path(path: Path) -> Path:
    """Return `NAME.data`, or `NAME.1.data` and so on if that exists: the model in place may still need it."""
    candidate, number = path.with_name(f"{path.name}.data"), 0
    while candidate.exists():
        number += 1
        candidate = path.with_name(f"{path.name}.{number}.data")
    return candidate


def _data_files(path: Path) -> list[Path]:
    """Return the data files that the model there refers to: its replacement leaves them unused."""
    if not _mentions(path, b"location"):  # the key of every reference; the file is parsed only if it may have one
        return []
    previous = onnx.ModelProto()
    try:
        previous.ParseFromString(path.read_bytes())
    except (OSError, DecodeError):
        return []  # nothing that could refer to data
    tensors = (item for item in tensors_of(previous) if isinstance(item, onnx.TensorProto))
    locations = {entry.value for tensor in tensors for entry in tensor.external_data if entry.key == "location"}
    return [path.parent / location for location in sorted(locations)]


def _mentions(path: Path, word: bytes) -> bool:
    """Whether the word is anywhere in a file; no more of it is held than the system likes to."""
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            return content.find(word) >= 0
    except (OSError, ValueError):  # there is no such file, or it is empty
        return False


def _is_named_after(file: Path, model: Path) -> bool:
    """Whether a data file has one of the names that `save_model` gives those of a model."""
    pattern = re.escape(model.name) + r"(\.\d+)?\.data"
    return file.parent == model.parent and re.fullmatch(pattern, file.name) is not None
