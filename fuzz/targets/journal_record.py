"""Any bytes are refused as a record by a typed error, or are the one encoding of the record that they decode to."""

from __future__ import annotations

import hashlib

from layerjournal.errors import RecordError
from layerjournal.record import genesis, seal, unseal

PREVIOUS = genesis("fuzz")


def check(data: bytes) -> None:
    _unseal(data)                                                     # whatever its link
    stored = hashlib.sha256(PREVIOUS + data).digest() + data          # a link that fits: its body is looked at
    record = _unseal(stored)
    if record is None:
        return
    _, again = seal(
        PREVIOUS, seq=record.seq, group=record.group, txid=record.txid, entity=record.entity,
        from_state=record.from_state, to_state=record.to_state, trigger=record.trigger, payload=record.payload,
        time_ns=record.time_ns,
    )
    assert again == stored, "two encodings of one record are accepted"
    record.as_json()


def _unseal(stored: bytes):  # noqa: ANN202
    try:
        return unseal(stored, PREVIOUS, seq=1)
    except RecordError:
        return None
