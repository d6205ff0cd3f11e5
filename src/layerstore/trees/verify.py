"""A tree against its manifest: is every file still what it was when the layer was made? Reads only, follows nothing.

``check`` and the adoption of staged trees stand on it. What a manifest says, and how it is written, is ``manifest``'s;
how one path is compared with its entry, ``compare``'s.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass

from layerstore.formats.manifest import NAME, NODE, OVERRIDE, ManifestEntry, final_entries, manifest_digest
from layerstore.formats.packed import open_regular
from layerstore.formats.tarsplit import NAME as SPLIT_NAME
from layerstore.formats.tarsplit import kept_problems
from layerstore.system.descriptors import Descriptor
from layerstore.system.idmap import IDENTITY, IdMap
from layerstore.trees import dirfds
from layerstore.trees.compare import Problem, compare, content_problem, unlooked

__all__ = ["Problem", "Walk", "tree_problems", "verify_tree"]

Later = Callable[[ManifestEntry, int], None]


@dataclass(frozen=True, slots=True)
class Walk:
    """A walk over a manifest that may be over before its end, and begin where another one was.

    ``start``: so many entries were compared before; ``sound``: and nothing was wrong with them. ``go_on`` is asked before
    each further one, by its number: when it says no, the walk is over, and nothing is said of what is too many.
    """

    start: int = 0
    sound: bool = True
    go_on: Callable[[int], bool] = lambda _number: True


_WHOLE = Walk()


def tree_problems(
    tree_fd: int, digest: str, *, content: bool, overlay_form: str | None = None, tar_split: str | None = None,
    ids: IdMap = IDENTITY, only: Collection[bytes] | None = None, later: Later | None = None,
    read: Callable[[int], None] = lambda _n: None, walk: Walk = _WHOLE,
) -> Iterator[Problem]:
    """What is wrong with a layer's directory (``manifest``, ``diff/``), given its manifest's *digest*.

    Reads only. *content* also compares every file's bytes; *only* of these paths (None: of all). *overlay_form* and *ids*
    are the store's. *tar_split* is the digest of ``tar-split``, if it has one. With *later* no content is compared here:
    that is told of each file whose content is to be, and its number in the manifest. *read* is told of each *n* bytes
    that are hashed here. *walk*: where to begin, and whether to go on.
    DamagedError if manifest or tar-split cannot be decoded.
    """
    if tar_split is not None:
        yield from tar_split_problems(tree_fd, tar_split, read)
    try:
        actual = manifest_digest(tree_fd, read)
        if actual != digest:
            yield Problem(NAME.encode(), f"the manifest's digest is {actual}, not {digest}", code="manifest-wrong")
            return
    except OSError as error:
        yield unlooked(NAME.encode(), error, missing="manifest-wrong", failed="manifest-wrong")
        return
    try:
        diff = Descriptor("diff", dirfds.DIRECTORY, dir_fd=tree_fd)
    except OSError as error:
        yield unlooked(b"", error)
        return
    with diff as diff_fd, open_regular(NAME, tree_fd) as manifest_fd:
        yield from verify_tree(
            diff_fd, manifest_fd, content=content, overlay_form=overlay_form, ids=ids, only=only, later=later,
            read=read, walk=walk,
        )


def tar_split_problems(tree_fd: int, digest: str, read: Callable[[int], None]) -> Iterator[Problem]:
    """What is wrong with ``tar-split`` of that *digest*, and with the files that it keeps. DamagedError as above."""
    name = SPLIT_NAME.encode()
    try:
        yield from (Problem(path or name, what, code="kept-wrong" if path else "tar-split-wrong")
                    for path, what in kept_problems(tree_fd, digest, read))
    except OSError as error:
        yield unlooked(name, error, missing="tar-split-wrong", failed="tar-split-wrong")


def verify_tree(
    diff_fd: int, manifest: str | bytes | int, *, content: bool, overlay_form: str | None = None, ids: IdMap = IDENTITY,
    only: Collection[bytes] | None = None, later: Later | None = None, read: Callable[[int], None] = lambda _n: None,
    walk: Walk = _WHOLE,
) -> Iterator[Problem]:
    """Compare the tree under *diff_fd* with a manifest.

    Compared are type, mode, size, mtime, owner, link target, attributes, what is missing, what is too many
    and, with *content*, every byte. What ``unset`` names is not. With *only*, of those paths, and nothing is too many.
    *later*, *read* and *walk* as in ``tree_problems``.

    Reads only, follows nothing. DamagedError if the manifest is malformed.
    """
    fds = dirfds.DirFds(diff_fd)
    present = listed = number = 0
    sound = walk.sound
    look = _looker(fds, later, read, lambda: number) if content else None
    try:
        for number, entry in enumerate(final_entries(manifest)):
            if not on_disk(entry) or (only is not None and entry.path not in only):
                continue
            present += 1
            if number >= walk.start:
                if not walk.go_on(number):
                    return
                for problem in _problems(fds, entry, look, overlay_form, ids):
                    sound = False
                    yield problem
            if entry.type == "dir" and sound and only is None:
                try:
                    listed += _listed(fds.get(entry.path))
                except OSError:          # it was sound when it was compared
                    sound = False
        # else nothing can be too many, and no paths need to be remembered
        if only is None and (not sound or listed + 1 > present):
            yield from _surplus(fds, {entry.path for entry in final_entries(manifest)})
    finally:
        fds.close()


def on_disk(entry: ManifestEntry) -> bool:
    """Whether anything is meant to be at its path: of a device that could not be made, there is nothing."""
    return not entry.unset & NODE or bool(entry.unset & OVERRIDE)


def _looker(
    fds: dirfds.DirFds, later: Later | None, read: Callable[[int], None], number: Callable[[], int],
) -> Callable[[ManifestEntry], Problem | None]:
    if later is None:
        return lambda entry: content_problem(fds, entry, read)

    def tell(entry: ManifestEntry) -> None:
        later(entry, number())

    return tell


def _problems(
    fds: dirfds.DirFds, entry: ManifestEntry, look: Callable[[ManifestEntry], Problem | None] | None, form: str | None,
    ids: IdMap,
) -> Iterator[Problem]:
    try:
        found = list(compare(fds, entry, form=form, ids=ids, content=look))
        if entry.type == "dir" and not found:
            _listed(fds.get(entry.path))
        yield from found
    except OSError as error:
        yield unlooked(entry.path, error)


def _listed(dir_fd: int) -> int:
    """How many names a directory has; they are not held, for it may have a million."""
    with os.scandir(dir_fd) as names:
        return sum(1 for _ in names)


def _surplus(fds: dirfds.DirFds, known: set[bytes]) -> Iterator[Problem]:
    todo = [b""]
    while todo:
        path = todo.pop()
        try:
            with os.scandir(fds.get(path)) as children:
                found = [(os.fsencode(c.name), c.is_dir(follow_symlinks=False)) for c in children]
        except OSError:
            continue                     # already told
        for name, is_dir in sorted(found):
            child = path + b"/" + name if path else name
            if child not in known:
                yield Problem(child, "is not in the manifest", code="path-extra")
            elif is_dir:
                todo.append(child)
