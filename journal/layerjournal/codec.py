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
_WALKED_FROM = 1_024                    # bytes; what is shorter cannot claim more than a few MiB
_BUFFER = 1_024                         # bytes to begin with: to take the default, 256 KiB, takes longer than to pack
_TOO_DEEP = f"nested deeper than {MAX_DEPTH}"
_PLAIN = frozenset({type(None), bool, int, str, bytes})   # exactly these, and not what is derived from them


def encode(value: Any) -> bytes:
    """The canonical bytes of *value*: None, bool, int (64 bits), str, bytes, lists, tuples, and maps of str.

    UsageError for anything else, deeper than 32 levels, or longer than 16 MiB.
    """
    try:
        data = _pack(_canonical(value, 0))
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
        if len(data) >= _WALKED_FROM:
            _walk(data)
        value = decode_own(data)
        if type(value) not in _PLAIN:
            _check(value, 0)
        again = _pack(value)   # lengths and integers; a key that is there twice, too
    except (ValueError, TypeError, RecursionError, msgpack.OutOfData) as error:   # msgpack's own are ValueErrors
        raise RecordError(f"not canonical msgpack: {error or type(error).__name__}") from error
    if again != data:
        raise RecordError("not canonical msgpack: it encodes differently")
    return value


def decode_own(data: bytes) -> Any:
    """As ``decode``, for bytes that a checksum has just proved to be what ``encode`` wrote: without the proof again."""
    return msgpack.unpackb(data, raw=False, strict_map_key=True, use_list=True, timestamp=0)


def _pack(value: Any) -> bytes:
    packed: bytes = msgpack.Packer(use_bin_type=True, buf_size=_BUFFER).pack(value)
    return packed


def _walk(data: bytes) -> None:
    """Walk the structure without building it: a few bytes that claim huge arrays must not make us allocate them."""
    unpacker = msgpack.Unpacker(max_buffer_size=MAX_BYTES)
    unpacker.feed(data)
    unpacker.skip()


def _check(value: Any, depth: int) -> None:
    """ValueError or TypeError unless what was decoded is made of what may be encoded, its keys in order."""
    if depth >= MAX_DEPTH and value:
        raise ValueError(_TOO_DEEP)
    kind = type(value)
    if kind is list:
        for each in value:
            if type(each) not in _PLAIN:
                _check(each, depth + 1)
    elif kind is dict:
        before = None
        for key, each in value.items():
            if type(key) is not str or (before is not None and key <= before):   # by code points, as by UTF-8 bytes
                raise TypeError(f"the map key {key!r} is not a string, or out of order")
            before = key
            if type(each) not in _PLAIN:
                _check(each, depth + 1)
    else:
        raise TypeError(_unknown(value))


def _canonical(value: Any, depth: int) -> Any:
    """*value* as msgpack is to be given it. Written for speed: a journal does little else."""
    kind = type(value)
    if kind in _PLAIN:
        return value
    if kind is not dict and kind is not list:
        return _derived(value, depth)
    if depth >= MAX_DEPTH and value:
        raise ValueError(_TOO_DEEP)
    if kind is dict:
        ordered = {}
        for key in sorted(value):            # by code points, which is the order of their UTF-8 bytes
            if type(key) is not str:
                return _derived(value, depth)
            each = value[key]
            ordered[key] = each if type(each) in _PLAIN else _canonical(each, depth + 1)
        return ordered
    return [each if type(each) in _PLAIN else _canonical(each, depth + 1) for each in value]


def _derived(value: Any, depth: int) -> Any:
    """As ``_canonical``, of what is not one of the types that can be encoded, but counts as one."""
    if isinstance(value, bytes):
        return value
    if isinstance(value, str):
        return str.__str__(value)   # a StrEnum's value, and not what its class prints
    if isinstance(value, int):
        return int(value)
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str):
                raise TypeError(f"map key {key!r} is not a string")
        return _canonical({str.__str__(key): value[key] for key in value}, depth)
    if isinstance(value, list | tuple):
        return _canonical(list(value), depth)
    raise TypeError(_unknown(value))


def _unknown(value: Any) -> str:
    return f"{type(value).__name__} is not among None, bool, int, str, bytes, list, map"
