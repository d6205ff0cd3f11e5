"""Creating an empty store.

In order, and what a crash in each gap leaves:

1. the root directory, locked exclusively  – an empty directory, which the next create takes over
2. its subdirectories                      – the same
3. ``journal/`` (made aside and renamed)   – a root without ``store.json``: the next create goes on from here
4. everything fsynced
5. ``store.json`` (aside, fsynced, renamed) and the root fsynced – a store
"""

from __future__ import annotations

import os
import uuid as uuid_module
from collections.abc import Callable
from typing import Any

from layerstore.errors import InvalidArgumentError
from layerstore.opening.config import text_of
from layerstore.opening.form import Form
from layerstore.opening.handle import DIRECTORIES
from layerstore.opening.journaling import create_journal, journal_errors, open_journal
from layerstore.system import filesystem, flock, fs
from layerstore.system.removing import remove_tree

__all__ = ["create"]


def create(root: str, *, form: Form, allow_filesystem: tuple[str, ...], clock: Callable[[], int]) -> None:
    """Make an empty store at *root* if there is none; safe against another process doing the same.

    Durability: when it returns, the empty store is on disk. A crash before leaves what the next create completes.
    """
    try:
        os.makedirs(root, mode=0o700, exist_ok=True)
        with fs.open_dir(root) as root_fd:
            _create(root_fd, root, form, allow_filesystem, clock)
    except OSError as error:
        raise fs.host_error(error, f"creating a store at {root}") from error


def _create(
    root_fd: int, root: str, form: Form, allow_filesystem: tuple[str, ...], clock: Callable[[], int],
) -> None:
    if fs.exists(root_fd, "store.json"):
        return
    ids = form.id_map()
    filesystem.probe(root_fd, allow=allow_filesystem)
    flock.lock_root(root_fd, exclusive=True)
    if fs.exists(root_fd, "store.json"):
        return
    strangers = set(fs.names_in(root_fd)) - {*DIRECTORIES, "journal", ".store.json.new"}
    if strangers and not all(n.startswith((".probe-", "journal.", ".journal")) for n in strangers):
        raise InvalidArgumentError(
            f"{root} is neither a store nor empty: it holds {', '.join(sorted(strangers)[:3])}",
            hint="name an empty or absent directory",
        )
    filesystem.probe(root_fd, allow=allow_filesystem, functional=True)
    # a store with a map is for user namespaces, where trusted.* cannot be read
    trusted = ids is None and filesystem.takes_trusted(root_fd)
    config = {"overlay_form": form.overlay or ("trusted" if trusted else "user"), **({"id_map": ids} if ids else {})}
    _make(root_fd, root, config, clock)


def _make(root_fd: int, root: str, own: dict[str, Any], clock: Callable[[], int]) -> None:
    for name in fs.names_in(root_fd):
        if name.startswith(".probe-"):   # of a create that was killed
            remove_tree(root_fd, name, point="create.clear")
    for name in DIRECTORIES:
        if not fs.exists(root_fd, name):
            fs.make_dir(root_fd, name, point="create.directory")
    path = os.path.join(root, "journal")
    with journal_errors(None):
        if os.path.isdir(path):
            journal = open_journal(path, clock=clock)
        else:
            journal = create_journal(path, uuid=str(uuid_module.uuid4()), clock=clock)
    with journal:
        text = text_of(own, journal.uuid)
    fs.sync_filesystem(root_fd, point="create.sync")
    fs.replace_file(root_fd, "store.json", text, point="create.config", sync=True)
    fs.sync_dir(root_fd, point="create.root.sync")
    with fs.open_dir(os.path.dirname(os.path.abspath(root))) as parent:
        fs.sync_dir(parent, point="create.parent.sync")
