"""Samples in files: .npz, .npy, and folders with a file a sample."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from graphopt.errors import SampleError
from graphopt.samples.fit import Fit, listed
from graphopt.samples.protos import read_data_set
from graphopt.samples.stacks import UNREADABLE, ArrayStack, StackReader, unreadable
from graphopt.samples.stacks import open_npz as open_npz_stacks
from graphopt.samples.stream import Reader

FORMS = (
    ".npz (arrays named like the inputs, stacked along their first axis), .npy (one input), "
    "a folder with one .npz a sample, or a folder of test_data_set_*"
)


def open_path(path: Path, fit: Fit) -> Reader:
    """Return a reader for a file or a folder.

    Raises:
        SampleError: It is not there, holds no samples, or is of another form.
    """
    where = f"'{path}'"
    if path.is_dir():
        return _open_folder(path, fit)
    if not path.exists():
        raise SampleError(f"{where}: there is no such file or folder")
    if path.suffix == ".npz":
        return StackReader(open_npz_stacks(path, where), fit, where)
    if path.suffix == ".npy":
        return StackReader({only_input(fit, where): ArrayStack(_load_npy(path, mapped=True))}, fit, where)
    raise SampleError(f"{where}: samples are {FORMS}")


def only_input(fit: Fit, where: str) -> str:
    """Return the name of the input that an array without a name is for.

    Raises:
        SampleError: The model needs several inputs.
    """
    if len(fit.required) == 1:
        return fit.required[0]
    if len(fit.specs) == 1:
        return next(iter(fit.specs))
    raise SampleError(
        f"{where}: one array does not do for the inputs {listed(fit.specs)}; give an .npz with these names"
    )


class FolderReader:
    """One sample a file (or folder), in natural order: 2 before 10."""

    def __init__(self, paths: Sequence[Path], load: Callable[[Path], dict[str, Any]]) -> None:
        self._paths = paths
        self._load = load

    def __len__(self) -> int:
        """Return the number of samples."""
        return len(self._paths)

    def read(self, wanted: Sequence[int] | None) -> Iterator[tuple[str, dict[str, Any]]]:
        """Yield samples."""
        for index in range(len(self._paths)) if wanted is None else wanted:
            yield f"'{self._paths[index]}'", self._load(self._paths[index])


def _open_folder(path: Path, fit: Fit) -> Reader:
    entries = sorted((entry for entry in path.iterdir() if not entry.name.startswith(".")), key=_natural)
    if any(entry.name.startswith("input_") and entry.suffix == ".pb" for entry in entries):
        return FolderReader([path], lambda folder: read_data_set(folder, fit))
    arrays = [entry for entry in entries if entry.suffix == ".npz"]
    if arrays:
        return FolderReader(arrays, _load_npz)
    single = [entry for entry in entries if entry.suffix == ".npy"]
    if single:
        name = only_input(fit, f"'{path}'")
        return FolderReader(single, lambda file: {name: _load_npy(file, mapped=False)})
    data_sets = [entry for entry in entries if entry.name.startswith("test_data_set") and entry.is_dir()]
    if data_sets:
        return FolderReader(data_sets, lambda folder: read_data_set(folder, fit))
    raise SampleError(f"'{path}' holds no samples; samples are {FORMS}")


def _natural(path: Path) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"([0-9]+)", path.name)]


def _load_npz(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:  # numpy leaves a damaged file open
            return dict(arrays)
    except UNREADABLE as error:
        raise unreadable(f"'{path}'", error) from error


def _load_npy(path: Path, *, mapped: bool) -> np.ndarray:
    try:
        array: np.ndarray = np.load(path, mmap_mode="r" if mapped else None, allow_pickle=False)
    except UNREADABLE as error:
        raise unreadable(f"'{path}'", error) from error
    return array
