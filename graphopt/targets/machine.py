"""What this machine's processor can do."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np

_CPUINFO = Path("/proc/cpuinfo")
_VNNI = frozenset({"avx512_vnni", "avx_vnni", "avx512vnni"})


@cache
def instructions() -> frozenset[str]:
    """Return which of "avx2", "avx512" and "vnni" this processor has; empty on other architectures.

    Linux states them in /proc/cpuinfo. Elsewhere numpy's own detection is asked, which does not know AVX-VNNI: such a
    processor counts as AVX2 there, which gives right, if not the fastest, files.
    """
    return classify(cpuinfo_flags(_CPUINFO.read_text()) if _CPUINFO.is_file() else numpy_flags())


def cpuinfo_flags(text: str) -> frozenset[str]:
    """Return the flags of the first processor in the text of /proc/cpuinfo."""
    for line in text.splitlines():
        name, _, value = line.partition(":")
        if name.strip() == "flags":
            return frozenset(value.split())
    return frozenset()


def numpy_flags() -> frozenset[str]:
    """Return the features that numpy found at import, named as in /proc/cpuinfo."""
    found = np.show_config(mode="dicts") or {}
    features = {name.upper() for name in found.get("SIMD Extensions", {}).get("found", ())}
    features |= {name.upper() for name in found.get("SIMD Extensions", {}).get("baseline", ())}
    flags = set()
    if features & {"AVX2", "X86_V3"}:
        flags.add("avx2")
    if features & {"AVX512_SKX", "X86_V4"}:
        flags |= {"avx512f", "avx512bw"}
    if features & {"AVX512_CLX", "AVX512_ICL"}:
        flags.add("avx512_vnni")
    return frozenset(flags)


def classify(flags: frozenset[str]) -> frozenset[str]:
    """Return which of "avx2", "avx512" and "vnni" the flags of /proc/cpuinfo amount to."""
    found = set()
    if "avx2" in flags:
        found.add("avx2")
    if {"avx512f", "avx512bw"} <= flags:
        found.add("avx512")
    if flags & _VNNI:
        found.add("vnni")
    return frozenset(found)
