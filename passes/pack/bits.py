"""Codes of one to eight bits, packed into bytes in planes.

A code of b bits is split into planes of 4, 2 and 1 bits whose widths add up to b (8 bits are one plane). A plane of
width w is stored 8/w neighbouring codes a byte, the first one in the lowest bits. So a decoder needs nothing but a
table of 256 rows with the codes of every byte, and a Gather from it.
"""

from __future__ import annotations

import numpy as np

_WIDTHS = {1: (1,), 2: (2,), 3: (2, 1), 4: (4,), 5: (4, 1), 6: (4, 2), 7: (4, 2, 1), 8: (8,)}


def plane_widths(bits: int) -> tuple[int, ...]:
    """Return the widths of the planes, the most significant first."""
    return _WIDTHS[bits]


def bits_for(count: int) -> int:
    """Return the bits that tell so many things apart, at least 1."""
    return max(1, (count - 1).bit_length())


def padded_count(count: int, bits: int) -> int:
    """Return how many codes the planes hold: as many as fill whole bytes in each of them."""
    each = 8 // min(plane_widths(bits))
    return -(-count // each) * each


def packed_bytes(count: int, bits: int) -> int:
    """Return the bytes that `count` codes take."""
    return padded_count(count, bits) * bits // 8


def pack_codes(codes: np.ndarray, bits: int) -> tuple[np.ndarray, ...]:
    """Return one uint8 array a plane, the most significant first; the last code is repeated to fill the last byte.

    Args:
        codes: Unsigned integers below 2**bits, any shape but empty; taken in C order.
        bits: 1 to 8.
    """
    flat = np.asarray(codes, np.uint8).ravel()
    flat = np.pad(flat, (0, padded_count(flat.size, bits) - flat.size), mode="edge")
    planes, rest = [], bits
    for width in plane_widths(bits):
        rest -= width
        planes.append(_pack_plane((flat >> rest) & ((1 << width) - 1), width))
    return tuple(planes)


def unpack_codes(planes: tuple[np.ndarray, ...], count: int, bits: int) -> np.ndarray:
    """Return the codes, uint8 [count]; the inverse of `pack_codes`."""
    codes = np.zeros(padded_count(count, bits), np.uint8)
    for plane, width in zip(planes, plane_widths(bits), strict=True):
        codes = (codes << (width % 8)) | code_table(width)[plane].ravel()
    return codes[:count]


def code_table(width: int) -> np.ndarray:
    """Return the codes that each byte of a plane holds, uint8 [256, 8 / width]."""
    shifts = np.arange(0, 8, width, dtype=np.uint8)
    return (np.arange(256, dtype=np.uint8)[:, None] >> shifts) & np.uint8((1 << width) - 1)


def _pack_plane(values: np.ndarray, width: int) -> np.ndarray:
    slots = values.reshape(-1, 8 // width)
    packed = np.zeros(len(slots), np.uint8)
    for slot in range(8 // width):
        packed |= slots[:, slot] << np.uint8(slot * width)
    return packed
