"""Made-up samples, for when there are no real ones and the user asked for these."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any
from zlib import crc32

import numpy as np

from graphopt.errors import SampleError
from graphopt.model import Interface, Model, TensorSpec
from graphopt.samples.fit import Fit, is_fixed, names_a_size
from graphopt.samples.stream import Samples

_SIZE = 16  # of an open dimension
_IMAGE_SIZE = 64  # of an open dimension of an image; five halvings leave 2
_LARGEST_IMAGE = 512


def random_samples(
    interface: Interface,
    *,
    seed: int = 0,
    count: int = 8,
    optional: frozenset[str] = frozenset(),
    growth: int = 1,
    rows: int = 1,
) -> Samples:
    """Return made-up samples: floats are standard normal, integers and booleans 0 or 1, strings "a".

    Open dimensions get a size: 1 for a batch, that is a first axis or a symbol that says so; 64 for the other axes of
    an image (four axes of floats); else 16. A symbol has the same size wherever it occurs.

    Args:
        interface: The model's inputs.
        seed: Root of the randomness; sample number and input name make a stream of their own.
        count: Number of samples.
        optional: Inputs to leave out: they have a value already.
        growth: By how much sizes of open dimensions but batches are multiplied; images end at 512.
        rows: Size of a symbol that is a first axis and does not say that it is a batch.

    Raises:
        SampleError: An input is no tensor or does not state how many axes it has.
    """
    specs = [spec for spec in interface.inputs if spec.name not in optional]
    return Samples(RandomReader(specs, seed, count, growth, rows), Fit(interface, optional), "random", is_random=True)


class RandomReader:
    """Samples that are made when they are read, the same each time."""

    def __init__(self, specs: Sequence[TensorSpec], seed: int, count: int, growth: int, rows: int) -> None:
        shapes = _shapes(specs, growth, rows)
        self._types = {spec.name: (_dtype(spec), shape) for spec, shape in zip(specs, shapes, strict=True)}
        self._seed = seed
        self._count = count

    def __len__(self) -> int:
        """Return the number of samples."""
        return self._count

    def read(self, wanted: Sequence[int] | None) -> Iterator[tuple[str, dict[str, Any]]]:
        """Yield samples."""
        for index in range(self._count) if wanted is None else wanted:
            feeds = {
                name: _values(np.random.default_rng([self._seed, index, crc32(name.encode())]), dtype, shape)
                for name, (dtype, shape) in self._types.items()
            }
            yield f"random sample {index}", feeds


def _dtype(spec: TensorSpec) -> np.dtype:
    if spec.dtype is None or spec.shape is None:
        what = "is no tensor" if spec.dtype is None else "does not state how many axes it has"
        raise SampleError(
            f"input '{spec.name}' {what}, so no random values can be made for it; give samples of your own"
        )
    return spec.dtype


def _shapes(specs: Sequence[TensorSpec], growth: int, rows: int) -> list[tuple[int, ...]]:
    """Choose sizes; a symbol that is a first axis anywhere is a batch everywhere."""
    sizes: dict[str, int] = {}
    for spec in specs:
        for axis, size in enumerate(spec.shape or ()):
            if isinstance(size, str) and names_a_size(size) and (axis == 0 or "batch" in size.lower()):
                sizes[size] = 1 if "batch" in size.lower() else rows
    return [_shape(spec, sizes, growth) for spec in specs]


def _shape(spec: TensorSpec, sizes: dict[str, int], growth: int) -> tuple[int, ...]:
    shape = []
    image, other = min(_IMAGE_SIZE * growth, _LARGEST_IMAGE), _SIZE * growth
    wanted = spec.shape or ()
    is_image = len(wanted) == 4 and spec.dtype is not None and spec.dtype.kind == "f"
    for axis, size in enumerate(wanted):
        choice = 1 if axis == 0 else image if is_image and axis > 1 else other
        if isinstance(size, int) and is_fixed(size):
            choice = size
        elif isinstance(size, str) and names_a_size(size):
            choice = sizes.setdefault(size, choice)
        shape.append(choice)
    return tuple(shape)


def _values(rng: np.random.Generator, dtype: np.dtype, shape: tuple[int, ...]) -> np.ndarray:
    if dtype.kind == "O":
        return np.full(shape, "a", object)
    if np.issubdtype(dtype, np.bool_) or np.issubdtype(dtype, np.integer):
        return rng.integers(0, 2, shape).astype(dtype)
    return rng.standard_normal(shape).astype(dtype)


def example(model: Model, interface: Interface | None = None) -> Mapping[str, Any] | None:
    """Return inputs with small sizes for open dimensions, so that MACs can be counted; None where none can be made.

    Args:
        model: What they are for.
        interface: Its inputs with sizes that are wanted; by default as the model has them.
    """
    optional = frozenset(model.graph.defaults)
    try:
        return next(iter(random_samples(interface or model.interface, count=1, optional=optional)))
    except SampleError:
        return None
