"""Whether feeds fit the inputs of a model; what does not fit is told in one line."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import onnx

from graphopt.errors import SampleError
from graphopt.model import Interface, TensorSpec
from graphopt.shapes import VAGUE_SYMBOLS

Feeds = Mapping[str, Any]
"""By input name an array; for inputs that are no tensors a list, a dict or None."""


class Fit:
    """The inputs that feeds are held against.

    Attributes:
        specs: The model's inputs by name, in order.
        optional: Names of inputs that may be missing.
    """

    def __init__(self, interface: Interface, optional: frozenset[str] = frozenset()) -> None:
        self.specs = {spec.name: spec for spec in interface.inputs}
        self.optional = optional

    @property
    def required(self) -> list[str]:
        """Names of the inputs that every sample must have."""
        return [name for name in self.specs if name not in self.optional]

    def check(self, feeds: Mapping[str, Any], where: str) -> Feeds:
        """Return the feeds in the order of the inputs, each value as an array of the input's type.

        Args:
            feeds: One sample.
            where: What the sample is called in messages.

        Raises:
            SampleError: A name is unknown or missing, or a type or a shape is not the input's.
        """
        self.check_names(feeds, where)
        sizes: dict[str, tuple[int, str]] = {}
        checked: dict[str, Any] = {}
        for name, spec in self.specs.items():
            if name in feeds:
                checked[name] = _value(spec, feeds[name], where)
                if spec.dtype is not None:
                    _check_shape(spec, checked[name].shape, sizes, where)
        return checked

    def check_names(self, names: Collection[str], where: str) -> None:
        """Raise SampleError unless every required input is there, and nothing else."""
        unknown = [str(name) for name in names if name not in self.specs]
        if unknown:
            raise SampleError(f"{where}: the model has no input '{unknown[0]}'; its inputs are {listed(self.specs)}")
        missing = [name for name in self.required if name not in names]
        if missing:
            raise SampleError(
                f"{where}: input '{missing[0]}' is missing; found {listed(names)}, needed {listed(self.required)}"
            )


def listed(names: Collection[str]) -> str:
    """Return names for a message, the first eight of them."""
    shown = [str(name) for name in names][:8]
    return (", ".join(shown) or "nothing") + (f" and {len(names) - len(shown)} more" if len(names) > len(shown) else "")


def shape_text(shape: Sequence[int | str | None] | None) -> str:
    """Return a shape as text; unknown sizes are question marks."""
    if shape is None:
        return "any shape"
    return (
        "[" + ", ".join("?" if not is_fixed(size) and not isinstance(size, str) else str(size) for size in shape) + "]"
    )


def is_fixed(size: int | str | None) -> bool:
    """Whether a dimension states its size; some exporters write -1 where it is open."""
    return isinstance(size, int) and size >= 0


def names_a_size(size: int | str | None) -> bool:
    """Whether equal symbols mean equal sizes, which "?" or "unk" do not say."""
    return isinstance(size, str) and any(char.isalnum() for char in size) and size.lower() not in VAGUE_SYMBOLS


def _value(spec: TensorSpec, value: Any, where: str) -> Any:
    """Return the value as an array of the input's type; what is no tensor is left to the runtime to check."""
    if spec.dtype is None:
        if isinstance(value, np.ndarray) and _is_sequence(spec):
            raise SampleError(
                f"{where}: input '{spec.name}' is a sequence, not one array; give a list of arrays, from a function or "
                "a folder of test_data_set_*"
            )
        return value
    try:
        array = np.asarray(value)
    except (ValueError, TypeError) as error:  # a ragged list, an array on another device
        raise SampleError(f"{where}: input '{spec.name}' is no array: {error}") from error
    if spec.dtype == object and array.dtype.kind in "UO":
        return array.astype(object)
    if array.dtype.kind == "V" and array.dtype.itemsize == spec.dtype.itemsize:
        array = np.ascontiguousarray(array).view(spec.dtype)  # how numpy stores the types of ml_dtypes
    if array.dtype.newbyteorder("=") != spec.dtype:
        wanted = "str" if spec.dtype == object else spec.dtype.name
        raise SampleError(
            f"{where}: input '{spec.name}' has type {array.dtype.name}; the model takes {wanted}: "
            f"convert it with array.astype('{wanted}')"
        )
    return array.astype(spec.dtype, copy=False)


def _is_sequence(spec: TensorSpec) -> bool:
    return bool(onnx.ValueInfoProto.FromString(spec.proto).type.HasField("sequence_type"))


def _check_shape(spec: TensorSpec, found: Sequence[int], sizes: dict[str, tuple[int, str]], where: str) -> None:
    """Raise unless the shape is allowed; `sizes` collects what each symbol stands for in this sample, and by whom."""
    if spec.shape is None:
        return
    misfit = f"{where}: input '{spec.name}' has shape {shape_text(found)}; the model takes {shape_text(spec.shape)}"
    if len(found) != len(spec.shape):
        raise SampleError(f"{misfit}: reshape it to {len(spec.shape)} dimensions")
    for axis, (size, wanted) in enumerate(zip(found, spec.shape, strict=True)):
        if is_fixed(wanted) and size != wanted:
            raise SampleError(f"{misfit}: axis {axis} must have the size {wanted}")
        if names_a_size(wanted):
            first, owner = sizes.setdefault(str(wanted), (size, spec.name))
            if first != size:
                raise SampleError(f"{misfit}: '{wanted}' is {size} here and {first} in '{owner}'")
