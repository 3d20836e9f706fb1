"""Model files compressed as a whole: ``NAME.onnx.zst``, for storage and transfer. ONNX Runtime wants them unpacked."""

from __future__ import annotations

from pathlib import Path

from graphopt.errors import ModelError

SUFFIX = ".zst"
_LEVEL = 19  # the highest that does not ask for more memory to decompress
_CHUNK = 1 << 12  # bytes read at a time; they become 128 MiB at most: 4 bytes may stand for a block of 128 KiB


def is_compressed(path: Path) -> bool:
    """Whether a file of this name is compressed."""
    return path.suffix == SUFFIX


def compressed(raw: bytes) -> bytes:
    """Return the bytes of a file, compressed."""
    import zstandard

    return zstandard.ZstdCompressor(level=_LEVEL, write_checksum=True).compress(raw)


def decompressed(raw: bytes, limit: int) -> bytes:
    """Return the bytes of a compressed file.

    Args:
        raw: One zstd frame or several; untrusted.
        limit: Most bytes that may come out: a few may stand for terabytes.

    Raises:
        ModelError: They are damaged, truncated, or more than the limit.
    """
    import zstandard

    parts: list[bytes] = []
    size = start = 0
    try:
        while start < len(raw):
            frame = zstandard.ZstdDecompressor().decompressobj()
            while not frame.eof and start < len(raw):
                parts.append(frame.decompress(raw[start : start + _CHUNK]))
                start += _CHUNK
                size += len(parts[-1])
                if size > limit:
                    raise ModelError(f"holds more than {limit} bytes, the most that an ONNX file can have")
            if not frame.eof:
                raise ModelError("is truncated")
            start = min(start, len(raw)) - len(frame.unused_data)
    except zstandard.ZstdError as error:
        raise ModelError(f"is no zstd file, or is damaged: {error}") from error
    return b"".join(parts)
