"""Reader locks: a process that reads layers' trees keeps them from being moved or unlinked, as long as it lives."""

from __future__ import annotations

from collections.abc import Sequence

from layerstore.errors import UnknownLayerError
from layerstore.lifecycle import catalog
from layerstore.opening.handle import Handle
from layerstore.system import fs


class ReaderLock:
    """Shared locks on the trees of layers: while held, they can be hidden, but not moved or unlinked.

    Held by this process alone, and gone when it dies; a lease is for longer. Takes no lock that a writer holds
    while it syncs: only a deletion takes the tree's lock exclusively. *wait* seconds for it, then BusyError.
    """

    def __init__(self, handle: Handle, layer_ids: Sequence[str], *, damaged: bool = False, wait: float = 30.0) -> None:
        self._locks: list[fs.TreeLock] = []   # no ExitStack: what an interrupt raises in one keeps all that it was to leave
        self._wait = wait
        try:
            for layer_id in layer_ids:
                self._lock(handle, layer_id, damaged)
        except BaseException:
            self.close()
            raise

    def _lock(self, handle: Handle, layer_id: str, damaged: bool) -> None:
        lock = fs.lock_tree(handle.dirs["layers"], layer_id, shared=True, wait=self._wait, point="reader.lock")
        if lock is not None:
            self._locks.append(lock)
        with handle.read() as view:   # looked at again under the lock: it may have been deleted meanwhile
            here = catalog.layer(view, layer_id, damaged=damaged)
        if lock is None or fs.read_txid(lock.fd) != here.txid:
            raise UnknownLayerError(f"the tree of layer {layer_id} is not in its place", hint="run 'layerstore check'")

    def close(self) -> None:
        while self._locks:
            self._locks.pop().close()

    def __enter__(self) -> ReaderLock:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()
