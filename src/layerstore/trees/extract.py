"""Extracting: a chain of layer trees in overlay on-disk form becomes one plain directory. Knows no store.

Here is where to, and what may stand in the way: the destination, its privacy while it is filled, privilege, errors. What
is copied, and what hides what, is ``merge``'s.

What this process cannot set (owners, devices, privileged attributes) is counted, and never fails an extraction.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from layerstore.errors import InvalidArgumentError, PrivilegeError
from layerstore.system import fs, kernel
from layerstore.system.idmap import IDENTITY, IdMap
from layerstore.trees.meant import Recorded
from layerstore.trees.merge import Merger

__all__ = ["ExtractReport", "extract_chain"]

_UNREADABLE = "run as root, or in a user namespace (unshare --user --map-root-user layerstore extract …)"
_NOT_OURS = "run as root, or extract to a directory of your own"


@dataclass(frozen=True, slots=True)
class ExtractReport:
    """What became of an extraction.

    ``entries`` counts the paths made, the destination itself not among them; ``bytes`` what was copied of
    files' content, without holes and with every hard-linked file once; ``unset`` owners, devices and
    attributes that this process, or the destination's file system, could not have.
    """

    entries: int
    bytes: int
    unset: int


def extract_chain(
    diffs: Sequence[str], dest: str, *, progress: Callable[[int], None] | None = None,
    into_existing_empty: bool = True, overlay_form: str | None = None,
    recorded: Sequence[Recorded | None] | None = None, ids: IdMap = IDENTITY,
) -> ExtractReport:
    """Copy the merged content of the layer trees *diffs*, base first, into *dest*.

    *dest* is absent, or (with *into_existing_empty*) an empty directory; while it is being filled nobody else
    can enter it. ``progress(n)`` is told of *n* more bytes of content copied. *overlay_form* says which
    attributes mean an opaque directory: ``trusted``, ``user``, or None for both. *recorded* has, for each of
    *diffs*, what its tree is meant to be (None: it is what it is); *ids* is the store's map.

    Raises InvalidArgumentError for a *dest* that will not do, PrivilegeError for what this process may not
    read (with ``trusted``, also if it could not see which directories are opaque), NoSpaceError, IoError. On
    an error what was copied so far stays in *dest*, private to its owner, to be looked at and removed by the
    caller.

    Durability: none; nothing is synced. A crash leaves *dest* incomplete.
    """
    _check(diffs, dest, overlay_form)
    merger: Merger | None = None
    try:
        dest_fd = _open_dest(dest, into_existing_empty=into_existing_empty)
        try:
            merger = Merger(diffs, dest_fd, progress or _ignore, overlay_form, recorded or [None] * len(diffs), ids)
            merger.run()
            return ExtractReport(merger.entries, merger.copied, merger.unset)
        finally:
            if merger is not None:
                merger.close()
            os.close(dest_fd)
    except OSError as error:
        at = os.fsdecode(merger.at) if merger is not None else ""
        doing = f"extracting {at!r} to {dest}" if at else f"extracting to {dest}"
        if error.errno in (errno.EACCES, errno.EPERM):
            hint = _NOT_OURS if merger is None else _UNREADABLE
            raise PrivilegeError(f"{doing}: {error.strerror}", hint=hint) from error
        raise fs.host_error(error, doing) from error


def _ignore(_count: int) -> None:
    pass


def _check(diffs: Sequence[str], dest: str, overlay_form: str | None) -> None:
    if not diffs:
        raise InvalidArgumentError("there is no layer to extract")
    if overlay_form not in (None, "trusted", "user"):
        raise InvalidArgumentError(f"overlay form {overlay_form!r} is neither 'trusted' nor 'user'")
    if "\0" in dest or not dest:
        raise InvalidArgumentError(f"{dest!r} is not a path")
    real = os.path.realpath(dest)
    for diff in diffs:
        if os.path.commonpath((real, os.path.realpath(diff))) == os.path.realpath(diff):
            raise InvalidArgumentError(f"{dest} lies inside the layer's tree {diff}")
    if overlay_form == "trusted" and not kernel.has_trusted_xattrs():
        raise PrivilegeError(
            f"extracting to {dest}: without reading trusted.* attributes, deleted files would return",
            hint="run as root of the initial user namespace",
        )


def _open_dest(dest: str, *, into_existing_empty: bool) -> int:
    """Make *dest*, or check that it is an empty directory; close it to others until it is complete."""
    try:
        os.mkdir(dest, 0o700)
    except FileExistsError:
        if not into_existing_empty:
            raise InvalidArgumentError(f"{dest} exists already") from None
    except (FileNotFoundError, NotADirectoryError):
        raise InvalidArgumentError(f"the directory in which {dest} is to be made does not exist") from None
    try:
        fd = os.open(dest, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except NotADirectoryError:
        raise InvalidArgumentError(f"{dest} is not a directory") from None
    try:
        if os.listdir(fd):
            raise InvalidArgumentError(
                f"{dest} is not empty", hint="name an absent or empty directory",
            )
        os.fchmod(fd, 0o700)
    except BaseException:
        os.close(fd)
        raise
    return fd
