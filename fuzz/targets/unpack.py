"""Any bytes, unpacked, change nothing outside of their tree, and end in a tree that is what its manifest says, or in
a typed error. The same bytes come again, one for one, from the tree and the tar-split, and from the tree and the lines for
the Go tools.

Of seven inputs of eight the headers' sums are set right first. For one of 64 it is done twice, with threads that make the
files and nearly all directories put away: both must give the same manifest and tar-split.
"""

from __future__ import annotations

import os

from fuzz.canary import Canary
from fuzz.golines import rebuilt
from fuzz.pieces import one_of
from fuzz.scratch import Layer
from fuzz.sums import with_right_sums
from layerstore.errors import ArchiveError, LimitExceededError
from layerstore.model import DiffTarget, Limits
from layerstore.trees.assemble import assembled
from layerstore.trees.gotarsplit import lines
from layerstore.trees.unpack import Unpacked, nodes, unpack
from layerstore.trees.verify import tree_problems

LIMITS = Limits(max_entries=200, max_bytes=4 << 20, max_pax_record=1 << 14, max_depth=40)
FORM = "trusted" if os.geteuid() == 0 else "user"

_canary: list[Canary] = []


def check(data: bytes) -> None:
    if not _canary:
        _canary.append(Canary())
    canary, tar = _canary[0], with_right_sums(data)
    try:
        first = _unpack(tar, canary)
        if one_of(data, 64):
            assert first == _otherwise(tar, canary), "the same bytes gave two different layers"
    except AssertionError:
        _canary.clear()   # the next one begins with what is whole
        raise


def _otherwise(tar: bytes, canary: Canary) -> tuple[str, str] | None:
    held, nodes.MOST_HELD = nodes.MOST_HELD, 2
    try:
        return _unpack(tar, canary, alone=0)
    finally:
        nodes.MOST_HELD = held


def _unpack(tar: bytes, canary: Canary, *, alone: int | None = None) -> tuple[str, str] | None:
    """The digests of manifest and tar-split; *alone* 0: small files are made by threads."""
    tree = canary.tree.emptied()
    target = DiffTarget(tree.dir_fd, tree.diff_fd, overlay_form=FORM, limits=LIMITS)
    try:
        made = unpack([tar[:700], tar[700:]], target, require_end=False, alone=alone)
    except (ArchiveError, LimitExceededError):
        return None
    finally:
        canary.check()
    _look(tar, tree, made)
    return made.manifest_digest, made.tar_split_digest


def _look(tar: bytes, tree: Layer, made: Unpacked) -> None:
    problems = list(tree_problems(
        tree.dir_fd, made.manifest_digest, content=True, overlay_form=FORM, tar_split=made.tar_split_digest,
    ))
    assert not problems, f"the tree is not what its records say: {problems[:3]}"
    assert b"".join(assembled(tree.dir_fd)) == tar, "another tar came out"
    read: list[bytes] = []
    made_lines = b"".join(lines(tree.dir_fd, read.append))
    assert rebuilt(made_lines, tree.diff_fd) == tar, "another tar came out of the lines for the Go tools"
    assert b"".join(read) == tar, "what the lines for the Go tools were made of was another tar"
