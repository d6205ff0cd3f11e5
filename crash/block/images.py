"""The disk after a power cut: what had been flushed, and of the rest what a crash state keeps, whole or torn.

An image is a mapping of 4 KiB block → bytes; what is not in it is zero. Tears keep *units* of a write (4096 or 512
bytes): a bit each, the first unit the lowest.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator

from crash.block.recording import Event

BLOCK = 4096
_ZERO = bytes(BLOCK)
_AT_ONCE = 512   # buffers in one pwritev

Image = dict[int, bytes]


def apply(image: Image, event: Event) -> None:
    """Let *event* (a write or a discard) happen to *image*."""
    if event.kind == "W":
        _write(image, event.offset, event.data)
    else:
        _discard(image, event.offset, event.length)


def apply_torn(image: Image, event: Event, kept: int, unit: int) -> None:
    """Only the units of a write whose bits are set in *kept*. A discard is not torn: it happens or not."""
    if event.kind != "W":
        if kept:
            apply(image, event)
        return
    for number in range(units(event, unit)):
        if kept >> number & 1:
            at = number * unit
            _write(image, event.offset + at, event.data[at:at + unit])


def units(event: Event, unit: int) -> int:
    return -(-event.length // unit)


def _write(image: Image, offset: int, data: bytes) -> None:
    if offset % BLOCK == 0 and len(data) == BLOCK:
        image[offset // BLOCK] = data
        return
    at = 0
    while at < len(data):
        block, start = divmod(offset + at, BLOCK)
        piece = data[at:at + BLOCK - start]
        if len(piece) < BLOCK:
            old = image.get(block, _ZERO)
            piece_whole = old[:start] + piece + old[start + len(piece):]
        else:
            piece_whole = piece
        image[block] = piece_whole
        at += len(piece)


def _discard(image: Image, offset: int, length: int) -> None:
    first, last = -(-offset // BLOCK), (offset + length) // BLOCK
    if last <= first:
        _write(image, offset, bytes(length))
        return
    if offset % BLOCK:
        _write(image, offset, bytes(first * BLOCK - offset))
    if (offset + length) % BLOCK:
        _write(image, last * BLOCK, bytes(offset + length - last * BLOCK))
    inside: Iterable[int] = range(first, last)
    if last - first > len(image):
        inside = [block for block in image if first <= block < last]
    for block in inside:
        if block in image:
            image[block] = _ZERO


def key(image: Image, base: Image) -> int:
    """Equal for equal images of one recording (in one process): what differs from *base*, in no order."""
    return sum(hash(item) for item in image.items() if base.get(item[0]) is not item[1])


def _runs(image: Image) -> Iterator[tuple[int, list[bytes]]]:
    first, run = -1, list[bytes]()
    for block in sorted(image):
        data = image[block]
        if data is _ZERO or data == _ZERO:
            continue
        if run and block == first + len(run) and len(run) < _AT_ONCE:
            run.append(data)
            continue
        if run:
            yield first, run
        first, run = block, [data]
    if run:
        yield first, run


def put(image: Image, fd: int) -> None:
    """Write *image* to a file or device that is zero."""
    for first, run in _runs(image):
        os.pwritev(fd, run, first * BLOCK)


def save(image: Image, path: str, size: int) -> None:
    """Make the sparse file at *path* be *image*."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        os.ftruncate(fd, size)
        put(image, fd)
    finally:
        os.close(fd)
