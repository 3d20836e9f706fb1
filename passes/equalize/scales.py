"""By which powers of two channels are scaled."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def exponents(before: Sequence[np.ndarray], behind: Sequence[np.ndarray], share: float = 0.5) -> np.ndarray:
    """Return the exponent k of each channel, which becomes ``x / 2^k`` and is read with weights times ``2^k``.

    With the extent of what is before the readers, ``a``, and of the readers' weights, ``b`` (geometric means where
    there are several), ``2^k`` is the power of two nearest to ``a^share / b^(1 - share)``. A share of 1/2 makes both
    extents equal, ``sqrt(a b)``: cross-layer equalization (arXiv:1906.04721, equation 11) if ``a`` is the extent of the
    weights that make the channel, SmoothQuant (arXiv:2211.10438, equation 4) if it is that of the channel on samples.
    Powers of two change no mantissa, so that outputs stay the same to the last bit. They miss the best factor by at
    most the square root of two, half a bit.

    Args:
        before: Extents of what is before the readers, [channels] each; 0 or more.
        behind: Extents of the readers' weights, [channels] each.
        share: Part of the range that goes to the readers, in (0, 1).

    Returns:
        int [channels]; 0 for channels of which any extent is zero.
    """
    usable = np.all([extent > 0 for extent in (*before, *behind)], axis=0)
    first, last = (
        np.mean([np.log2(np.where(usable, extent, 1.0)) for extent in side], axis=0) for side in (before, behind)
    )
    return np.asarray(np.where(usable, np.rint(share * first - (1 - share) * last), 0), np.int64)
