"""Reader locks: a process that reads layers' trees keeps them from being moved or unlinked, as long as it lives."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType

from layerstore.errors import BeneathMissingError, UnknownLayerError
from layerstore.lifecycle import catalog
from layerstore.model import Beneath
from layerstore.opening.beneath import home, looking
from layerstore.opening.handle import Handle
from layerstore.system import flock, fs


class ReaderLock:
    """Shared locks on the trees of layers: while held, they can be hidden, but not moved or unlinked.

    Held by this process alone, and gone when it dies; a lease is for longer. Takes no lock that a writer holds
    while it syncs: only a deletion takes the tree's lock exclusively. *wait* seconds for it, then BusyError. Of a layer
    beneath on a network's file system there is none to be had: it is only looked whether the tree is there. *recorded*:
    what a row says of layers that were in stores beneath, as for ``catalog.layer``.
    """

    def __init__(
        self, handle: Handle, layer_ids: Sequence[str], *, damaged: bool = False, wait: float = 30.0,
        recorded: Mapping[str, Beneath] = MappingProxyType({}),
    ) -> None:
        # no ExitStack: what an interrupt raises in one keeps all that it was to leave
        self._locks: list[flock.TreeLock] = []
        self._wait, self._recorded = wait, recorded
        try:
            for layer_id in layer_ids:
                self._lock(handle, layer_id, damaged)
        except BaseException:
            self.close()
            raise

    def _lock(self, handle: Handle, layer_id: str, damaged: bool) -> None:
        while True:
            store, held = home(handle, layer_id), len(self._locks)
            txid = self._held(store, layer_id) if store.locks else fs.txid_at(store.dirs["layers"], layer_id)
            with looking(handle) as view:   # looked at again under the lock: it may have been deleted meanwhile
                here = catalog.layer(view, layer_id, damaged=damaged, recorded=self._recorded.get(layer_id))
            if txid == here.txid:
                return
            if here.store == (None if store is handle else store.config["uuid"]):
                break
            while len(self._locks) > held:   # it is in another store by now: one of the two came, or went
                self._locks.pop().close()
        if here.store is not None:
            raise BeneathMissingError(
                f"the tree of layer {layer_id} is not in its place in the store {here.store} beneath", store=here.store,
                layer_id=layer_id,
            )
        raise UnknownLayerError(f"the tree of layer {layer_id} is not in its place", hint="run 'layerstore check'")

    def _held(self, store: Handle, layer_id: str) -> str | None:
        """The txid of the tree that is in the layer's place, which is held from now on."""
        lock = flock.lock_tree(store.dirs["layers"], layer_id, shared=True, wait=self._wait, point="reader.lock")
        if lock is None:
            return None
        self._locks.append(lock)
        return fs.read_txid(lock.fd)

    def close(self) -> None:
        while self._locks:
            self._locks.pop().close()

    def __enter__(self) -> ReaderLock:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()
