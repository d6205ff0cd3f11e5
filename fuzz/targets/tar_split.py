"""Any bytes that are unpacked are assembled again from the tree, byte for byte; any bytes as a tar-split are refused by
``DamagedError``, or understood.
"""

from __future__ import annotations

import os
import tempfile

from fuzz.targets.unpack import FORM, LIMITS, remove
from layerstore.assemble import assembled
from layerstore.compression import ZstdWriter
from layerstore.errors import ArchiveError, DamagedError, LimitExceededError
from layerstore.model import DiffTarget
from layerstore.tarsplit import kept_problems, read_tar_split
from layerstore.unpack import unpack

_BASE = "/dev/shm" if os.path.isdir("/dev/shm") else None


def check(data: bytes) -> None:
    _round_trip(data)
    _decode(data)
    packed: list[bytes] = []
    writer = ZstdWriter(packed.append, level=1)
    writer.write(data)
    writer.close()
    _decode(b"".join(packed))


def _round_trip(data: bytes) -> None:
    tree = tempfile.mkdtemp(prefix="layerstore-fuzz-", dir=_BASE)
    try:
        os.mkdir(os.path.join(tree, "diff"))
        dir_fd, diff_fd = os.open(tree, os.O_RDONLY), os.open(os.path.join(tree, "diff"), os.O_RDONLY)
        try:
            made = unpack([data], DiffTarget(dir_fd, diff_fd, overlay_form=FORM, limits=LIMITS), require_end=False)
            assert b"".join(assembled(dir_fd)) == data, "another tar came out"
            assert not list(kept_problems(dir_fd, made.tar_split_digest))
        except (ArchiveError, LimitExceededError):
            pass
        finally:
            os.close(diff_fd)
            os.close(dir_fd)
    finally:
        remove(tree)


def _decode(data: bytes) -> None:
    with tempfile.TemporaryFile(dir=_BASE) as file:
        file.write(data)
        file.flush()
        try:
            list(read_tar_split(file.fileno()))
        except DamagedError:
            return
