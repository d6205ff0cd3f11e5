"""Files that have their content already, on their way from whoever made them to the unpacker that gives them names.

How they come by their content is ``dedup``'s and the differ's. Here they only wait, a bounded number of them.
"""

from __future__ import annotations

import threading

from layerstore.partial import Donor
from layerstore.system.descriptors import Descriptor

__all__ = ["Donors"]

_MOST = 128                              # files that wait, each with a descriptor


class Donors:
    """Nameless files by the archive's path that they are to have; ``partial.Donors`` for a ``DiffTarget``.

    Whoever makes the archive's stream offers each before the stream gives the file's header; another thread takes them.
    What nobody took is closed, and so is gone, on leaving the ``with``.
    """

    def __init__(self) -> None:
        self._waiting: dict[bytes, Donor] = {}
        self._lock = threading.Lock()

    def has_room(self) -> bool:
        """Whether another one may be offered: else the file is to be written as usual."""
        return len(self._waiting) < _MOST

    def offer(self, path: bytes, file: Descriptor, size: int, sha256: bytes) -> None:
        """Let the archive's next file *path* be *file*, which has *size* bytes with that digest, and belongs to us now."""
        with self._lock:
            self._waiting[path] = Donor(file, size, sha256)

    def take(self, path: bytes) -> Donor | None:
        """See ``partial.Donors``."""
        with self._lock:
            return self._waiting.pop(path, None)

    def close(self) -> None:
        with self._lock:
            self._waiting.clear()        # each is closed when it is forgotten

    def __enter__(self) -> Donors:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()
