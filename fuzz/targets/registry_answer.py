"""Any bytes as a registry's headers and bodies: what was asked for comes out, or an exception of the package's own."""

from __future__ import annotations

import io
import json

from layerstore.errors import SourceError
from layerstore.sources.registry import authfiles, challenges, failures, multipart
from layerstore.sources.registry.names import parse_name

_SIZE = 1000
_WANTED = ((0, 3), (10, 30), (999, 1000))
_NAME = parse_name("docker://host.test/a/b")


class _Reply:
    """What ``parts`` uses of a reply; reads are as short as a connection may make them."""

    url = "http://host.test/"

    def __init__(self, body: bytes) -> None:
        self._body = io.BytesIO(body)
        self._most = max(7, len(body) // 16)

    def read(self, count: int) -> bytes:
        return self._body.read(min(count, self._most))


def check(data: bytes) -> None:
    text = data.decode("latin-1")
    found = challenges.parse_challenges(text)
    assert len(found) <= 16
    assert all(each.scheme == each.scheme.lower() and each.scheme for each in found)
    told = multipart.content_range(text, _SIZE)
    assert told is None or told[0] >= 0
    boundary = multipart.boundary_of(text)
    assert boundary is None or 1 <= len(boundary) <= 70
    code = failures.code_of(data)
    assert not code or (code[1:].isascii() and code[1:].replace("_", "A").isupper() and len(code) <= 41)
    _parts(data)
    _file(data)


def _parts(data: bytes) -> None:
    came = []
    try:
        for at, piece in multipart.parts(_Reply(data), "THIS", _WANTED, _SIZE):   # type: ignore[arg-type]
            assert piece
            came.append((at, at + len(piece)))
    except (multipart.Odd, failures.Broken):
        whole = False
    else:
        whole = True
    assert all(any(a <= start and end <= b for a, b in _WANTED) for start, end in came)
    assert [start for start, _end in came] == sorted({start for start, _end in came})
    assert not whole or sum(end - start for start, end in came) == sum(b - a for a, b in _WANTED)


def _file(data: bytes) -> None:
    """A credentials file; helpers are left out, for they would be run."""
    try:
        document = json.loads(data)
    except (ValueError, RecursionError):
        return
    if isinstance(document, dict) and not {"credHelpers", "credsStore"} & set(document):
        try:
            authfiles.look_up(document, _NAME, "the file")
        except SourceError as error:
            assert len(str(error)) < 200
