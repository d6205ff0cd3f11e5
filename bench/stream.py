"""Layers that are larger than one wants to keep, written as they are made: ``python -m bench.stream KIND COUNT SIZE >tar``.

COUNT entries of one of ``KINDS``, its files of SIZE bytes each. Contents are a piece of random bytes, over and over: no
expansion limit stands in the way, and making them costs less than reading them.
"""

from __future__ import annotations

import os
import random
import sys
import tarfile
from collections.abc import Iterator

_PIECE = random.Random(1).randbytes(1 << 20)
_TIME = 1_700_000_000
_EACH = 1_000   # entries of a directory


def _info(name: str, kind: bytes = tarfile.REGTYPE, *, size: int = 0, link: str = "", **pax: str) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.size, info.linkname, info.mtime = kind, size, link, _TIME
    info.mode, info.pax_headers = 0o755 if kind == tarfile.DIRTYPE else 0o644, pax
    return info


def _files(count: int, size: int) -> Iterator[tarfile.TarInfo]:
    """A thousand to a directory."""
    for number in range(count):
        if number % _EACH == 0:
            yield _info(f"d{number // _EACH:05d}", tarfile.DIRTYPE)
        yield _info(f"d{number // _EACH:05d}/f{number:07d}", size=size)


def _one_directory(count: int, size: int) -> Iterator[tarfile.TarInfo]:
    yield _info("d", tarfile.DIRTYPE)
    for number in range(count):
        yield _info(f"d/f{number:07d}", size=size)


def _directories(count: int, _size: int) -> Iterator[tarfile.TarInfo]:
    """Empty ones, a thousand to a directory, which are counted too."""
    for number in range(count):
        above, within = divmod(number, _EACH)
        yield _info(f"d{above:05d}/e{number:07d}" if within else f"d{above:05d}", tarfile.DIRTYPE)


def _wide(count: int, _size: int) -> Iterator[tarfile.TarInfo]:
    """Empty directories, all in one."""
    yield _info("d", tarfile.DIRTYPE)
    for number in range(count - 1):
        yield _info(f"d/e{number:07d}", tarfile.DIRTYPE)


def _implied(count: int, size: int) -> Iterator[tarfile.TarInfo]:
    """Files each in a directory that has no entry of its own: half as many, so that both together are *count*."""
    for number in range(count // 2):
        yield _info(f"d{number // _EACH:05d}/e{number:07d}/f", size=size)


def _hardlinks(count: int, size: int) -> Iterator[tarfile.TarInfo]:
    """Many names for each file: ext4 has no more than 65,000 for one."""
    for number in range(count):
        above, within = divmod(number, 50 * _EACH)
        first = f"f{above:03d}"
        yield _info(f"l{number // _EACH:05d}-{number:07d}", tarfile.LNKTYPE, link=first) if within else _info(first, size=size)


def _symlinks(count: int, _size: int) -> Iterator[tarfile.TarInfo]:
    for number in range(count):
        yield _info(f"d{number // _EACH:05d}/l{number:07d}", tarfile.SYMTYPE, link=f"../to/{number:07d}")


def _attributes(count: int, size: int) -> Iterator[tarfile.TarInfo]:
    """Files with a PAX header each, which has an attribute and a time of its own."""
    for number in range(count):
        yield _info(f"d{number // _EACH:05d}/f{number:07d}", size=size,
                    **{"SCHILY.xattr.user.number": f"{number:07d}", "mtime": f"{_TIME}.{number:09d}"})


def _replaced(count: int, size: int) -> Iterator[tarfile.TarInfo]:
    """Files, and one of them again: the manifest has a record that replaces another."""
    yield from _files(count - 1, size)
    yield _info("d00000/f0000000", size=size)


def _deep(count: int, size: int) -> Iterator[tarfile.TarInfo]:
    """*count* directories, each in the one before as far as ``Limits.max_depth`` goes, then beside it."""
    for number in range(0, count, 250):
        yield _info("/".join([f"d{number:07d}", *["d"] * 249, "f"]), size=size)


KINDS = {
    "files": _files, "one directory": _one_directory, "directories": _directories, "directories in one": _wide,
    "implied directories": _implied, "deep": _deep, "hard links": _hardlinks, "symbolic links": _symlinks, "attributes": _attributes,
    "replaced": _replaced,
}


def write(out: int, kind: str, count: int, size: int) -> None:
    pending = bytearray()
    for info in KINDS[kind](count, size):
        pending += info.tobuf(tarfile.PAX_FORMAT)
        left = info.size
        while left > 0:
            pending += _PIECE[:left]
            left -= len(_PIECE)
            if len(pending) >= len(_PIECE):
                _all(out, pending)
        pending += bytes(-info.size % 512)
        if len(pending) >= len(_PIECE):
            _all(out, pending)
    pending += bytes(1024)
    _all(out, pending)


def _all(out: int, pending: bytearray) -> None:
    view = memoryview(pending)
    while view:
        view = view[os.write(out, view):]
    view.release()
    pending.clear()


if __name__ == "__main__":
    write(sys.stdout.fileno(), sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
