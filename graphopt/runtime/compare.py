"""Whether two sets of outputs are the same but for the order in which floats were added up.

A lossless rewrite may reassociate: a folded BatchNormalization scales weights instead of sums. How much that moves an
output was measured with ONNX Runtime itself, which does such rewrites: over fourteen real models (ImageNet and OCR
networks, BERT, an LSTM, a GRU; fp32) on real inputs, the outputs with its optimizations on and off differ by at most
2.3e-6 in the relative L2 norm and 1.9e-5 of the largest element. The tolerances stand an order of magnitude above that:
2^8 eps = 3.1e-5 and 2^11 eps = 2.4e-4. What must be caught lies far above: int8 rounding of one layer moves outputs by
1e-3 to 1e-2, a wrong weight or axis by more. Types below 32 bits are computed in fp32 and rounded, which moves single
elements by one step (measured on an fp16 model: half a step), so they get 2 and 4 steps.

A model that amplifies rounding more than that (inputs far from its data, fp16 inside, rounding to integers) exceeds the
tolerances with any rewrite; the caller then measures the model's own noise and passes it as `noise`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np

_finfo: Any = ml_dtypes.finfo  # numpy's knows neither bf16 nor fp8
_MARGIN = 10  # over the measured noise
_ZERO_EPS = 16  # an output that is zero everywhere has no scale; sums that cancel leave a few eps behind
_CHUNK = 2**20  # elements widened to double precision at a time


@dataclass(frozen=True)
class Distance:
    """How far one float array is from another, relative to the first.

    Attributes:
        l2: L2 norm of the difference over that of the reference.
        peak: Largest absolute difference over the largest absolute value of the reference.
    """

    l2: float = 0.0
    peak: float = 0.0

    def union(self, other: Distance) -> Distance:
        """Return the larger of both in either measure."""
        return Distance(max(self.l2, other.l2), max(self.peak, other.peak))


ANYTHING = Distance(math.inf, math.inf)
"""As noise: this part is not compared at all."""


@dataclass
class Sums:
    """What one pass over a reference and a result of the same shape adds up, in double precision.

    Attributes:
        energy: Sum of squares of the reference, over elements that are finite on both sides, as the next three.
        error: Sum of squares of the difference.
        peak: Largest absolute value of the reference.
        peak_error: Largest absolute difference.
        undefined: Elements where the reference is NaN or infinite.
        undefined_same: Those of them where the result is the same.
        lost: Elements where the reference is finite and the result is not.
    """

    energy: float = 0.0
    error: float = 0.0
    peak: float = 0.0
    peak_error: float = 0.0
    undefined: int = 0
    undefined_same: int = 0
    lost: int = 0

    def distance(self, eps: float) -> Distance:
        """Return the relative distance; of an output that is zero everywhere, none up to a few eps."""
        if self.peak_error == 0:
            return Distance()
        if self.peak == 0:
            return Distance() if self.peak_error <= _ZERO_EPS * eps else ANYTHING
        return Distance(math.sqrt(self.error / self.energy), self.peak_error / self.peak)


def sums(before: np.ndarray, after: np.ndarray) -> Sums:
    """Add up two arrays of floats (or complex numbers) of one shape; needs a few megabytes whatever their size."""
    total = Sums()
    ours, theirs = np.ravel(before), np.ravel(after)
    wide = np.complex128 if before.dtype.kind == "c" else np.float64
    for start in range(0, ours.size, _CHUNK):
        expected = ours[start : start + _CHUNK].astype(wide)
        actual = theirs[start : start + _CHUNK].astype(wide)
        defined, kept = np.isfinite(expected), np.isfinite(actual)
        if not (defined.all() and kept.all()):
            same = (expected == actual) | (np.isnan(expected) & np.isnan(actual))
            total.undefined += int(np.count_nonzero(~defined))
            total.undefined_same += int(np.count_nonzero(~defined & same))
            total.lost += int(np.count_nonzero(defined & ~kept))
            expected, actual = expected[defined & kept], actual[defined & kept]
        if expected.size:
            size, error = np.abs(expected), np.abs(actual - expected)
            total.energy += float(np.dot(size, size))
            total.error += float(np.dot(error, error))
            total.peak = max(total.peak, float(size.max()))
            total.peak_error = max(total.peak_error, float(error.max()))
    return total


def difference(
    before: Mapping[str, Any], after: Mapping[str, Any], noise: Mapping[str, Distance] | None = None
) -> str | None:
    """Return what differs, in one line that names the output, or None.

    Types and shapes must be the same; strings, integers and booleans equal; NaN equals NaN and infinities of the same
    sign are equal; other floats may differ as the top of this module says. Lists, dicts and None are compared part by
    part.

    Args:
        before: Outputs of the reference by name; arrays, lists, dicts or None.
        after: Outputs to judge.
        noise: By name of a part (see `leaves`) what rounding alone does to it; ten times that is tolerated.
    """
    ours, theirs = dict(leaves(before)), dict(leaves(after))
    for name in ours.keys() | theirs.keys():
        if name not in theirs:
            return f"output '{name}' is missing"
        if name not in ours:
            return f"output '{name}' was not there before"
    for name, expected in ours.items():
        tolerated = noise[name] if noise and name in noise else Distance()
        found = "" if tolerated == ANYTHING else _leaf(expected, theirs[name], tolerated)
        if found:
            return f"output '{name}' {found}"
    return None


def leaves(outputs: Mapping[str, Any]) -> Iterator[tuple[str, np.ndarray | None]]:
    """Yield the parts of the outputs: arrays and None by name, those inside of lists and dicts as ``name[key]``."""
    for name, value in outputs.items():
        yield from _leaves(name, value)


def is_float(dtype: np.dtype) -> bool:
    """Whether elements of this type are rounded, bf16, fp8 and complex ones included."""
    if dtype.kind in "fc":
        return True
    try:
        _finfo(dtype)
    except ValueError:
        return False
    return True


def eps(dtype: np.dtype) -> float:
    """Return the distance of 1 to the next number; of doubles a larger one, for libraries differ in the last bits."""
    return max(float(_finfo(dtype).eps), 2.0**-48)


def _leaves(name: str, value: Any) -> Iterator[tuple[str, np.ndarray | None]]:
    if isinstance(value, Mapping):
        for key in sorted(value, key=str):
            yield from _leaves(f"{name}[{key}]", value[key])
    elif isinstance(value, (list, tuple)):
        for index, item in enumerate(value):
            yield from _leaves(f"{name}[{index}]", item)
    else:
        yield name, None if value is None else np.asarray(value)


def _leaf(before: np.ndarray | None, after: np.ndarray | None, noise: Distance) -> str:
    if before is None or after is None:
        return "" if before is after else f"has a value only {'after' if before is None else 'before'}"
    if before.dtype != after.dtype:
        return f"changed its type from {before.dtype} to {after.dtype}"
    if before.shape != after.shape:
        return f"changed its shape from {list(before.shape)} to {list(after.shape)}"
    if is_float(before.dtype):
        return _floats(before, after, noise)
    wrong = int(np.count_nonzero(before != after))
    return f"differs in {wrong} of {before.size} elements" if wrong else ""


def _floats(before: np.ndarray, after: np.ndarray, noise: Distance) -> str:
    total = sums(before, after)
    wrong = total.lost + total.undefined - total.undefined_same
    if wrong:
        return f"differs in {wrong} of {before.size} elements, where it is NaN or infinite on one side"
    step = eps(before.dtype)
    found = total.distance(step)
    fine = before.dtype.itemsize >= 4
    l2 = max((2**8 if fine else 2) * step, _MARGIN * noise.l2)
    peak = max((2**11 if fine else 4) * step, _MARGIN * noise.peak)
    if found.l2 <= l2 and found.peak <= peak:
        return ""
    return (
        f"differs by {found.l2:.1e} in the relative L2 norm (allowed {l2:.1e}) and by {found.peak:.1e} of its largest "
        f"element (allowed {peak:.1e})"
    )
