"""The control: the same rig on a program that has nothing of layerstore in it. What it shows too is the file system's.

Files are made the careful way: written, fsynced, renamed, their directories fsynced. What was told must be there.
"""

from __future__ import annotations

import hashlib
import os

from crash.workloads import Workload
from layerstore.store import Store
from layerstore.system import kernel
from layerstore.testing import Verdict, expectation
from layerstore.testing.ledger import Ledger

NAME = "plain"
_FILES, _WEAR = 12, 240


def _content(name: str) -> bytes:
    return hashlib.shake_256(name.encode()).digest(6000)


def prepare(root: str, _ledger: Ledger) -> None:
    os.makedirs(root)
    _sync_directory(os.path.dirname(root))


def wear(directory: str) -> None:
    """Use the file system's own journal once all round, so that it is written over old blocks from then on.

    A block torn at 512 bytes shows what it was before; over zeros a torn commit block is as good as a whole one.
    """
    path = os.path.join(directory, "wear")
    for number in range(_WEAR):
        _write(path, _content(f"{number}"))
        os.rename(path, f"{path}-{number % 8}")
        _sync_directory(directory)
    for number in range(8):
        os.unlink(f"{path}-{number}")


def run(root: str, ledger: Ledger) -> None:
    for number in range(_FILES):
        name = f"file-{number}"
        with ledger.asking({f"file:{name}": "present"}):
            directory = os.path.join(root, f"directory-{number % 4}")
            os.makedirs(directory, exist_ok=True)
            _write(os.path.join(directory, f".{name}"), _content(name))
            os.rename(os.path.join(directory, f".{name}"), os.path.join(directory, name))
            _sync_directory(directory)
            _sync_directory(root)
        if number % 4 == 3:   # an unlink writes the superblock, and syncfs puts it in its place
            _write(os.path.join(root, "unlinked"), b"")
            with open(os.path.join(root, "unlinked"), "rb"):
                os.unlink(os.path.join(root, "unlinked"))
                _sync_filesystem(root)


def _write(path: str, data: bytes) -> None:
    with open(path, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _sync_filesystem(path: str) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        kernel.syncfs(fd)
    finally:
        os.close(fd)


def _sync_directory(path: str) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def look(root: str, lines: list[bytes]) -> Verdict:
    """Every file that was told is there with its content; one that is there at all is whole."""
    verdict = Verdict()
    for subject, allowed in expectation(lines).allowed.items():
        name = subject.removeprefix("file:")
        found = [
            path for number in range(4)
            if os.path.exists(path := os.path.join(root, f"directory-{number}", name))
        ]
        if None not in allowed and not found:
            verdict.violations.append(f"{name} is gone")
        for path in found:
            with open(path, "rb") as file:
                if file.read() != _content(name):
                    verdict.violations.append(f"{name} is not what was written")
    return verdict


def _nothing(_store: Store) -> None:
    """There is no store."""


WORKLOAD = Workload(NAME, prepare, run, _nothing)
