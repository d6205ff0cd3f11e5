"""Plain small files made by a process beside this one, whose program is ``creating``. What it is handed, and what not.

Each is used by one thread, which makes itself what the process does not: what has extended attributes or a time that not
every file system holds, and what fails, so that errors are told here alone. Starting and ending it: ``system.beside``.
"""

from __future__ import annotations

import marshal
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from layerstore.errors import IoError
from layerstore.system.beside import MESSAGE, Beside, can_start, started
from layerstore.trees.dress import Dresser, is_safe_time
from layerstore.trees.unpack import creating
from layerstore.trees.unpack.files import Births, NewFile

__all__ = ["Maker", "beside"]

# of one request: bytes of content, and of names. A batch of ``making`` has less content and fewer directories; its names
# may be longer.
_MEMORY = 2 << 20
_MOST_NAMES = MESSAGE // 2               # the other half is for the rest of some 130 rows


class Maker:
    """What makes files by asking the process: ``making.Helper``."""

    def __init__(self, process: Beside) -> None:
        self._process = process

    def is_ready(self) -> bool:
        """Whether it can be asked by now."""
        return self._process.is_ready()

    def make(self, files: Sequence[NewFile]) -> list[NewFile]:
        """Have *files* made; those that were not. IoError if the process is gone: nobody knows what it made."""
        rows: list[Any] = []             # ``creating.Row``
        asked: list[NewFile] = []
        rest: list[NewFile] = []
        directories: dict[int, int] = {}   # by their numbers here: their numbers in the request
        memory, at, names = self._process.memory, 0, 0
        for file in files:
            entry, data = file.entry, file.data
            end, name_end = at + len(data), names + len(file.name)
            if (
                entry.xattrs or not is_safe_time(entry.mtime_ns)
                or end > _MEMORY or name_end > _MOST_NAMES or len(directories) >= creating.MOST_DIRECTORIES
            ):
                rest.append(file)
                continue
            memory[at:end] = data
            attributes = entry[2:5]      # mode, uid and gid
            rows.append((
                directories.setdefault(file.dir_fd, len(directories)), file.name, Births.mode(attributes[0]), end - at,
                entry.mtime_ns, attributes,
            ))
            asked.append(file)
            at, names = end, name_end
        for file, digest in zip(asked, self._ask(rows, directories) if rows else (), strict=True):
            if digest is None:
                rest.append(file)
            else:
                file.digest, file.done = digest, True
        return rest

    def _ask(self, rows: list[Any], directories: Iterable[int]) -> Sequence[bytes | None]:
        try:
            self._process.send(rows, directories)
        except OSError:                  # all of it or nothing is sent: nothing was made, and the thread can make it
            return [None] * len(rows)
        answer = self._process.answer()
        if not answer:
            raise IoError("a process that makes files ended by itself")
        digests: list[bytes | None] | str = marshal.loads(answer)  # noqa: S302 - from our own process
        if isinstance(digests, str):
            raise IoError(f"a process that makes files ended by itself: {digests}")
        return digests


def _is_possible(dress: Dresser) -> bool:
    """Whether the program can be run, and keeps this process's powers."""
    return dress.sets_all and os.geteuid() == 0 and can_start(creating.__file__)


@contextmanager
def beside(lock_fd: int, dress: Dresser) -> Iterator[Maker | None]:
    """The process lives as long as this lasts. None where it cannot be had, or could not do what this one does.

    *lock_fd* keeps the tree from being removed: the process has it, too.
    """
    if not _is_possible(dress):
        yield None
        return
    with started(creating.__file__, lock_fd, memory=_MEMORY) as process:
        yield Maker(process) if process is not None else None
