"""What a rebuild makes of the catalog as it was when its records end, and of what the disk says now. Decides only.

The records end at some point of the past; what happened since is inferred, and every inference is said in the report.
The rules, for a log that does not reach to the end (one that does needs none):

* A row whose tree stands in ``layers/`` is right. One whose tree does not was deleted since: only a deletion takes a
  tree away. But where a layer that is there stands on it, it was not, and is lost: quarantined.
* A tree in ``layers/`` with a whole side file, that no row knows and no record calls deleted, was committed since. One
  in ``staging/`` with a side file, too: that is written after the promise. What is in ``trash/`` was deleted.
* An image whose file, or one of whose layers, is gone was deleted since; a file that no row knows is an image of since.
* Leases and mounts that hold what is gone were let go of since. All others stay as they were.

Everything happens through the table of states, in the transaction that is handed in; nothing here has another effect.
What is to be moved out of the way is said in ``Outcome.aside``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from layerstore.formats.records import IF_SIGNED
from layerstore.lifecycle.machine import fire, state_of
from layerstore.lifecycle.states import Kind, State, Trigger
from layerstore.recovery.remains import ImageFile, Remains, Tree

__all__ = ["Item", "Outcome", "complete", "deletions"]

Row = dict[str, Any]
_AT_REST = frozenset({State.COMMITTED, State.QUARANTINED})
_UNPROMISED = frozenset({State.STAGING, State.STAGED, State.CREATING})


@dataclass(frozen=True, slots=True)
class Item:
    """One thing that is not simply as the records say. ``code`` is stable (docs/rebuild.md); ``subject`` an ID or path."""

    code: str
    subject: str
    message: str


@dataclass(slots=True)
class Outcome:
    """``items`` in the order of what was done; ``aside``: ``(directory, name)`` of what is to move to ``quarantine/``."""

    items: list[Item] = field(default_factory=list)
    aside: list[tuple[str, str]] = field(default_factory=list)
    layers: int = 0
    images: int = 0

    def say(self, code: str, subject: str, message: str) -> None:
        self.items.append(Item(code, subject, message))

    def put_aside(self, directory: str, name: str, why: str) -> None:
        self.aside.append((directory, name))
        self.say("set-aside", f"{directory}/{name}", why)


def complete(txn: Any, found: Remains, deleted: frozenset[str]) -> Outcome:
    """Bring the catalog of *txn*, whose records end in the past, up to what the disk says. *deleted*: txids."""
    return _Completion(txn, found, deleted).run()


class _Completion:
    def __init__(self, txn: Any, found: Remains, deleted: frozenset[str]) -> None:
        self._txn, self._found, self._deleted, self._out = txn, found, deleted, Outcome()
        self._in_layers = {tree.txid: tree for tree in found.layers.values() if tree.txid is not None}
        self._named: list[tuple[int, str, str, tuple[str, ...]]] = []   # when, kind, ID, names it was created with

    def run(self) -> Outcome:
        self._forget_unpromised()
        wanted = self._candidates()
        self._missing_layers(wanted)
        self._adopt_layers(wanted)
        self._missing_images()
        self._adopt_images()
        self._holders()
        self._names()
        self._finished_trees()
        return self._out

    def _fire(self, kind: Kind, key: str, trigger: Trigger, txid: str, payload: Mapping[str, Any] | None = None) -> None:
        fire(self._txn, kind, key, trigger, txid=txid, payload=payload)

    def _rows(self, *states: State) -> list[tuple[str, Row]]:
        return [(txid, row) for txid, row in self._txn.scan("layers") if row["state"] in states]

    def _where(self, txid: str) -> Tree | None:
        """The tree *txid*, if it is somewhere where a layer's tree is."""
        return self._found.staging.get(txid) or self._in_layers.get(txid)

    # -- layers ------------------------------------------------------------------------------------------------------

    def _forget_unpromised(self) -> None:
        """Rows of trees that were being made, and are so no more: promised since, or gone."""
        for txid, row in self._rows(*_UNPROMISED):
            tree = self._where(txid)
            if tree is not None and tree.place == "staging" and tree.side is None:
                continue
            if row["state"] == State.CREATING:
                self._fire(Kind.LAYER, txid, Trigger.RELEASE, txid)
            drop = Trigger.SWEEP if row["state"] == State.STAGING else Trigger.DISCARD
            self._fire(Kind.LAYER, txid, drop, txid)

    def _candidates(self) -> dict[str, Tree]:
        """Trees to adopt, by layer ID; what cannot be is put aside."""
        wanted: dict[str, Tree] = {}
        promised = [tree for tree in self._found.staging.values() if tree.side is not None or tree.torn]
        for tree in (*self._found.layers.values(), *promised):
            if tree.txid is not None and self._txn.get("layers", tree.txid) is not None:
                continue   # its row says what becomes of it
            why = self._refusal(tree, wanted)
            if tree.side is None or why:
                self._out.put_aside(tree.place, tree.name, why)
            else:
                wanted[tree.side["layer_id"]] = tree
        return wanted

    def _refusal(self, tree: Tree, wanted: Mapping[str, Tree]) -> str:
        if tree.side is None:
            return tree.wrong
        if tree.txid in self._deleted:
            self._out.say("contradiction", tree.side["layer_id"], f"{tree.place}/{tree.name} was deleted, and is back")
            return "its deletion is on record"
        layer_id = tree.side["layer_id"]
        pointer = self._txn.get("ids", layer_id)
        other = pointer and self._where(pointer["txid"])
        if layer_id in wanted or (other and self._layer_state(layer_id) is not State.CREATING):
            return f"another tree is the layer {layer_id}"
        return ""

    def _missing_layers(self, wanted: Mapping[str, Tree]) -> None:
        """Rows without a tree, of layers that were promised: deleted since, or lost."""
        for txid, row in self._rows(State.INCOMPLETE, State.DELETING):
            if self._where(txid) is None:
                trigger = Trigger.COMMIT if row["state"] == State.INCOMPLETE else Trigger.REMOVE
                self._fire(Kind.LAYER, txid, trigger, txid)
        standing_on = {tree.side["parent"] for tree in wanted.values() if tree.side is not None}
        rows = self._rows(*_AT_REST)
        standing_on |= {row["parent"] for txid, row in rows if self._where(txid) is not None}
        for txid, row in rows:
            layer_id = row["layer_id"]
            if self._where(txid) is not None or (row["state"] == State.QUARANTINED and txid not in self._found.trash):
                continue
            if layer_id in standing_on and layer_id not in wanted:
                why = "its tree is nowhere, and a layer that is there stands on it: lost, not deleted"
                self._out.say("contradiction", layer_id, why)
                if row["state"] == State.COMMITTED:
                    self._fire(Kind.LAYER, txid, Trigger.QUARANTINE, txid, {"why": why, "files": []})
                continue
            self._fire(Kind.LAYER, txid, Trigger.DELETE, txid)
            self._fire(Kind.LAYER, txid, Trigger.REMOVE, txid)
            place = "in trash/" if txid in self._found.trash else "nowhere"
            self._out.say("deleted-since", layer_id, f"its tree is {place}: it was deleted after the last record")

    def _adopt_layers(self, wanted: dict[str, Tree]) -> None:
        """Parents first; what stands on nothing is put aside."""
        left = dict(wanted)
        while ready := sorted(i for i, tree in left.items() if self._has_parent(tree)):
            for layer_id in ready:
                self._adopt(left.pop(layer_id))
        for layer_id, tree in sorted(left.items()):
            assert tree.side is not None
            self._out.put_aside(tree.place, tree.name, f"layer {layer_id}: its parent {tree.side['parent']} is not there")

    def _has_parent(self, tree: Tree) -> bool:
        assert tree.side is not None
        return tree.side["parent"] is None or "beneath" in tree.side or self._layer_state(tree.side["parent"]) in _AT_REST

    def _layer_state(self, layer_id: str) -> State:
        pointer = self._txn.get("ids", layer_id)
        return State.ABSENT if pointer is None else state_of(self._txn, Kind.LAYER, pointer["txid"])

    def _adopt(self, tree: Tree) -> None:
        side = tree.side
        assert side is not None
        txid, layer_id = side["txid"], side["layer_id"]
        if self._layer_state(layer_id) is State.CREATING:   # that claim did not come to anything, or this one could not be
            claimed = self._txn.get("ids", layer_id)["txid"]
            self._fire(Kind.LAYER, claimed, Trigger.RELEASE, claimed)
        keys = ("layer_id", "parent", "beneath", "output", "big_data", "overlay_form")
        kept = {key: side[key] for key in keys if key in side}
        self._fire(Kind.LAYER, txid, Trigger.ADOPT, txid, {**kept, "born_named": side["names"]})
        self._out.layers += 1
        self._out.say("adopted-layer", layer_id, f"from its side file in {tree.place}/: not proven that it was not deleted")
        if tree.bad:
            self._fire(Kind.LAYER, txid, Trigger.QUARANTINE, txid, {"why": tree.bad, "files": []})
            self._out.say("quarantined", layer_id, tree.bad)
        if tree.unread:
            self._out.say("unread", layer_id, f"taken as it is, and not compared: {tree.unread}")
        self._named.append((tree.written_ns, "layer", layer_id, tuple(side["names"])))

    # -- images ------------------------------------------------------------------------------------------------------

    def _missing_images(self) -> None:
        for image_id, row in list(self._txn.scan("images")):
            if row["state"] != State.COMMITTED:
                continue
            gone = self._gone(row)
            if image_id in self._found.images and not gone:
                continue
            self._fire(Kind.IMAGE, image_id, Trigger.DELETE, row["txid"])
            what = f"its layer {gone[0]}" if gone else "its file"
            self._out.say("deleted-since", image_id, f"{what} is not there: the image was deleted after the last record")
            if image_id in self._found.images:
                self._out.put_aside("images", image_id, "the file of that image")

    def _adopt_images(self) -> None:
        for name, file in sorted(self._found.images.items()):
            row = self._txn.get("images", name)
            if name.startswith(".") or row is not None:
                self._keep_if_newer(name, file, row)
                continue
            why = self._image_refusal(file)
            if file.record is None or why:
                self._out.put_aside("images", name, why)
                continue
            keys = ("layers", "manifest_digest", "manifest_media_type", "config_digest", "beneath", *IF_SIGNED)
            txid = self._newest_txid(file.record["layers"])
            self._fire(Kind.IMAGE, name, Trigger.ADOPT, txid, {key: file.record[key] for key in keys if key in file.record})
            self._out.images += 1
            self._out.say("adopted-image", name, "from its file in images/: not proven that it was not deleted")
            self._named.append((file.written_ns, "image", name, tuple(file.record["names"])))

    def _keep_if_newer(self, name: str, file: ImageFile, row: Row | None) -> None:
        """A deleted image's file is unlinked some day. With all its layers there it may be that of a later pull instead."""
        if row is not None and row["state"] == State.GONE and file.record is not None and not self._gone(file.record):
            self._out.put_aside("images", name, "its deletion is on record; it may have been pulled again since")

    def _image_refusal(self, file: ImageFile) -> str:
        if file.record is None:
            return file.wrong
        lost = self._gone(file.record)
        return f"its layer {lost[0]} is not there" if lost else ""

    def _newest_txid(self, layers: list[str]) -> str:
        """An image has no transaction of its own here; its uppermost layer's stands for it."""
        pointer = self._txn.get("ids", layers[-1]) if layers else None
        return str(pointer["txid"]) if pointer is not None else "0" * 32

    # -- the rest ----------------------------------------------------------------------------------------------------

    def _holders(self) -> None:
        """Leases and mounts, which keep what they hold from deletion: they cannot hold what was deleted."""
        for name, row in list(self._txn.scan("leases")):
            if self._holds_gone(row):
                self._fire(Kind.LEASE, name, Trigger.DROP, name)
                self._out.say("released-since", name, "the lease held a layer that was deleted after the last record")
        for mount_id, row in list(self._txn.scan("mounts")):
            if self._holds_gone(row):
                if row["state"] == State.MOUNTED:
                    self._fire(Kind.MOUNT, mount_id, Trigger.DETACH, mount_id)
                self._fire(Kind.MOUNT, mount_id, Trigger.DROP, mount_id)
                self._out.say("released-since", mount_id, f"what was mounted at {row['target']} was deleted since")
        for name in self._found.uppers:
            if self._txn.get("mounts", name) is None:
                self._out.put_aside("uppers", name, "what was written in a mount that no record knows")

    def _holds_gone(self, row: Row) -> bool:
        return bool(self._gone(row))

    def _gone(self, row: Mapping[str, Any]) -> list[str]:
        """Of its layers those that are nowhere. What is said to be in a store beneath is not asked for here."""
        beneath = row.get("beneath", {})
        return [each for each in row["layers"] if each not in beneath and self._layer_state(each) not in _AT_REST]

    def _names(self) -> None:
        """Names that what was adopted was created with: it had them then. Of several the one that was written last."""
        for _, kind, owner, names in sorted(self._named):
            for name in names:
                if self._txn.get("claims", name) is not None:
                    continue
                old = self._txn.get("names", name)
                trigger = Trigger.TAKE if old is None else Trigger.MOVE
                self._fire(Kind.NAME, name, trigger, owner[:32], {"kind": kind, "id": owner})
                said = "" if old is None else f"; {old['kind']} {old['id']} had it before"
                self._out.say("name", name, f"of {kind} {owner}, which was created with it{said}")

    def _finished_trees(self) -> None:
        """Trees that are filled, and were not applied: kept for the next stage of their content."""
        for txid, tree in sorted(self._found.staging.items()):
            key = tree.output and tree.output["output"].get("blob_digest")
            if tree.side is not None or tree.torn or not key or self._txn.get("layers", txid) is not None:
                continue
            if self._txn.get("content", key) is None:
                payload = {"content_key": key, "overlay_form": self._found.overlay_form, "pid": 0}   # nobody makes it now
                self._fire(Kind.LAYER, txid, Trigger.BEGIN, txid, payload)
                self._out.say("finished-tree", txid, f"kept for the next stage of {key}")


def deletions(records: Iterable[Any]) -> frozenset[str]:
    """The txids of layers whose deletion *records* tell of."""
    return frozenset(r.entity.removeprefix("layer:") for r in records if r.entity.startswith("layer:") and r.trigger in (
        Trigger.DELETE, Trigger.REMOVE,
    ))
