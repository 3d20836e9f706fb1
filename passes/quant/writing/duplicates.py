"""Integers that came out twice, of a weight that is read with fixed ranges here and with ranges of its inputs there.

Both forms round a matrix the same way unless it was fitted or smoothed, but each writes its integers in a layout and
under a name of its own; a layer and the body of a Loop may read the same weight.
"""

from __future__ import annotations

import numpy as np

from graphopt.ir.clean import redirect
from graphopt.ir.equal import equal_among
from graphopt.ir.graph import constants, payload_bytes
from graphopt.model import Model
from graphopt.passes.quant.nodes.units import outputs_of_scopes

_LEAST = 1024  # bytes


def share_integers(model: Model) -> int:
    """Let all readers of equal integers read the same ones; return how many constants became free.

    Args:
        model: Edited in place.
    """
    handed_out = outputs_of_scopes(model.graph)
    integers = (
        constant
        for constant in constants(model.graph)
        if np.dtype(constant.dtype) in (np.int8, np.uint8)
        and payload_bytes(constant) >= _LEAST
        and id(constant) not in handed_out
    )
    freed = 0
    for kept, *copies in equal_among(integers):
        for copy in copies:
            redirect(copy, kept)
        freed += len(copies)
    return freed
