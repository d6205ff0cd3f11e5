"""What each journal record does to the catalog's tables: one pure function a transition, and nothing else.

The catalog is a projection of the log: its tables change only here, in the transaction of the record that causes
the change, and folding the log through here rebuilds them exactly. No I/O, no clock, no randomness.

Tables (key → row):

=============  ==========================================  ====================================================
``layers``     txid                                        the tree's row; ``state`` says what it is
``ids``        layer ID                                    ``txid``: from the claim until the tree is in trash
``open``       ``<kind>:<key>``                            ``first`` record, ``state``: what recovery looks at
``content``    content key                                 ``txid``: the one tree being made, or made, for it
``digests``    ``blob|diff|toc/<digest>/<layer ID>``       look-up of committed layers
``users``      ``<layer ID>/child|image|lease|mount/<x>``  why a layer cannot be deleted
``names``      name                                        ``kind`` (image or layer) and ``id``
``named``      ``<ID>/<name>``                             the same, the other way round
``claims``     name                                        ``txid`` that will own it once committed
``images``     image ID                                    the image's row
``leases``     lease name                                  ``layers``
``mounts``     mount ID                                    ``target``, ``layers``, ``state`` …
=============  ==========================================  ====================================================
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol

from layerjournal import ProjectionError, Record
from layerstore.lifecycle.states import Kind, State, Trigger, destination

Row = dict[str, Any]

TABLES = (
    "layers", "ids", "open", "content", "digests", "users", "names", "named", "claims", "images", "leases", "mounts",
)


class View(Protocol):
    def get(self, table: str, key: str) -> Row | None: ...
    def put(self, table: str, key: str, row: Mapping[str, Any]) -> None: ...
    def delete(self, table: str, key: str) -> None: ...
    def scan(self, table: str, prefix: str = "") -> Iterator[tuple[str, Row]]: ...


class CatalogProjector:
    """The projector that the journal is opened with."""

    tables = TABLES

    def project(self, view: View, record: Record) -> None:
        """Apply *record* to *view*; ProjectionError if the table of states does not allow it."""
        kind, _, key = record.entity.partition(":")
        dest = destination(kind, record.trigger, record.from_state)
        if dest is None or dest.value != record.to_state:
            raise ProjectionError(
                f"record {record.seq}: {record.entity} by {record.trigger!r} from {record.from_state!r} "
                f"to {record.to_state!r} is not in the table of states",
            )
        _RULES[(kind, record.trigger)](view, key, record)


# -- layers ----------------------------------------------------------------------------------------------------

def _begin(view: View, txid: str, record: Record) -> None:
    content_key = record.payload.get("content_key")
    view.put("layers", txid, {**record.payload, "state": State.STAGING.value})
    view.put("open", f"layer:{txid}", {"first": record.seq, "state": State.STAGING.value})
    if content_key is not None:
        view.put("content", content_key, {"txid": txid})


def _seal(view: View, txid: str, record: Record) -> None:
    _update(view, txid, record, sealed_ns=record.time_ns, **record.payload)


def _forget_tree(view: View, txid: str, _record: Record) -> None:
    row = _row(view, "layers", txid)
    _free_content(view, txid, row)
    view.delete("layers", txid)
    view.delete("open", f"layer:{txid}")


def _claim(view: View, txid: str, record: Record) -> None:
    claim = record.payload
    view.put("ids", claim["layer_id"], {"txid": txid})
    if claim["parent"] is not None:
        view.put("users", f"{claim['parent']}/child/{claim['layer_id']}", {})
    for name in claim["names"]:
        view.put("claims", name, {"txid": txid})
    _update(view, txid, record, first=record.seq, born_named=claim["names"], **claim)


def _release(view: View, txid: str, record: Record) -> None:
    row = _row(view, "layers", txid)
    view.delete("ids", row["layer_id"])
    _unpin_parent(view, row)
    _drop_claims(view, row)
    for key in ("layer_id", "parent", "beneath", "names", "born_named", "replace_names", "batch", "big_data"):
        row.pop(key, None)
    _put_state(view, txid, row, record)


def _promise(view: View, txid: str, record: Record) -> None:
    _update(view, txid, record)


def _commit(view: View, txid: str, record: Record) -> None:
    row = _row(view, "layers", txid)
    layer_id, names = row["layer_id"], row.pop("names")
    for key in _digest_keys(row):
        view.put("digests", key, {})
    _free_content(view, txid, row)
    _drop_claims(view, {"names": names})
    for name in names:
        _bind(view, name, "layer", layer_id)
    row.pop("replace_names", None)
    row.pop("first", None)
    view.put("layers", txid, {**row, "state": State.COMMITTED.value, "created_ns": record.time_ns})
    view.delete("open", f"layer:{txid}")


def _quarantine(view: View, txid: str, record: Record) -> None:
    row = _row(view, "layers", txid)
    if record.from_state != State.QUARANTINED:
        _drop_digests(view, row)
        _free_content(view, txid, row)
        _drop_claims(view, row)
    row = {k: v for k, v in row.items() if k not in ("names", "replace_names", "first", "repair")}
    since = row.get("damage", {}).get("since_ns", record.time_ns)
    evidence = {"why": record.payload["why"], "files": record.payload["files"], "since_ns": since}
    view.put("layers", txid, {**row, "state": State.QUARANTINED.value, "damage": evidence})
    view.delete("open", f"layer:{txid}")


def _repair(view: View, txid: str, record: Record) -> None:
    row = _row(view, "layers", txid)
    view.put("layers", txid, {**row, "repair": {"files": record.payload["files"], "since_ns": record.time_ns}})
    view.put("open", f"layer:{txid}", {"first": record.seq, "state": record.to_state})


def _mend(view: View, txid: str, record: Record) -> None:
    row = _row(view, "layers", txid)
    if record.from_state == State.QUARANTINED:
        for key in _digest_keys(row):
            view.put("digests", key, {})
    row = {"created_ns": record.time_ns, **{k: v for k, v in row.items() if k not in ("repair", "damage")}}
    view.put("layers", txid, {**row, "state": State.COMMITTED.value, "mended_ns": record.time_ns})
    view.delete("open", f"layer:{txid}")


def _delete(view: View, txid: str, record: Record) -> None:
    row = _row(view, "layers", txid)
    _drop_digests(view, row)
    _unbind_all(view, row["layer_id"])
    _unpin_parent(view, row)
    row.pop("repair", None)
    view.put("layers", txid, {**row, "state": State.DELETING.value, "first": record.seq})
    view.put("open", f"layer:{txid}", {"first": record.seq, "state": State.DELETING.value})


def _remove(view: View, txid: str, record: Record) -> None:
    row = _row(view, "layers", txid)
    view.delete("ids", row["layer_id"])
    view.put("layers", txid, {"state": State.GONE.value, "layer_id": row["layer_id"], "gone": record.seq})
    view.put("open", f"layer:{txid}", {"first": record.seq, "state": State.GONE.value})


def _adopt(view: View, txid: str, record: Record) -> None:
    row = {**record.payload, "state": State.COMMITTED.value, "created_ns": record.time_ns}
    view.put("layers", txid, row)
    view.put("ids", row["layer_id"], {"txid": txid})
    if row["parent"] is not None:
        view.put("users", f"{row['parent']}/child/{row['layer_id']}", {})
    for key in _digest_keys(row):
        view.put("digests", key, {})


# -- images ----------------------------------------------------------------------------------------------------

def _image_promise(view: View, image_id: str, record: Record) -> None:
    row = {**record.payload, "state": State.INCOMPLETE.value, "txid": record.txid}
    view.put("images", image_id, row)
    view.put("open", f"image:{image_id}", {"first": record.seq, "state": State.INCOMPLETE.value})
    for layer in row["layers"]:
        view.put("users", f"{layer}/image/{image_id}", {})
    for name in row["names"]:
        view.put("claims", name, {"txid": record.txid})


def _image_commit(view: View, image_id: str, record: Record) -> None:
    row = _row(view, "images", image_id)
    _drop_claims(view, row)
    for name in row["names"]:
        _bind(view, name, "image", image_id)
    # manifest and config were in the row so that anybody could finish; from here the side file has them
    row = {k: v for k, v in row.items() if k not in ("manifest", "config", "names", "replace_names")}
    view.put("images", image_id, {**row, "state": State.COMMITTED.value, "created_ns": record.time_ns})
    view.delete("open", f"image:{image_id}")


def _image_adopt(view: View, image_id: str, record: Record) -> None:
    view.put("images", image_id, {
        **record.payload, "state": State.COMMITTED.value, "txid": record.txid, "created_ns": record.time_ns,
    })
    for layer in record.payload["layers"]:
        view.put("users", f"{layer}/image/{image_id}", {})


def _image_abandon(view: View, image_id: str, _record: Record) -> None:
    row = _row(view, "images", image_id)
    _drop_claims(view, row)
    _drop_image_users(view, image_id, row)
    view.delete("images", image_id)
    view.delete("open", f"image:{image_id}")


def _image_delete(view: View, image_id: str, record: Record) -> None:
    _drop_image_users(view, image_id, _row(view, "images", image_id))
    _unbind_all(view, image_id)
    view.put("images", image_id, {"state": State.GONE.value, "gone": record.seq})
    view.put("open", f"image:{image_id}", {"first": record.seq, "state": State.GONE.value})


def _image_empty(view: View, image_id: str, _record: Record) -> None:
    view.delete("images", image_id)
    view.delete("open", f"image:{image_id}")


# -- names, leases, mounts -------------------------------------------------------------------------------------

def _name_set(view: View, name: str, record: Record) -> None:
    _bind(view, name, record.payload["kind"], record.payload["id"])


def _name_drop(view: View, name: str, _record: Record) -> None:
    row = _row(view, "names", name)
    view.delete("names", name)
    view.delete("named", f"{row['id']}/{name}")


def _lease_take(view: View, name: str, record: Record) -> None:
    view.put("leases", name, {**record.payload, "state": State.HELD.value, "since_ns": record.time_ns})
    for layer in record.payload["layers"]:
        view.put("users", f"{layer}/lease/{name}", {})


def _lease_drop(view: View, name: str, _record: Record) -> None:
    for layer in _row(view, "leases", name)["layers"]:
        view.delete("users", f"{layer}/lease/{name}")
    view.delete("leases", name)


def _mount_take(view: View, key: str, record: Record) -> None:
    view.put("mounts", key, {**record.payload, "state": State.MOUNTING.value, "since_ns": record.time_ns})
    for layer in record.payload["layers"]:
        view.put("users", f"{layer}/mount/{key}", {})


def _mount_state(view: View, key: str, record: Record) -> None:
    view.put("mounts", key, {**_row(view, "mounts", key), **record.payload, "state": record.to_state})


def _mount_drop(view: View, key: str, _record: Record) -> None:
    for layer in _row(view, "mounts", key)["layers"]:
        view.delete("users", f"{layer}/mount/{key}")
    view.delete("mounts", key)


# -- helpers ---------------------------------------------------------------------------------------------------

def _row(view: View, table: str, key: str) -> Row:
    row = view.get(table, key)
    if row is None:
        raise ProjectionError(f"table {table} has no row {key!r}")
    return dict(row)


def _put_state(view: View, txid: str, row: Row, record: Record) -> None:
    row.pop("first", None)
    view.put("layers", txid, {**row, "state": record.to_state})
    view.put("open", f"layer:{txid}", {"first": record.seq, "state": record.to_state})


def _update(view: View, txid: str, record: Record, **fields: Any) -> None:
    row = {**_row(view, "layers", txid), **fields, "state": record.to_state}
    view.put("layers", txid, row)
    view.put("open", f"layer:{txid}", {"first": row.get("first", record.seq), "state": record.to_state})


def _digest_keys(row: Mapping[str, Any]) -> Iterator[str]:
    for kind, field in (("blob", "blob_digest"), ("diff", "diff_id"), ("toc", "toc_digest")):
        if row["output"].get(field) is not None:
            yield f"{kind}/{row['output'][field]}/{row['layer_id']}"


def _drop_digests(view: View, row: Mapping[str, Any]) -> None:
    for key in _digest_keys(row):
        view.delete("digests", key)


def _free_content(view: View, txid: str, row: Mapping[str, Any]) -> None:
    content_key = row.get("content_key")
    if content_key is not None and (view.get("content", content_key) or {}).get("txid") == txid:
        view.delete("content", content_key)


def _drop_claims(view: View, row: Mapping[str, Any]) -> None:
    for name in row.get("names", ()):
        view.delete("claims", name)


def _unpin_parent(view: View, row: Mapping[str, Any]) -> None:
    if row["parent"] is not None:
        view.delete("users", f"{row['parent']}/child/{row['layer_id']}")


def _drop_image_users(view: View, image_id: str, row: Mapping[str, Any]) -> None:
    for layer in row["layers"]:
        view.delete("users", f"{layer}/image/{image_id}")


def _bind(view: View, name: str, kind: str, owner: str) -> None:
    old = view.get("names", name)
    if old is not None:
        view.delete("named", f"{old['id']}/{name}")
    view.put("names", name, {"kind": kind, "id": owner})
    view.put("named", f"{owner}/{name}", {})


def _unbind_all(view: View, owner: str) -> None:
    for key, _ in list(view.scan("named", f"{owner}/")):
        view.delete("named", key)
        view.delete("names", key.removeprefix(f"{owner}/"))


_T = Trigger
_RULES: dict[tuple[str, str], Callable[[View, str, Record], None]] = {
    (Kind.LAYER, _T.BEGIN): _begin,
    (Kind.LAYER, _T.SEAL): _seal,
    (Kind.LAYER, _T.SWEEP): _forget_tree,
    (Kind.LAYER, _T.DISCARD): _forget_tree,
    (Kind.LAYER, _T.CLAIM): _claim,
    (Kind.LAYER, _T.RELEASE): _release,
    (Kind.LAYER, _T.PROMISE): _promise,
    (Kind.LAYER, _T.COMMIT): _commit,
    (Kind.LAYER, _T.QUARANTINE): _quarantine,
    (Kind.LAYER, _T.REPAIR): _repair,
    (Kind.LAYER, _T.MEND): _mend,
    (Kind.LAYER, _T.DELETE): _delete,
    (Kind.LAYER, _T.REMOVE): _remove,
    (Kind.LAYER, _T.EMPTY): _forget_tree,
    (Kind.LAYER, _T.ADOPT): _adopt,
    (Kind.IMAGE, _T.PROMISE): _image_promise,
    (Kind.IMAGE, _T.COMMIT): _image_commit,
    (Kind.IMAGE, _T.ABANDON): _image_abandon,
    (Kind.IMAGE, _T.DELETE): _image_delete,
    (Kind.IMAGE, _T.EMPTY): _image_empty,
    (Kind.IMAGE, _T.ADOPT): _image_adopt,
    (Kind.NAME, _T.TAKE): _name_set,
    (Kind.NAME, _T.MOVE): _name_set,
    (Kind.NAME, _T.DROP): _name_drop,
    (Kind.LEASE, _T.TAKE): _lease_take,
    (Kind.LEASE, _T.DROP): _lease_drop,
    (Kind.MOUNT, _T.TAKE): _mount_take,
    (Kind.MOUNT, _T.ATTACH): _mount_state,
    (Kind.MOUNT, _T.DETACH): _mount_state,
    (Kind.MOUNT, _T.DROP): _mount_drop,
}
