"""Any bytes that are unpacked are assembled again from the tree, byte for byte; any bytes as a tar-split are refused by
``DamagedError``, or understood.

Of seven inputs of eight the headers' sums are set right before they are unpacked. As a tar-split they are what its frame
holds; as the frame itself they are looked at if they begin like one, and for one input of 16. What is shorter than a header
is unpacked, and what is marked as a tar is decoded, for one input of 16.
"""

from __future__ import annotations

from fuzz import scratch
from fuzz.packing import MAGIC, packed
from fuzz.pieces import one_of
from fuzz.sums import with_right_sums
from fuzz.targets.unpack import FORM, LIMITS
from layerstore.errors import ArchiveError, DamagedError, LimitExceededError
from layerstore.formats.tarsplit import kept_problems, read_tar_split
from layerstore.model import DiffTarget
from layerstore.trees.assemble import assembled
from layerstore.trees.unpack import unpack

_outside = scratch.Outside()
_layer = scratch.Layer("tree", _outside.fd)
_file = scratch.MemoryFile()


def check(data: bytes) -> None:
    both = one_of(data, 16)
    if both or len(data) >= 512:
        _round_trip(with_right_sums(data))
    if both or data[257:262] != b"ustar":
        _decode(packed(data))
    if both or data.startswith(MAGIC):
        _decode(data)


def _round_trip(data: bytes) -> None:
    tree = _layer.emptied()
    target = DiffTarget(tree.dir_fd, tree.diff_fd, overlay_form=FORM, limits=LIMITS)
    try:
        made = unpack([data], target, require_end=False)
    except (ArchiveError, LimitExceededError):
        return
    assert b"".join(assembled(tree.dir_fd)) == data, "another tar came out"
    assert not list(kept_problems(tree.dir_fd, made.tar_split_digest))


def _decode(data: bytes) -> None:
    try:
        list(read_tar_split(_file.holding(data).fd))
    except DamagedError:
        return
