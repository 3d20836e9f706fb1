"""What the options of `prune` may be."""

from __future__ import annotations

import re
from typing import Literal

from graphopt.compensate import Blocks, NofM, Pattern, Unstructured

Unit = Literal["weights", "macs", "bytes", "latency"]
Criterion = Literal["auto", "l1", "l2", "max-norm", "variance", "lamp", "random", "wanda", "fluctuation", "obs"]
Scope = Literal["adaptive", "layer", "global"]

CHANNELS = "channels"
NEED_SAMPLES = frozenset({"wanda", "fluctuation", "obs"})
_N_OF_M = re.compile(r"(\d+)of(\d+)")
_BLOCK = re.compile(r"(\d+)x(\d+)")
_LARGEST = 64  # inputs that N:M looks at; more is no pattern that any kernel has


def parse_pattern(text: str, block: str) -> Pattern:
    """Return where zeros may stand.

    Args:
        text: unstructured, NofM or block.
        block: Outputs times inputs of a block, as 4x4.

    Raises:
        ValueError: It is none of them.
    """
    if text == "unstructured":
        return Unstructured()
    size = _BLOCK.fullmatch(block)
    if not size or "0" in size.groups():
        raise ValueError(f"block must be outputs times inputs, such as 4x4, not '{block}'")
    if text == "block":
        return Blocks(int(size[1]), int(size[2]))
    found = _N_OF_M.fullmatch(text)
    if not found:
        raise ValueError(f"pattern must be unstructured, NofM such as 2of4, block or channels, not '{text}'")
    keeps, among = int(found[1]), int(found[2])
    if not 0 < keeps < among <= _LARGEST:
        raise ValueError(f"pattern={text} must keep at least 1 and fewer than all of at most {_LARGEST} inputs")
    return NofM(keeps, among)
