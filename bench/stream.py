"""Layers that are larger than one wants to keep, written as they are made: ``python -m bench.stream FILES SIZE >tar``.

FILES files of SIZE bytes each, a thousand to a directory. Contents are a piece of random bytes, over and over: no
expansion limit stands in the way, and making them costs less than reading them.
"""

from __future__ import annotations

import os
import random
import sys
import tarfile

_PIECE = random.Random(1).randbytes(1 << 20)
_TIME = 1_700_000_000


def write(out: int, files: int, size: int) -> None:
    pending = bytearray()
    for number in range(files):
        if number % 1000 == 0:
            directory = tarfile.TarInfo(f"d{number // 1000:05d}")
            directory.type, directory.mode, directory.mtime = tarfile.DIRTYPE, 0o755, _TIME
            pending += directory.tobuf(tarfile.PAX_FORMAT)
        info = tarfile.TarInfo(f"{directory.name}/f{number:07d}")
        info.size, info.mode, info.mtime = size, 0o644, _TIME
        pending += info.tobuf(tarfile.PAX_FORMAT)
        left = size
        while left > 0:
            pending += _PIECE[:left]
            left -= len(_PIECE)
            if len(pending) >= len(_PIECE):
                _all(out, pending)
        pending += bytes(-size % 512)
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
    write(sys.stdout.fileno(), int(sys.argv[1]), int(sys.argv[2]))
