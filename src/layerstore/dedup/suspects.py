"""Files that were found rotten while content was taken from them: noted in the layer's tree, for ``check`` to see first.

``layers/<id>/suspects`` holds paths, each with a zero byte after it. It is advice: it may be torn, lost, wrong or old, and
whoever reads it looks for himself. It goes where its tree goes, so that nobody has to sweep it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress

from layerstore.system import fs
from layerstore.system.idmap import IdMap
from layerstore.trees.verify import Problem, tree_problems

__all__ = ["NAME", "is_rotten", "note", "problems", "suspects"]

NAME = "suspects"
_MOST_BYTES = 1 << 16                    # of the file; more rot than that is found by looking at everything


def note(tree_fd: int, path: bytes) -> None:
    """Say that the file *path* of the layer whose directory is *tree_fd* is suspect; once, and never an error.

    Durability: none; what is lost is found again by who takes from the file again.
    """
    with suppress(OSError):
        here = fs.read_file(tree_fd, NAME, maximum=_MOST_BYTES)
        line = path + b"\0"
        if here is None or (len(here) + len(line) <= _MOST_BYTES and path not in here.split(b"\0")):
            fs.append(tree_fd, NAME, line, point="suspect.append")


def suspects(tree_fd: int) -> frozenset[bytes]:
    """The paths that were noted in the layer whose directory is *tree_fd*."""
    try:
        data = fs.read_file(tree_fd, NAME, maximum=_MOST_BYTES) or b""
    except OSError:
        return frozenset()
    return frozenset(path for path in data.split(b"\0")[:-1] if path)   # after the last: nothing, or what was torn


def problems(
    tree_fd: int, manifest_digest: str, *, overlay_form: str, ids: IdMap, read: Callable[[int], None] = lambda _n: None,
) -> Iterator[Problem]:
    """What is wrong now with the files that were noted; *read* is told of each *n* bytes that are hashed.

    DamagedError if the manifest cannot be decoded.
    """
    paths = suspects(tree_fd)
    if paths:
        yield from tree_problems(
            tree_fd, manifest_digest, content=True, overlay_form=overlay_form, ids=ids, only=paths, read=read,
        )


def is_rotten(tree_fd: int, manifest_digest: str, path: bytes, *, overlay_form: str, ids: IdMap) -> bool:
    """Whether the file *path* is not what the manifest says, or the manifest not what the journal says."""
    found = tree_problems(
        tree_fd, manifest_digest, content=True, overlay_form=overlay_form, ids=ids, only=frozenset({path}),
    )
    return any(not problem.unreadable for problem in found)
