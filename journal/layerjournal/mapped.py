"""The data file that LMDB has mapped, and that somebody else may cut short: to touch a page that is gone is SIGBUS.

LMDB never makes it shorter. So it is to be as long as it was when last looked at, and as long as it says. Asked before
each transaction, and what was short once is given up: who makes it long again has put nothing back. Knows nothing of LMDB.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass

from layerjournal.effects import Descriptor
from layerjournal.errors import DamagedError

__all__ = ["Mapped", "Said"]

_TRIES = 3


@dataclass(frozen=True, slots=True)
class Said:
    """What the file says of itself: the length that it needs, by its transaction of that number."""

    length: int
    transaction: int


class Mapped:
    """The file at *path*; *problems* walks it.

    It keeps nothing of who has it mapped: what refers to its own owner is let go of only when Python collects cycles.
    """

    def __init__(self, path: str, *, problems: Callable[[str], list[str]]) -> None:
        self._path, self._descriptor, self._length = path, Descriptor(path, os.O_RDONLY), 0
        self._problems = problems
        self._short: str | None = None
        # what it said and had when it was whole all the same: its last pages were never written. Not by transaction: each
        # commit of anybody would have all walk it again
        self._allowed: tuple[int, int] | None = None

    def heed(self, say: Callable[[], Said]) -> None:
        """DamagedError if it is shorter than it was, or than it says, or is not there any more.

        *say* reads what it says of itself, out of the mapping.
        """
        if self._short is not None:
            raise DamagedError(self._short)
        length, said = self._look(), say()
        if said.length > length and not self._is_allowed(said.length, length):
            self._ask(say)

    def _is_allowed(self, said: int, length: int) -> bool:
        """Whether it was as long when it was walked, and says no more than then."""
        allowed = self._allowed
        return allowed is not None and length == allowed[1] and said <= allowed[0]

    def _look(self) -> int:
        """How long it is."""
        before = self._length            # first: another thread may look at it, too, when it has become longer
        status = os.fstat(self._descriptor.fd)
        if status.st_size < before:
            self._give_up(f"{self._path} was truncated while it is open: it has {status.st_size} of {before} bytes")
        if not status.st_nlink:
            self._give_up(f"{self._path} was removed while it is open")
        self._length = status.st_size
        return status.st_size

    def _ask(self, say: Callable[[], Said]) -> None:
        """Others may have made it longer since, or are changing it as it is walked: then that tells nothing."""
        for _ in range(_TRIES):
            said, length = say(), self._look()
            if said.length <= length:
                return
            problems = self._problems(self._path)
            if say() == said:
                if problems:
                    self._give_up(f"{self._path} was truncated while it is open: it has {length} of {said.length} bytes")
                self._allowed = said.length, length
                return

    def _give_up(self, why: str) -> None:
        self._short = why
        raise DamagedError(why)

    def close(self) -> None:
        """What is closed is not looked at any more."""
        self._descriptor.close()
