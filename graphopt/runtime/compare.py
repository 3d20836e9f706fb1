"""Whether two sets of outputs are the same but for the order in which floats were added up.

A lossless rewrite may reassociate: a folded BatchNormalization scales weights instead of sums. How much that moves an
output was measured with ONNX Runtime itself, which does such rewrites: over fourteen real models (ImageNet and OCR
networks, BERT, an LSTM, a GRU, all fp32) the outputs with its optimizations on and off differ by at most 2.3e-6 in the
relative L2 norm and 1.9e-5 of the largest element. The tolerances stand an order of magnitude above that: 2^8 eps =
3.1e-5 and 2^11 eps = 2.4e-4. What must be caught lies far above: int8 rounding of one layer moves outputs by 1e-3 to
1e-2, a wrong weight or axis by more. Both scale with the eps of the output's type.

A model that amplifies rounding more than those (random inputs far from its data, fp16 inside, rounding to integers)
exceeds them with any rewrite; the caller then measures the model's own noise and passes it as `noise`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np

_L2_EPS, _PEAK_EPS = 2**8, 2**11
_MARGIN = 10  # over the measured noise
_ZERO_EPS = 16  # an output that is zero everywhere has no scale; sums that cancel leave a few eps behind


@dataclass(frozen=True)
class Distance:
    """How far one float array is from another, non-finite elements left out.

    Attributes:
        l2: L2 norm of the difference over that of the reference.
        peak: Largest absolute difference over the largest absolute value of the reference.
    """

    l2: float = 0.0
    peak: float = 0.0

    def union(self, other: Distance) -> Distance:
        """Return the larger of both in either measure."""
        return Distance(max(self.l2, other.l2), max(self.peak, other.peak))


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
    if list(ours) != list(theirs):
        return _structure(ours, theirs)
    for name, expected in ours.items():
        found = _leaf(expected, theirs[name], (noise or {}).get(name, Distance()))
        if found:
            return f"output '{name}' {found}"
    return None


def leaves(outputs: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield the parts of the outputs: arrays and None by name, those inside of lists and dicts as ``name[key]``."""
    for name, value in outputs.items():
        yield from _leaves(name, value)


def distance(before: np.ndarray, after: np.ndarray) -> Distance:
    """Return how far `after` is from `before`; both float (or complex) and of one shape."""
    expected, actual = widen(before), widen(after)
    finite = np.isfinite(expected) & np.isfinite(actual)
    expected = np.where(finite, expected, 0)
    error = np.abs(np.where(finite, actual, 0) - expected)
    if not error.any():
        return Distance()
    scale = float(np.max(np.abs(expected)))
    floor = _ZERO_EPS * _eps(before.dtype)
    if scale == 0:
        return Distance() if float(error.max()) <= floor else Distance(np.inf, np.inf)
    norm = float(np.linalg.norm(np.ravel(expected) / scale))
    return Distance(float(np.linalg.norm(np.ravel(error) / scale)) / norm, float(error.max()) / scale)


def is_float(dtype: np.dtype) -> bool:
    """Whether elements of this type have a rounding error, bf16, fp8 and complex ones included."""
    if dtype.kind in "fc":
        return True
    try:
        ml_dtypes.finfo(dtype)
    except ValueError:
        return False
    return True


def widen(array: np.ndarray) -> np.ndarray:
    """Return a float array in double precision, so that squares neither overflow nor round."""
    return array.astype(np.complex128 if array.dtype.kind == "c" else np.float64)


def _leaves(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        for key in sorted(value, key=str):
            yield from _leaves(f"{name}[{key}]", value[key])
    elif isinstance(value, (list, tuple)):
        for index, item in enumerate(value):
            yield from _leaves(f"{name}[{index}]", item)
    else:
        yield name, None if value is None else np.asarray(value)


def _structure(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> str:
    for name in ours:
        if name not in theirs:
            return f"output '{name}' is missing"
    for name in theirs:
        if name not in ours:
            return f"output '{name}' was not there before"
    return "the outputs come in another order"


def _leaf(before: np.ndarray | None, after: np.ndarray | None, noise: Distance) -> str:
    if before is None or after is None:
        return "" if before is after else "has a value only " + ("after" if before is None else "before")
    if before.dtype != after.dtype:
        return f"changed its type from {before.dtype} to {after.dtype}"
    if before.shape != after.shape:
        return f"changed its shape from {list(before.shape)} to {list(after.shape)}"
    if not is_float(before.dtype):
        wrong = int(np.count_nonzero(before != after))
        return f"differs in {wrong} of {before.size} elements" if wrong else ""
    wrong = int(np.count_nonzero(non_finite_differs(before, after)))
    if wrong:
        return f"differs in {wrong} of {before.size} elements, where one side is NaN or infinite"
    return _floats(before, after, noise)


def non_finite_differs(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """Return where one of two equally shaped float arrays is NaN or infinite and the other is not the same."""
    ours, theirs = widen(before), widen(after)
    same = (ours == theirs) | (np.isnan(ours) & np.isnan(theirs))
    differs: np.ndarray = ~(np.isfinite(ours) & np.isfinite(theirs)) & ~same
    return differs


def _floats(before: np.ndarray, after: np.ndarray, noise: Distance) -> str:
    found, eps = distance(before, after), _eps(before.dtype)
    l2 = max(_L2_EPS * eps, _MARGIN * noise.l2)
    peak = max(_PEAK_EPS * eps, _MARGIN * noise.peak)
    if found.l2 <= l2 and found.peak <= peak:
        return ""
    return (
        f"differs by {found.l2:.1e} in the relative L2 norm (allowed {l2:.1e}) and by {found.peak:.1e} of its largest "
        f"element (allowed {peak:.1e})"
    )


def _eps(dtype: np.dtype) -> float:
    """Return the distance of 1 to the next number, of doubles that of a careless math library's last bits."""
    return max(float(ml_dtypes.finfo(dtype).eps), 2.0**-48)
