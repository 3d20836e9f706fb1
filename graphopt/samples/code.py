"""Samples that the user's own code gives."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from contextlib import contextmanager
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np

from graphopt.errors import GraphoptError, SampleError, UsageError
from graphopt.plugins import load_function
from graphopt.samples.fit import Fit
from graphopt.samples.stacks import ArrayStack, StackReader


class CodeReader:
    """Samples from a function, which is called afresh each time they are read.

    The function returns an iterable of feeds, or is a generator of them. The working folder at the time of opening is
    importable while its code runs, and only then.
    """

    def __init__(self, function: Callable[[], Any], name: str, fit: Fit) -> None:
        self._function = function
        self._name = name
        self._fit = fit
        self._folder = str(Path.cwd())
        self._count: int | None = None
        self._digests: list[bytes] = []

    def __len__(self) -> int:
        """Return the number of samples, which takes one pass over them."""
        if self._count is None:
            self._count = sum(1 for _ in self.read(None))
        return self._count

    def read(self, wanted: Sequence[int] | None) -> Iterator[tuple[str, dict[str, Any]]]:
        """Yield samples; those not wanted are made and dropped."""
        last = max(wanted) if wanted else None
        for index, feeds in enumerate(self._items()):
            if wanted is None or index in wanted:
                yield f"sample {index} of '{self._name}'", feeds
            if index == last:
                return

    def _items(self) -> Iterator[dict[str, Any]]:
        items = self._run(lambda: _iterator(self._function(), self._fit, f"'{self._name}'"))
        count = 0
        while (feeds := self._run(lambda: next(items, _END))) is not _END:
            if not isinstance(feeds, Mapping):
                what = f"sample {count} of '{self._name}' is of type {type(feeds).__name__}"
                raise SampleError(f"{what}; give a mapping of input names to arrays")
            self._compare(count, feeds)
            count += 1
            yield dict(feeds)
        if count != len(self._digests) or self._count not in (None, count):
            before = max(len(self._digests), self._count or 0)
            raise SampleError(f"'{self._name}' gave {before} samples before and {count} now; they must stay the same")
        self._count = count

    def _compare(self, index: int, feeds: Mapping[str, Any]) -> None:
        """Refuse a sample that is not what it was when it was read before: figures would compare unlike things."""
        digest = _digest(feeds)
        if index == len(self._digests):
            self._digests.append(digest)
        elif digest != self._digests[index]:
            raise SampleError(
                f"sample {index} of '{self._name}' changed between two readings; it must give the same samples each "
                "time (seed its randomness, do not shuffle)"
            )

    def _run(self, step: Callable[[], Any]) -> Any:
        with _importable(self._folder):
            try:
                return step()
            except GraphoptError:
                raise
            except (Exception, SystemExit) as error:  # the boundary to the user's own code
                reason = " ".join(str(error).split())
                raise SampleError(f"'{self._name}' failed: {type(error).__name__}: {reason}") from error


_END = object()


def _digest(feeds: Mapping[str, Any]) -> bytes:
    digest = blake2b(digest_size=16)
    for name in sorted(feeds, key=str):
        digest.update(repr(name).encode())
        for part in _parts(feeds[name]):
            digest.update(part)
    return digest.digest()


def _parts(value: Any) -> Iterator[bytes]:
    """Yield what makes a value what it is, arrays by their bytes."""
    if isinstance(value, (list, tuple)):
        yield str(len(value)).encode()
        for item in value:
            yield from _parts(item)
    elif isinstance(value, np.ndarray) and value.dtype != object:
        yield repr((value.dtype, value.shape)).encode()
        yield value.tobytes()
    else:
        yield repr(value.tolist() if isinstance(value, np.ndarray) else value).encode()


def load_code(text: str, fit: Fit) -> CodeReader:
    """Return a reader for ``module:function``.

    Raises:
        SampleError: There is no such module or function.
    """
    try:
        with _importable(str(Path.cwd())):
            function = load_function(text, "samples")
    except UsageError as error:
        raise SampleError(str(error)) from error
    return CodeReader(function, text, fit)


def open_mapping(arrays: Mapping[str, Any], fit: Fit, where: str) -> StackReader:
    """Return a reader for stacked arrays by input name."""
    return StackReader({name: ArrayStack(np.asarray(value)) for name, value in arrays.items()}, fit, where)


class IterableReader(CodeReader):
    """Samples from an iterable that starts afresh each time it is iterated over."""

    def __init__(self, items: Iterable[Any], name: str, fit: Fit) -> None:
        super().__init__(lambda: items, name, fit)
        if isinstance(items, Sized):
            self._count = len(items)


def _iterator(value: Any, fit: Fit, where: str) -> Iterator[Any]:
    if isinstance(value, Mapping):
        return (feeds for _, feeds in open_mapping(value, fit, where).read(None))
    if not isinstance(value, Iterable) and not hasattr(value, "__getitem__"):
        raise SampleError(f"{where} returned a {type(value).__name__}; it must return or yield mappings")
    return iter(value)


@contextmanager
def _importable(folder: str) -> Iterator[None]:
    """Have modules of a folder found first, as `python -m` does, for a moment."""
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        if folder in sys.path:
            sys.path.remove(folder)
