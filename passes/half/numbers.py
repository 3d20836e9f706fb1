"""What fits into 16 bits."""

from __future__ import annotations

from typing import Literal

import ml_dtypes
import numpy as np

Kind = Literal["fp16", "bf16"]
TYPES: dict[Kind, np.dtype] = {"fp16": np.dtype(np.float16), "bf16": np.dtype(ml_dtypes.bfloat16)}

_WORST = {"fp16": 2.0**-9, "bf16": 2.0**-6}  # relative error of a whole constant; rounding alone makes less than half
_LARGEST = 65504.0 / 2  # magnitude of an activation; other inputs than the samples may go a little further
_SMALLEST = 2.0**-14  # magnitude below which fp16 has ever fewer digits


def misfit(values: np.ndarray, kind: Kind) -> str:
    """Return why a constant does not fit into a type, or an empty text.

    NaN and infinities fit as what they are. Values that become zero do no harm among much larger ones.
    """
    with np.errstate(over="ignore", under="ignore"):
        rounded = values.astype(TYPES[kind]).astype(np.float32)
    finite = np.isfinite(values)
    if not np.isfinite(rounded[finite]).all():
        return f"its values leave the range of {kind}"
    exact = values[finite].astype(np.float64)
    lost = float(np.linalg.norm(exact - rounded[finite]))
    return "" if lost <= _WORST[kind] * float(np.linalg.norm(exact)) else f"its values are too small for {kind}"


def range_misfit(low: float, high: float) -> str:
    """Return why an activation that takes values from `low` to `high` does not fit into fp16, or an empty text."""
    largest = float(np.max(np.abs([low, high])))  # NaN if one of them is
    if not largest <= _LARGEST:
        return f"reaches {largest:.3g} on the samples, and fp16 ends at 65504"
    return f"stays below {largest:.3g} on the samples, where fp16 loses digits" if 0 < largest < _SMALLEST else ""
