"""One look-up path over several catalogs: a store's own, then those of the stores beneath it, in their order.

Reads like a catalog; rows that come from beneath have ``STORE``, the uuid of their store, and say what they stand on as
rows above do: another store on the path may have something else under that ID. Of a store beneath only what is committed
is seen, and only what somebody looks up: who uses what, leases, mounts and what is in flight there are not ours.
An own layer or image hides one of its ID beneath as soon as it is at rest. No I/O but that of the catalogs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from heapq import merge
from itertools import groupby
from typing import Any, Protocol

from layerstore.lifecycle.states import State

__all__ = ["STORE", "Stacked", "why_missing"]

Row = dict[str, Any]

STORE = "store"
"""The key of a row that came from beneath; no row of a store's own has it."""

_SEEN = frozenset({"layers", "ids", "images", "names", "named", "digests"})
_AT_REST = frozenset({State.COMMITTED, State.QUARANTINED})


class Reader(Protocol):
    def get(self, table: str, key: str) -> Row | None: ...
    def scan(self, table: str, prefix: str = "") -> Iterator[tuple[str, Row]]: ...


class Stacked:
    """*own*, then the catalogs of *beneath* (store uuid, catalog). *absent*: why nothing of a store (uuid) is seen."""

    def __init__(self, own: Reader, beneath: Sequence[tuple[str, Reader]], absent: Mapping[str, str]) -> None:
        self._stores: list[tuple[str | None, Reader]] = [(None, own), *beneath]
        self.absent = absent

    def get(self, table: str, key: str) -> Row | None:
        if table not in _SEEN:
            return self._stores[0][1].get(table, key)
        return self._first(table, key, ((n, view.get(table, key)) for n, (_, view) in enumerate(self._stores)))

    def scan(self, table: str, prefix: str = "") -> Iterator[tuple[str, Row]]:
        if table not in _SEEN:
            yield from self._stores[0][1].scan(table, prefix)
            return
        rows = merge(*(self._numbered(n, table, prefix) for n in range(len(self._stores))))   # never compares two rows
        for key, same in groupby(rows, key=lambda each: each[0]):
            found = self._first(table, key, ((n, row) for _, n, row in same))
            if found is not None:
                yield key, found

    def _numbered(self, n: int, table: str, prefix: str) -> Iterator[tuple[str, int, Row]]:
        return ((key, n, row) for key, row in self._stores[n][1].scan(table, prefix))

    def _first(self, table: str, key: str, rows: Iterator[tuple[int, Row | None]]) -> Row | None:
        """The first that counts; else what is the store's own, in flight."""
        own = None
        for n, row in rows:
            if row is None:
                continue
            if self._counts(n, table, key, row):
                return row if n == 0 else self._marked(n, table, row)
            own = row if n == 0 else own
        return own

    def _marked(self, n: int, table: str, row: Row) -> Row:
        """A row that came from beneath, with its store, and with what that store has of the layers that it names."""
        marked = {**row, STORE: self._stores[n][0]}
        if table == "layers" and row.get("parent") is not None:
            marked["beneath"] = row.get("beneath") or self._said(n, row["parent"])
        elif table == "images":
            marked["beneath"] = {each: self._said(n, each) for each in row.get("layers", ())} | row.get("beneath", {})
        return marked

    def _said(self, n: int, layer_id: str) -> Row:
        """What a row says of a layer that it stands on, if that is in the store *n* itself."""
        store, view = self._stores[n]
        pointer = view.get("ids", layer_id) or {}
        row = view.get("layers", pointer.get("txid", "")) or {}
        return {"store": store, "diff_id": row.get("output", {}).get("diff_id", "")}

    def _counts(self, n: int, table: str, key: str, row: Row) -> bool:
        view = self._stores[n][1]
        if table == "layers":
            return n == 0 or row["state"] == State.COMMITTED
        if table == "ids":
            state = (view.get("layers", row["txid"]) or {}).get("state")
            return state in _AT_REST if n == 0 else state == State.COMMITTED
        if table == "images":
            return bool(row["state"] == State.COMMITTED)
        owner, _, name = key.partition("/")
        if table == "named":
            return (self.get("names", name) or {}).get("id") == owner   # another store's may have taken the name away
        if table == "digests":
            return (self.get("ids", key.rpartition("/")[2]) or {}).get(STORE) == self._stores[n][0]
        return True


def why_missing(view: object, store: str) -> str:
    """Why a layer of the store beneath *store* is not seen in *view*, in words."""
    if not isinstance(view, Stacked):
        return "no store is open beneath this one"
    return view.absent.get(store, "it is not there any more")
