"""Records of the log and how they chain. FORMAT.md §2 has the bytes. No I/O.

A stored record is ``link (32 bytes) ‖ body``; the body is canonical msgpack of the ten fields in order, and
``link = sha256(previous link ‖ body)``: the one integrity digest of a record.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from layerjournal.codec import decode, encode
from layerjournal.errors import RecordError, UsageError

VERSION = 1
LINK_BYTES = 32
MAX_RECORD_BYTES = 12 << 20
"""The most that a record's body may have, in bytes."""

_FIELDS: tuple[tuple[str, type], ...] = (
    ("version", int), ("seq", int), ("group", int), ("txid", str), ("entity", str), ("from", str), ("to", str),
    ("trigger", str), ("payload", dict), ("time_ns", int),
)
_KINDS = tuple(kind for _, kind in _FIELDS)


@dataclass(frozen=True, slots=True)
class Record:
    """One transition. ``group`` is the ``seq`` of the first record of the same all-or-nothing transaction."""

    version: int
    seq: int
    group: int
    txid: str
    entity: str
    from_state: str
    to_state: str
    trigger: str
    payload: Mapping[str, Any]
    time_ns: int
    link: bytes

    def as_json(self) -> dict[str, Any]:
        """For people and tools: bytes become hex."""
        return {
            "seq": self.seq, "group": self.group, "txid": self.txid, "entity": self.entity,
            "from": self.from_state, "to": self.to_state, "trigger": self.trigger,
            "payload": jsonable(self.payload), "time_ns": self.time_ns, "link": self.link.hex(),
        }


def genesis(uuid: str) -> bytes:
    """The link before the first record: it ties the chain to one journal."""
    return hashlib.sha256(b"layerjournal\x00%d\x00" % VERSION + uuid.encode()).digest()


def seal(
    previous: bytes, *, seq: int, group: int, txid: str, entity: str, from_state: str, to_state: str, trigger: str,
    payload: Mapping[str, Any], time_ns: int,
) -> tuple[Record, bytes]:
    """A record and its stored bytes. UsageError for what cannot be recorded."""
    body = encode([VERSION, seq, group, txid, entity, from_state, to_state, trigger, payload, time_ns])
    if len(body) > MAX_RECORD_BYTES:
        raise UsageError(f"record {seq} of {entity!r} would have {len(body)} bytes; at most {MAX_RECORD_BYTES}")
    link = hashlib.sha256(previous + body).digest()
    try:
        # decoded again, so that what the projector sees now is what a fold will see later, tuples and all
        return _record(decode(body), link), link + body
    except RecordError as error:
        raise UsageError(f"{entity!r} by {trigger!r} cannot be recorded: {error}") from error


def unseal(stored: bytes, previous: bytes, *, seq: int) -> Record:
    """The record in *stored* bytes at *seq*, after the link *previous*. RecordError if any of it does not fit."""
    link, body = stored[:LINK_BYTES], stored[LINK_BYTES:]
    if len(body) > MAX_RECORD_BYTES:
        raise RecordError(f"record {seq} has {len(body)} bytes; at most {MAX_RECORD_BYTES}")
    if hashlib.sha256(previous + body).digest() != link:
        raise RecordError(f"record {seq} does not chain: it, or one before it, was altered or lost")
    record = _record(decode(body), link)
    if record.seq != seq or not 1 <= record.group <= seq:
        raise RecordError(f"record {seq} says that it is record {record.seq} of group {record.group}")
    return record


def _record(fields: Any, link: bytes) -> Record:
    if not isinstance(fields, list) or not fields:
        raise RecordError("a record is an array")
    if fields[0] != VERSION or type(fields[0]) is not int:
        raise RecordError(f"record version {fields[0]!r}; this reader knows {VERSION}")
    if len(fields) != len(_FIELDS):
        raise RecordError(f"a record has {len(_FIELDS)} fields, and not {len(fields)}")
    if tuple(map(type, fields)) != _KINDS or min(fields[1], fields[2], fields[-1]) < 0:
        raise RecordError(_wrong(fields))
    made: list[Any] = [*fields, link]
    return Record(*made)


def _wrong(fields: list[Any]) -> str:
    """What is wrong with *fields*, of which there are as many as there should be."""
    for value, (name, kind) in zip(fields, _FIELDS, strict=True):
        if type(value) is not kind:
            return f"a record's {name} is {type(value).__name__}, not {kind.__name__}"
    return f"one of a record's numbers is negative: {fields[1]}, {fields[2]}, {fields[-1]}"


def jsonable(value: Any) -> Any:
    """*value* with bytes as hex, for ``json.dumps``."""
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, Mapping):
        return {k: jsonable(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [jsonable(v) for v in value]
    return value
