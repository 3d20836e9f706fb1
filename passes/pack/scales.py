"""Whole numbers times a scale: what weights are that were quantized once and stored as floats."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

_LARGEST = 255  # of the whole numbers
_STEPS = 64  # the smallest magnitude of a row may be so many times its scale
_PROBED = 4  # rows that are looked at before all are
_ULPS = (0, -1, 1, -2, 2)  # the scale that comes from a rounded product is off by so many units in the last place


def find_scales(values: np.ndarray, axis: int) -> tuple[np.ndarray, np.ndarray] | None:
    """Return whole numbers and scales whose float32 product is exactly the values, or None.

    Args:
        values: Weights, float32, any shape of two or more axes.
        axis: The axis each index of which has a scale of its own.

    Returns:
        Whole numbers (as float32, in the shape of the values) and scales (broadcastable to it).
    """
    rows = np.moveaxis(values, axis, 0).reshape(values.shape[axis], -1)
    if rows.shape[1] < 16 or not np.isfinite(rows).all():
        return None
    probed = rows[np.linspace(0, len(rows) - 1, min(_PROBED, len(rows))).astype(int)]
    if np.isnan(_row_scales(probed)).any():
        return None
    scale = _row_scales(rows)
    if np.isnan(scale).any():
        return None
    whole = np.rint(rows / scale[:, None])
    shape = [1] * values.ndim
    shape[axis] = len(scale)
    moved = [values.shape[axis], *(size for index, size in enumerate(values.shape) if index != axis)]
    return np.ascontiguousarray(np.moveaxis(whole.reshape(moved), 0, axis)), scale.reshape(shape)


def _row_scales(rows: np.ndarray) -> np.ndarray:
    """Return the largest scale of each row that makes it whole numbers, NaN where there is none."""
    magnitude = np.abs(rows)
    largest = magnitude.max(axis=1)
    smallest = np.where(magnitude > 0, magnitude, np.inf).min(axis=1)
    scale = np.full(len(rows), np.nan, np.float32)
    scale[largest == 0] = 1
    for steps in range(1, _STEPS + 1):
        left = np.flatnonzero(np.isnan(scale))
        if not left.size:
            break
        counts = np.rint(largest[left].astype(np.float64) * steps / smallest[left])
        left, counts = left[counts <= _LARGEST], counts[counts <= _LARGEST]
        for candidate in _candidates(largest[left], counts):
            fits = _reproduces(rows[left], candidate) & np.isnan(scale[left])
            scale[left[fits]] = candidate[fits]
    return scale


def _candidates(largest: np.ndarray, counts: np.ndarray) -> Iterator[np.ndarray]:
    nearest = (largest.astype(np.float64) / counts).astype(np.float32)
    for ulps in _ULPS:
        found = nearest
        for _ in range(abs(ulps)):
            found = np.nextafter(found, np.float32(np.inf if ulps > 0 else 0))
        yield found


def _reproduces(rows: np.ndarray, scale: np.ndarray) -> np.ndarray:
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        product = np.rint(rows / scale[:, None]) * scale[:, None]
    return np.asarray((product.view(np.uint32) == np.ascontiguousarray(rows).view(np.uint32)).all(axis=1))
