"""One layer's life, told from the journal: which records belong to it, what they meant, what the disk says now.

Over any source of records, archived ones included, so that it works on a copied journal, too (``offline``). Reads only.
How it looks is ``timeline``'s.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

from layerjournal import DictView, Record, Replay
from layerstore.errors import InvalidArgumentError, UnknownLayerError
from layerstore.lifecycle import catalog
from layerstore.lifecycle.states import TRANSITIONS, State
from layerstore.lifecycle.timeline import Life, Step
from layerstore.opening.beneath import over
from layerstore.opening.handle import Handle
from layerstore.opening.journaling import journal_errors
from layerstore.recovery import looking
from layerstore.recovery.planner import Place, decide, possibilities
from layerstore.recovery.recover import image_file_right
from layerstore.system import fs

Records = Callable[[], Iterator[Record]]

_PUBLISHED = ("publish.side-file.write", "publish.side-file.rename", "publish.rename")
_EMPTIED = ("checkpoint.sync", "txn.checkpoint", "checkpoint.empty.unlink")
_REBUILT = ("rebuild.set-aside", "rebuild.keep", "rebuild.sync", "rebuild.rename", "rebuild.journal.sync")
BEFORE: Mapping[tuple[str, str], tuple[str, ...]] = {
    ("layer", "begin"): ("stage.mkdir", "stage.lock", "stage.txid", "stage.diff"),
    ("layer", "seal"): ("unpack.entry", "stage.output", "stage.sync"),
    ("layer", "sweep"): (), ("layer", "discard"): (), ("layer", "claim"): (), ("layer", "release"): (),
    ("layer", "promise"): ("apply.big-data.write", "apply.big-data.sync"),   # in a transaction of its own only with these
    ("layer", "commit"): _PUBLISHED, ("layer", "quarantine"): (), ("layer", "delete"): (),
    ("layer", "repair"): ("repair.lock",),
    ("layer", "mend"): (
        "repair.mkdir", "repair.write", "repair.sync", "repair.exchange", "repair.wear", "repair.set-aside",
        "repair.settle"),
    ("layer", "remove"): ("delete.lock", "delete.rename"), ("layer", "empty"): _EMPTIED,
    ("image", "promise"): (), ("image", "commit"): ("publish.image-file.write", "publish.image-file.rename"),
    ("layer", "adopt"): (), ("image", "adopt"): (),   # in a database made aside
    ("image", "abandon"): (), ("image", "delete"): (), ("image", "empty"): _EMPTIED,
    ("name", "take"): (), ("name", "move"): (), ("name", "drop"): (), ("lease", "take"): (), ("lease", "drop"): (),
    ("mount", "take"): (), ("mount", "attach"): ("mount.upper.mkdir", "overlay.mount"),
    ("mount", "detach"): ("overlay.unmount",), ("mount", "drop"): ("unmount.upper.unlink",),
}
"""The fault points of the effects that lie before a record, since the one before (docs/crash-model.md has the order)."""

AFTER: Mapping[tuple[str, str], tuple[str, ...]] = {
    ("layer", "sweep"): ("discard.unlink",), ("layer", "discard"): ("discard.unlink",),
    ("layer", "adopt"): _REBUILT, ("image", "adopt"): _REBUILT,
}
_MEANING = {(t.kind.value, t.trigger.value, t.source.value): t.meaning for t in TRANSITIONS}


@dataclass(slots=True)
class _Known:
    """What the records speak of: trees, and which IDs they had; layers; images, and their batches; who has a name."""

    trees: dict[str, str | None] = field(default_factory=dict)
    layers: dict[str, set[str]] = field(default_factory=dict)
    images: dict[str, set[str]] = field(default_factory=dict)
    batches: dict[str, set[str]] = field(default_factory=dict)
    names: dict[str, tuple[str, str]] = field(default_factory=dict)

    def learn(self, record: Record) -> None:
        kind, _, key = record.entity.partition(":")
        payload = record.payload
        if kind == "layer":
            self.trees.setdefault(key, None)
            if record.trigger in ("claim", "adopt"):
                self.trees[key] = payload["layer_id"]
                self.layers.setdefault(payload["layer_id"], set()).add(key)
                if "batch" in payload:
                    self.batches.setdefault(payload["batch"], set()).add(key)
                self.names.update(dict.fromkeys(payload.get("names", ()), ("layer", payload["layer_id"])))
        elif kind == "image":
            self.images.setdefault(key, set()).add(record.txid)
            if record.trigger in ("promise", "adopt"):
                self.names.update(dict.fromkeys(payload.get("names", ()), ("image", key)))
        elif kind == "name" and record.trigger != "drop":
            self.names[key] = (payload["kind"], payload["id"])

    def resolve(self, reference: str) -> tuple[str, str]:
        """``("layer" | "image" | "tree", ID)`` of a name, an ID, or its beginning (4 digits or more)."""
        if reference in self.names:   # of what is gone, too: whom it belonged to last
            return self.names[reference]
        hits = [
            (kind, each) for kind, known in (("image", self.images), ("layer", self.layers), ("tree", self.trees))
            for each in known if each == reference or (len(reference) >= 4 and each.startswith(reference))
        ]
        if len({each for _, each in hits}) > 1:
            raise InvalidArgumentError(f"{reference!r} is the beginning of {len(hits)} IDs", hint="give more digits")
        if not hits:
            raise UnknownLayerError(
                f"the journal knows no layer, image or tree {reference!r}",
                hint="old segments may have been dropped; 'layerstore journal log' prints what is there",
            )
        return hits[0]


def told(records: Records, reference: str) -> tuple[Life, frozenset[str], tuple[str, ...]]:
    """The life of *reference* without its now, its trees, and its images. UnknownLayerError; InvalidArgumentError."""
    known = _Known()
    for record in records():
        known.learn(record)
    kind, name = known.resolve(reference)
    images: tuple[str, ...] = ()
    if kind == "tree":
        trees = {name}
    elif kind == "layer":
        trees = known.layers.get(name, set())
    else:
        images = (name,)
        trees = {tree for batch in known.images.get(name, set()) for tree in known.batches.get(batch, set())}
    subjects = {f"layer:{tree}" for tree in trees} | {f"image:{image}" for image in images}
    return Life(kind, name, tuple(_steps(records(), subjects, name))), frozenset(trees), images


def _steps(records: Iterator[Record], subjects: set[str], name: str) -> Iterator[Step]:
    """Those of the subjects, and of what names, leases, mounts and images say of *name*."""
    groups: dict[str, int] = {}
    concerned = set(subjects)
    for record in records:
        if _mentions(record, name):
            concerned.add(record.entity)
        if record.entity not in concerned:
            continue
        kind = record.entity.partition(":")[0]
        together = groups.get(record.entity) == record.group
        groups[record.entity] = record.group
        yield Step(
            seq=record.seq, group=record.group, time_ns=record.time_ns, entity=record.entity, trigger=record.trigger,
            source=record.from_state, state=record.to_state, about=_about(record),
            meaning=_MEANING.get((kind, record.trigger, record.from_state), "no such transition in this version's table"),
            effects=() if together else BEFORE.get((kind, record.trigger), ()), after=AFTER.get((kind, record.trigger), ()),
        )


def _mentions(record: Record, name: str) -> bool:
    kind, payload = record.entity.partition(":")[0], record.payload
    return (kind == "name" and payload.get("id") == name) or (
        kind in ("lease", "mount", "image") and name in payload.get("layers", ())
    )


def _about(record: Record) -> str:
    payload, found = record.payload, []
    if record.trigger in ("claim", "adopt") and "layer_id" in payload:
        found.append(f"layer {payload['layer_id'][:12]}")
        found.append(f"on {payload['parent'][:12]}" if payload["parent"] else "a base layer")
        found += [f"big data {key}" for key in payload.get("big_data", ())]
    if "output" in payload:
        output = payload["output"]
        found.append(f"diffID {output['diff_id']}, {output['entries']} entries, {output['diff_size']} bytes")
    if payload.get("names"):
        found.append(f"named {' '.join(payload['names'])}")
    if record.entity.startswith("image:") and "layers" in payload:
        found.append(f"{len(payload['layers'])} layers")
    found += [f"{key} {payload[key]}" for key in ("content_key", "why", "target") if payload.get(key)]
    return "; ".join(found)


# -- now -------------------------------------------------------------------------------------------------------------


def explain(handle: Handle, reference: str) -> Life:
    """The verb behind ``Store.explain``."""
    with journal_errors(None):
        life, trees, images = told(handle.journal.records, reference)
    now = [_tree_now(handle, txid) for txid in sorted(trees)] + [_image_now(handle, each) for each in images]
    return Life(life.kind, life.id, life.steps, tuple(now))


def _tree_now(handle: Handle, txid: str) -> str:
    with handle.read() as view:
        row = view.get("layers", txid)
    if row is None:
        where_left = (Place.STAGING, Place.TRASH)
        left = [place.value for place in where_left if fs.txid_at(handle.dirs[place.value], txid) is not None]
        where = f", but it lies in {' and '.join(left)}/: the next open removes it" if left else " and no tree"
        return f"tree {txid[:12]}: no row{where}"
    facts = looking.find_tree(handle, txid, row)
    do, why = decide(row, facts)
    places = " and ".join(f"{place.value}/" for place in sorted(facts.places)) or "nowhere"
    side = "" if row["state"] != State.COMMITTED else f", side file {'right' if facts.side_file_right else 'lost or torn'}"
    held = ", held by a live process" if facts.locked else ""
    return f"tree {txid[:12]}: {row['state']}; found {places}{side}{held}; recovery: {do.value} ({why})"


def _image_now(handle: Handle, image_id: str) -> str:
    with handle.read() as own, over(handle, own) as view:
        row = own.get("images", image_id)
        users = [] if row is None else [layer for layer in row.get("layers", ()) if not catalog.is_committed(view, layer)]
    if row is None:
        return f"image {image_id[:12]}: no row"
    if row["state"] != State.COMMITTED:
        return f"image {image_id[:12]}: {row['state']}"
    right = image_file_right(fs.read_file(handle.dirs["images"], image_id), row)
    lacking = f"; not committed: {' '.join(each[:12] for each in users)}" if users else ""
    return f"image {image_id[:12]}: {row['state']}; its side file is {'right' if right else 'lost or torn'}{lacking}"


def offline(replay: Replay, reference: str) -> Life:
    """The same of a copied journal, or of segments: what there is of a disk is only what recovery would make of it."""
    life, trees, images = told(replay.records, reference)
    view = DictView(replay.fold().tables)
    now = []
    for txid in sorted(trees):
        row = view.get("layers", txid)
        now.append(f"tree {txid[:12]}: {'no row' if row is None else row['state']}")
        if row is not None:
            now += [f"  if it is found in {place}: {do.value} ({why})" for place, do, why in possibilities(row)]
    for image_id in images:
        row = view.get("images", image_id)
        now.append(f"image {image_id[:12]}: {'no row' if row is None else row['state']}")
    return Life(life.kind, life.id, life.steps, tuple(now))
