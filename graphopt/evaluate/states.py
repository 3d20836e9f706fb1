"""Models that hand on a state: an output of one run is an input of the next."""

from __future__ import annotations

from collections.abc import Mapping
from difflib import SequenceMatcher
from typing import Any

import numpy as np

_ALIKE = 0.5  # of the letters of two names that must match: h0 and hn, state and stateN, past_key and present_key


def states(feeds: Mapping[str, Any], outputs: Mapping[str, Any]) -> dict[str, str]:
    """Return the inputs whose next value an output is: of its type and shape, a float, and of a similar name.

    A model that has nothing but such inputs maps them to something else: a picture to a picture.

    Args:
        feeds: One sample.
        outputs: What a model gave for it.
    """
    rated = []
    for name, value in feeds.items():
        for output, found in outputs.items():
            alike = isinstance(found, np.ndarray) and found.dtype == value.dtype and found.shape == value.shape
            likeness = SequenceMatcher(None, name.lower(), output.lower()).ratio()
            if alike and value.dtype.kind == "f" and value.ndim and likeness >= _ALIKE:
                rated.append((likeness, name, output))
    chosen: dict[str, str] = {}
    for _, name, output in sorted(rated, key=lambda item: -item[0]):
        if name not in chosen and output not in chosen.values():
            chosen[name] = output
    return chosen if len(chosen) < len(feeds) else {}
