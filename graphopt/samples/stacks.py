"""Arrays that are stacked along their first axis, read a slice at a time."""

from __future__ import annotations

import shutil
import tempfile
import weakref
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import IO, Any, Protocol

import numpy as np
from numpy.lib import format as npy

from graphopt.errors import SampleError
from graphopt.model import TensorSpec
from graphopt.samples.fit import Fit, is_fixed, shape_text

_INFLATED = 2**30  # bytes of a compressed member that are kept in a temporary file, to be read again
UNREADABLE = (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError)


class Stack(Protocol):
    """An array of which slices along the first axis can be had."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the whole array."""
        ...

    def blocks(self, starts: Sequence[int], length: int) -> Iterator[np.ndarray]:
        """Yield ``array[start : start + length]`` for each start, in ascending order; the array itself without axes."""
        ...


@dataclass(frozen=True)
class ArrayStack:
    """A stack in memory, or mapped into it."""

    array: np.ndarray

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the whole array."""
        return self.array.shape

    def blocks(self, starts: Sequence[int], length: int) -> Iterator[np.ndarray]:
        """Yield copies, since a mapped array must not leave as one."""
        for start in starts:
            yield np.array(self.array[start : start + length] if self.array.ndim else self.array, subok=False)


@dataclass
class ZippedStack:
    """A member of an .npz file, which is decompressed as it is read.

    A run reads its samples many times: from the second time on a compressed member is read from a temporary file, which
    takes a tenth of the time.
    """

    path: Path
    member: str
    shape: tuple[int, ...]
    dtype: np.dtype
    _streamed: bool = field(default=False, init=False)
    _inflated: IO[bytes] | None = field(default=None, init=False)

    def blocks(self, starts: Sequence[int], length: int) -> Iterator[np.ndarray]:
        """Yield slices, which are read in one go through the member."""
        if self._inflated is None and self._streamed:
            self._inflate()
        if self._inflated is not None:
            yield from self._slices(self._inflated, 0, starts, length)
            return
        self._streamed = True
        with zipfile.ZipFile(self.path) as archive, archive.open(self.member) as stream:
            _read_header(stream)
            yield from self._slices(stream, stream.tell(), starts, length)

    def _slices(self, stream: IO[bytes], begin: int, starts: Sequence[int], length: int) -> Iterator[np.ndarray]:
        shape = (length, *self.shape[1:]) if self.shape else ()
        row = prod(self.shape[1:]) * self.dtype.itemsize if self.shape else 0  # all read the one value there is
        for start in starts:
            stream.seek(begin + start * row)  # another reading may be under way
            data = stream.read(prod(shape) * self.dtype.itemsize)
            yield np.frombuffer(data, self.dtype).reshape(shape)

    def _inflate(self) -> None:
        """Keep the values in a temporary file, unless they are too many or are not compressed anyway."""
        with zipfile.ZipFile(self.path) as archive:
            info = archive.getinfo(self.member)
            if info.compress_type == zipfile.ZIP_STORED or info.file_size > _INFLATED:
                return
            kept = tempfile.TemporaryFile()  # noqa: SIM115
            weakref.finalize(self, kept.close)
            with archive.open(info) as stream:
                _read_header(stream)
                shutil.copyfileobj(stream, kept, 2**20)
        self._inflated = kept


class StackReader:
    """Samples that are slices of stacked arrays, one array an input.

    Where the input has as many axes as its array, a sample keeps a first axis: of size 1, or of the fixed size that
    the input states. Where the input has one axis less, a sample has no such axis. An array without any axis belongs
    to every sample.

    Raises:
        SampleError: The arrays do not fit the inputs, or hold different numbers of samples.
    """

    def __init__(self, stacks: Mapping[str, Stack], fit: Fit, where: str) -> None:
        fit.check_names(stacks, where)
        self._stacks = stacks
        self._where = where
        self._cuts = {name: _cut(fit.specs[name], stack.shape, where) for name, stack in stacks.items()}
        counts = {name: stack.shape[0] // self._cuts[name].length for name, stack in stacks.items() if stack.shape}
        if len(set(counts.values())) > 1:
            (first, one), (second, other) = _differing(counts)
            raise SampleError(
                f"{where}: '{first}' holds {one} samples and '{second}' {other}; they must be equally many"
            )
        self._count = next(iter(counts.values()), 1)

    def __len__(self) -> int:
        """Return the number of samples."""
        return self._count

    def read(self, wanted: Sequence[int] | None) -> Iterator[tuple[str, dict[str, Any]]]:
        """Yield samples; all arrays are read side by side."""
        indices = range(self._count) if wanted is None else wanted
        streams = [
            self._stacks[name].blocks([index * cut.length for index in indices], cut.length)
            for name, cut in self._cuts.items()
        ]
        for index in indices:
            try:
                blocks = [next(stream) for stream in streams]
            except UNREADABLE as error:
                raise unreadable(self._where, error) from error
            named = zip(self._cuts.items(), blocks, strict=True)
            yield f"sample {index} of {self._where}", {name: cut.apply(block) for (name, cut), block in named}


@dataclass(frozen=True)
class _Cut:
    """How samples are cut from a stack: `length` slices each, and whether the stacking axis goes."""

    length: int
    drop: bool

    def apply(self, block: np.ndarray) -> np.ndarray:
        return block[0] if self.drop else block


def _cut(spec: TensorSpec, shape: tuple[int, ...], where: str) -> _Cut:
    if spec.shape is None or not shape:
        return _Cut(1, drop=False)
    if len(shape) == len(spec.shape) + 1:
        return _Cut(1, drop=True)
    batch = spec.shape[0] if spec.shape and is_fixed(spec.shape[0]) else 1
    length = max(int(batch or 1), 1)
    if len(shape) != len(spec.shape):
        whole = shape_text(("N", *spec.shape))
        same = f" or {shape_text(('N', *spec.shape[1:]))}" if spec.shape else ""
        raise SampleError(
            f"{where}: input '{spec.name}' has shape {shape_text(shape)}; the model takes {shape_text(spec.shape)}, "
            f"so N samples stacked along the first axis have shape {whole}{same}"
        )
    if shape[0] % length:
        raise SampleError(
            f"{where}: input '{spec.name}' has {shape[0]} slices; the model takes {length} at a time: "
            f"give a multiple of {length}"
        )
    return _Cut(length, drop=False)


def _differing(counts: Mapping[str, int]) -> tuple[tuple[str, int], tuple[str, int]]:
    first = next(iter(counts.items()))
    return first, next(item for item in counts.items() if item[1] != first[1])


def unreadable(where: str, error: Exception) -> SampleError:
    """Return the error for a file that is damaged or no array file, in one line."""
    if isinstance(error, FileNotFoundError):
        return SampleError(f"{where}: there is no such file")
    reason = error.strerror if isinstance(error, OSError) and error.strerror else " ".join(str(error).split())
    if "pickle" in reason or "Python objects" in reason:
        reason = "it holds pickled Python objects, which are not read; save plain arrays"
    return SampleError(f"{where} cannot be read: {reason or type(error).__name__}")


def open_npz(path: Path, where: str) -> dict[str, Stack]:
    """Return the arrays of an .npz file by name; only their headers are read.

    Raises:
        SampleError: It is no .npz file, or damaged.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            return {
                info.filename.removesuffix(".npy"): _open_member(path, archive, info) for info in archive.infolist()
            }
    except UNREADABLE as error:
        raise unreadable(where, error) from error


def _open_member(path: Path, archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> Stack:
    with archive.open(info) as stream:
        shape, columns, dtype = _read_header(stream)
        if dtype.hasobject:
            raise ValueError("Python objects")
        if stream.tell() + prod(shape) * dtype.itemsize != info.file_size:
            raise ValueError(f"array '{info.filename}' is truncated")
    if columns and len(shape) > 1:  # in Fortran's order a slice is spread over the whole member
        with np.load(path, allow_pickle=False) as arrays:
            return ArrayStack(arrays[info.filename.removesuffix(".npy")])
    return ZippedStack(path, info.filename, shape, dtype)


_HEADERS: dict[tuple[int, int], Callable[[IO[bytes]], tuple[tuple[int, ...], bool, np.dtype]]] = {
    (1, 0): npy.read_array_header_1_0,
    (2, 0): npy.read_array_header_2_0,
}


def _read_header(stream: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Return shape, whether it is in Fortran's order, and type."""
    version = npy.read_magic(stream)
    if version not in _HEADERS:
        raise ValueError(f"version {version} of the array format is not supported")
    return _HEADERS[version](stream)
