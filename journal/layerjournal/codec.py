"""The one encoding: canonical msgpack. The only module that imports ``msgpack``.

A value has exactly one encoding, and only that one decodes: maps have string keys in ascending order of their
UTF-8 bytes, integers and lengths are minimal, strings are UTF-8; no floats, extensions, nor other key types.
Decoding re-encodes and compares, so whatever differs in a single byte is refused. See FORMAT.md §1.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgpack

from layerjournal.errors import RecordError, UsageError

MAX_BYTES = 16 << 20
MAX_DEPTH = 32


def encode(value: Any) -> bytes:
    """The canonical bytes of *value*: None, bool, int (64 bits), str, bytes, lists, tuples, and maps of str.

    UsageError for anything else, deeper than 32 levels, or longer than 16 MiB.
    """
    try:
        data: bytes = msgpack.packb(_canonical(value, 0), use_bin_type=True)
    except (OverflowError, ValueError, TypeError) as error:
        raise UsageError(f"cannot be recorded: {error}") from error
    if len(data) > MAX_BYTES:
        raise UsageError(f"too large to be recorded: {len(data)} bytes, at most {MAX_BYTES}")
    return data


def decode(data: bytes) -> Any:
    """The value whose canonical encoding *data* is. RecordError for any other bytes."""
    if len(data) > MAX_BYTES:
        raise RecordError(f"{len(data)} bytes are more than the {MAX_BYTES} that a value may have")
    try:
        _walk(data)
        value = decode_own(data)
        again = encode(value)
    except (ValueError, RecursionError, UsageError, msgpack.OutOfData) as error:   # msgpack's own are ValueErrors
        raise RecordError(f"not canonical msgpack: {error or type(error).__name__}") from error
    if again != data:
        raise RecordError("not canonical msgpack: it encodes differently")
    return value


def decode_own(data: bytes) -> Any:
    """As ``decode``, for bytes that a checksum has just proved to be what ``encode`` wrote: without the proof again."""
    return msgpack.unpackb(data, raw=False, strict_map_key=True, use_list=True, timestamp=0)


def _walk(data: bytes) -> None:
    """Walk the structure without building it: a few bytes that claim huge arrays must not make us allocate them."""
    unpacker = msgpack.Unpacker(max_buffer_size=MAX_BYTES)
    unpacker.feed(data)
    unpacker.skip()


def _canonical(value: Any, depth: int) -> Any:
    if depth > MAX_DEPTH:
        raise ValueError(f"nested deeper than {MAX_DEPTH}")
    if value is None or isinstance(value, bool | bytes):
        return value
    if isinstance(value, str):
        return str.__str__(value)   # a StrEnum's value, and not what its class prints
    if isinstance(value, int):
        return int(value)
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str):
                raise TypeError(f"map key {key!r} is not a string")
        return {str.__str__(k): _canonical(value[k], depth + 1) for k in sorted(value, key=str.encode)}
    if isinstance(value, list | tuple):
        return [_canonical(v, depth + 1) for v in value]
    raise TypeError(f"{type(value).__name__} is not among None, bool, int, str, bytes, list, map")
