"""Any bytes as a TOC are refused by a typed error, or give files covered by their chunks, in a blob covered by its units.

Whatever they say, nothing lies outside the blob, nothing twice, and no more content is promised than limits and blob allow.
"""

from __future__ import annotations

from fuzz.pieces import in_pieces
from layerstore.chunked import Unsuitable
from layerstore.chunked.layout import File, Gap, arranged, locate, without_gaps
from layerstore.chunked.plan import Fetch, make_plan, wanted
from layerstore.chunked.toc import Toc, TocEntry
from layerstore.errors import InputError
from layerstore.model import Limits

_BLOB = 4096                             # bytes of it that are content
_LIMITS = Limits(max_bytes=1 << 20, max_hole_bytes=1 << 16, max_ratio=100)


def check(data: bytes) -> None:
    parsed = _parsed([data])
    assert _parsed(in_pieces(data, 61)) == parsed, "what it is depends on the pieces that it comes in"
    if parsed is None:
        return
    try:
        files = list(locate(parsed[0], _LIMITS, _BLOB))
    except (InputError, Unsuitable) as error:
        assert len(str(error)) < 2_000, "an error as long as its input"
        return
    assert sum(file.size for file in files) <= _LIMITS.max_bytes
    for file in files:
        assert file.size == sum(chunk.size for chunk in file.chunks) > 0, "chunks that do not cover the file"
    for make in (without_gaps, arranged):
        try:
            items = list(make(files, _BLOB))
        except InputError:
            continue
        _check_items(items, whole=make is arranged)


def _parsed(pieces: list[bytes]) -> tuple[list[TocEntry], str | None] | None:
    toc = Toc(pieces, most=1_000)
    try:
        return list(toc), toc.tar_split_digest
    except (InputError, Unsuitable) as error:     # which of several faults is seen first may depend on the pieces
        assert len(str(error)) < 2_000, "an error as long as its input"
        return None


def _check_items(items: list[File | Gap], *, whole: bool) -> None:
    units = [
        (unit.start, unit.length) for item in items for unit in (item.chunks if isinstance(item, File) else (item,))
    ]
    at = 0
    for start, length in units:
        assert length > 0, "an empty unit"
        assert start >= at, "units that overlap"
        assert not whole or start == at, "bytes of the blob that are left out"
        at = start + length
    assert at == _BLOB if whole else at <= _BLOB, "units beyond the blob"
    _check_plan(items)


def _check_plan(items: list[File | Gap]) -> None:
    digests, where = wanted(items)
    assert where.keys() <= digests
    sizes = {item.digest: item.size for item in items if isinstance(item, File) and item.digest is not None}
    for found in ({}, sizes):
        plan = make_plan(items, found)
        covered = [at for start, length in plan.ranges for at in (start, start + length)]
        assert covered == sorted(covered), "ranges that overlap"
        for part in plan.parts:
            if isinstance(part, Fetch):
                inside = [s for s, n in plan.ranges if s <= part.start and part.start + part.length <= s + n]
                assert len(inside) == 1, "a part that is not fetched by one range"
