"""A thread that hashes while another goes on: large files here, blob and tar in ``differs``. Bytes and their order only."""

from __future__ import annotations

import queue
from typing import TYPE_CHECKING, Any

from layerstore.system.threads import Channel, Worker

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer as Buffer

__all__ = ["Hasher"]

_LOOK_SECONDS = 0.5


class Hasher(Worker):
    """For one thread that gives it pieces, and settles or closes it before it asks a digest. *depth* pieces wait."""

    def __init__(self, name: str = "layerstore-digest", depth: int = 4) -> None:
        super().__init__(name)
        self._pieces: Channel[tuple[Any, Buffer]] = Channel(depth)
        self._hashed: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._ending = False

    def add(self, digest: Any, piece: Buffer) -> None:
        """*piece* goes on what *digest* is of."""
        if not self._pieces.put((digest, piece), self.is_alive):
            self._complain()

    def settle(self) -> None:
        """Wait until all is hashed."""
        self.add(None, b"")
        while True:
            try:
                self._hashed.get(timeout=_LOOK_SECONDS)
            except queue.Empty:
                if not self.is_alive():
                    self._complain()
            else:
                return

    def _work(self) -> None:
        while (given := self._pieces.get(self._is_wanted)) is not None:
            digest, piece = given
            if digest is None:
                self._hashed.put(None)
            else:
                digest.update(piece)
        self._whole = self._ending

    def _stop(self) -> None:
        """What it was given it hashes first; nobody may be adding."""
        self._ending = True
        self._pieces.end()
