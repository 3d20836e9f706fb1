"""Codes of one to eight bits, packed into bytes in planes.

A code of b bits is split into planes of 4, 2 and 1 bits whose widths add up to b (8 bits are one plane). A plane of
width w is stored 8/w codes a byte, *planar*: byte j holds the codes j, j+n, j+2n ... where n is the number of bytes. So
a decoder needs only shifts by constants and a Concat, which every runtime folds.
"""

from __future__ import annotations

import numpy as np

_WIDTHS = {1: (1,), 2: (2,), 3: (2, 1), 4: (4,), 5: (4, 1), 6: (4, 2), 7: (4, 2, 1), 8: (8,)}


def plane_widths(bits: int) -> tuple[int, ...]:
    """Return the widths of the planes, the most significant first."""
    return _WIDTHS[bits]


def packed_bytes(count: int, bits: int) -> int:
    """Return the bytes that `count` codes take."""
    return sum(-(-count * width // 8) for width in plane_widths(bits))


def pack_codes(codes: np.ndarray, bits: int) -> tuple[np.ndarray, ...]:
    """Return one uint8 array a plane, the most significant first.

    Args:
        codes: Unsigned integers below 2**bits, any shape; taken in C order.
        bits: 1 to 8.
    """
    flat = np.asarray(codes, np.uint8).ravel()
    planes, rest = [], bits
    for width in plane_widths(bits):
        rest -= width
        planes.append(_pack_plane((flat >> rest) & ((1 << width) - 1), width))
    return tuple(planes)


def unpack_codes(planes: tuple[np.ndarray, ...], count: int, bits: int) -> np.ndarray:
    """Return the codes, uint8 [count]; the inverse of `pack_codes`."""
    codes = np.zeros(count, np.uint8)
    for plane, width in zip(planes, plane_widths(bits), strict=True):
        codes = (codes << width) | _unpack_plane(plane, width)[:count]
    return codes


def _pack_plane(values: np.ndarray, width: int) -> np.ndarray:
    each = 8 // width
    size = -(-len(values) // each)
    slots = np.zeros((each, size), np.uint8)
    slots.ravel()[: len(values)] = values
    packed = np.zeros(size, np.uint8)
    for slot in range(each):
        packed |= slots[slot] << np.uint8(slot * width)
    return packed


def _unpack_plane(plane: np.ndarray, width: int) -> np.ndarray:
    mask = np.uint8((1 << width) - 1)
    return np.concatenate([(plane >> np.uint8(slot * width)) & mask for slot in range(8 // width)])
