"""Any bytes as a side file are refused by ``DamagedError``, or are the one encoding of what is read from them."""

from __future__ import annotations

import hashlib

import layerjournal
from layerstore.errors import DamagedError
from layerstore.formats import records


def check(data: bytes) -> None:
    for candidate in (data, data + hashlib.sha256(data).digest()):
        try:
            found = records.read(candidate, "the side file")
        except DamagedError:
            continue
        assert layerjournal.encode(found) == candidate[:-32], "two encodings of one side file are accepted"
