"""Which kind of source it is that the user named."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from graphopt.errors import SampleError
from graphopt.model import Interface
from graphopt.samples.code import CodeReader, IterableReader, load_code, open_mapping
from graphopt.samples.files import FORMS, only_input, open_path
from graphopt.samples.fit import Fit
from graphopt.samples.generated import random_samples
from graphopt.samples.stream import Reader, Samples


def open_samples(
    source: Any, interface: Interface, *, seed: int = 0, optional: frozenset[str] = frozenset()
) -> Samples:
    """Open samples and hold the first of them against the model's inputs; the others are checked as they are read.

    Args:
        source: A path: an ``.npz`` whose arrays are named like the inputs and stacked along their first axis, an
            ``.npy`` for a model with one input, a folder with one ``.npz`` a sample, or a folder of ONNX's
            ``test_data_set_*``. Or ``"module:function"``, or ``"random"``. In Python also a mapping of input names to
            stacked arrays, an array for a model with one input, an iterable of feeds that can be iterated over again,
            or a function that returns one.
        interface: The model's inputs.
        seed: Root of the randomness of random samples.
        optional: Names of inputs that may be missing, since the model has a value for them.

    Raises:
        SampleError: There are no samples, or they do not fit the model.
    """
    fit = Fit(interface, optional)
    if isinstance(source, Samples):
        samples = source.fitted(fit)
    elif isinstance(source, (str, Path)):
        if str(source) == "random":
            return random_samples(interface, seed=seed, optional=optional)
        samples = Samples(_open_text(str(source), fit), fit, str(source))
    else:
        name = _name(source)
        samples = Samples(_open_object(source, name, fit), fit, name)
    if next(iter(samples), None) is None:
        raise SampleError(f"'{samples.source}' holds no samples")
    return samples


def _open_text(text: str, fit: Fit) -> Reader:
    path = Path(text)
    if not path.exists() and _looks_like_code(text):
        return load_code(text, fit)
    if not path.exists():
        raise SampleError(f"'{text}': there is no such file or folder; samples are {FORMS}, module:function, or random")
    return open_path(path, fit)


def _looks_like_code(text: str) -> bool:
    module, colon, function = text.partition(":")
    return bool(colon) and all(part.isidentifier() for part in (*module.split("."), *function.split(".")))


def _open_object(source: Any, name: str, fit: Fit) -> Reader:
    if isinstance(source, Mapping):
        return open_mapping(source, fit, name)
    if isinstance(source, np.ndarray):
        return open_mapping({only_input(fit, name): source}, fit, name)
    if isinstance(source, Iterator):
        raise SampleError(
            f"a {type(source).__name__} can be read only once; give a list, or a function that returns it"
        )
    if callable(source):
        return CodeReader(source, name, fit)
    if isinstance(source, Iterable) or hasattr(source, "__getitem__"):
        return IterableReader(source, name, fit)
    raise SampleError(f"samples cannot come from a {type(source).__name__}; give {FORMS}, an iterable or a function")


def _name(source: Any) -> str:
    if callable(source) and hasattr(source, "__qualname__"):
        return f"{source.__module__}:{source.__qualname__}"
    return f"{type(source).__name__} in memory"
