"""Bytes as a packed side file would hold them: one zstd frame. Cheaply, since it is done for every input.

A compressor for its usual window clears a megabyte before its first byte; these are for the few KiB that inputs have.
"""

from __future__ import annotations

import zstandard

MAGIC = b"\x28\xb5\x2f\xfd"            # a frame's first bytes

_SMALL = zstandard.ZstdCompressionParameters(
    window_log=12, hash_log=8, chain_log=8, strategy=zstandard.STRATEGY_FAST, write_checksum=True, write_content_size=False,
)
_compress = zstandard.ZstdCompressor(compression_params=_SMALL).compress


def packed(data: bytes) -> bytes:
    return _compress(data)


def small_compressor() -> zstandard.ZstdCompressor:
    """Another one, as writers of small files may have it."""
    return zstandard.ZstdCompressor(compression_params=_SMALL)
