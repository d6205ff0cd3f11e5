"""Walks every transition of the table on a real store: ``all_transitions.py DIR [NUMBER OF THE ROW TO REMOVE]``.

With a row removed it must fail: the table is what product and recovery run on.
"""

import os
import shutil
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from layerstore.lifecycle import states

if len(sys.argv) > 2:
    removed = states.TRANSITIONS[int(sys.argv[2])]
    states.TRANSITIONS = tuple(t for t in states.TRANSITIONS if t is not removed)
    states._DEST = {(t.kind, t.trigger, t.source): t.dest for t in states.TRANSITIONS}

import layerstore
from storekit import add, differ, failing_at, image, in_child
from layerstore import errors
from layerstore.system import faults
from layerstore.testing import Passing, violations
from layerstore.testing.explore import kill_at

work = Path(sys.argv[1])
root = str(work / "s")
seen = set()


class Watch:
    def event(self, what, **fields):
        pass


def expect(error, call):
    try:
        call()
    except error:
        return
    raise AssertionError(f"did not raise {error}")


def lose_tree(layer_id):
    shutil.rmtree(os.path.join(root, "layers", layer_id))


with layerstore.open(root) as store:
    base = add(store, names=["base"])
    staged = store.stage(differ({"a": b"1"}))
    staged.seal()
    staged.discard()                                                     # discard
    expect(errors.ArchiveError, lambda: store.stage(layerstore.TarDiffer(b"no tar" * 200)))   # sweep
    with store.stage(differ({"b": b"2"})) as staged:
        with failing_at("apply.big-data.write", "EDQUOT"):
            expect(errors.NoSpaceError, lambda: store.apply_staged_layer(staged, big_data={"k": b"v"}))   # release
        top = store.apply_staged_layer(staged, parent=base.id)
    store.set_name("tag", top.id)
    store.set_name("tag", base.id, replace=True)                         # move
    store.drop_name("tag")
    store.take_lease("l", [top.id])
    expect(errors.InUseError, lambda: store.delete_layer(top.id))
    store.drop_lease("l")
    made = image(work)
    first = store.pull(made.reference)
    store.delete_image(first.id)
    again = store.pull(made.reference)                                   # promise from gone
    store.delete_image(again.id)
    store.delete_layer(top.id)
    store.checkpoint()                                                   # empty, for layers and images
    lost = add(store, {"lost": b"x"})


def promised(label):
    """A child that dies right after the commit point."""
    def scenario():
        with layerstore.open(root) as store:
            add(store, {label: b"y"})
    kill_at(Passing("txn.claim", "after", 1), scenario)


lose_tree(lost.id)
with layerstore.open(root) as store:                                     # quarantine from committed
    assert [x.state for x in store.layers() if x.id == lost.id] == ["quarantined"], "did not pass through quarantine"

with layerstore.open(root) as store:
    from layerstore.recovery import mending
    ill = add(store, {"ill": b"z"})
    handle = store._handle
    for damage in (None, {"why": "w", "files": [b"diff/ill"]}, {"why": "w", "files": [b"diff/ill"]}, None):
        assert mending.mark(handle, ill.txid, [b"diff/ill"])             # repair, mend, quarantine, from either
        mending.end(handle, ill.txid, damage, label="t")
        assert store.layers()[[x.id for x in store.layers()].index(ill.id)].damaged_files == (("diff/ill",) if damage else ())
    assert [x.id for x in store.layers_by_digest(ill.diff_id)] == [ill.id]
    store.delete_layer(ill.id)
with layerstore.open(root) as store:
    store.delete_layer(lost.id)                                          # delete from quarantined

promised("p1")
for name in os.listdir(os.path.join(root, "staging")):
    shutil.rmtree(os.path.join(root, "staging", name))
with layerstore.open(root) as store:                                     # quarantine from incomplete
    (bad,) = [x for x in store.layers() if x.state == "quarantined"]
    store.delete_layer(bad.id)

other = image(work, name="other", salt="o")
kill_at(Passing("txn.claim", "after", 1), lambda: layerstore.open(root).pull(other.reference))
for name in os.listdir(os.path.join(root, "staging")):
    shutil.rmtree(os.path.join(root, "staging", name))
with layerstore.open(root) as store:                                     # abandon
    assert not store.images()

with layerstore.open(root) as store:
    from layerstore.lifecycle.machine import fire
    from layerstore.lifecycle.states import Kind, Trigger
    payload = {"target": str(work), "layers": [base.id], "writable": True, "boot_id": "b"}
    for trigger, data in ((Trigger.TAKE, payload), (Trigger.ATTACH, {}), (Trigger.DETACH, {}), (Trigger.DROP, {})):
        store._handle.update("t", lambda txn: fire(txn, Kind.MOUNT, "m" * 8, trigger, txid="m", payload=data))
    quarantined = [x for x in store.layers() if x.state == "quarantined"]
    for layer in sorted(quarantined, key=lambda x: x.parent is None):
        try:
            store.delete_layer(layer.id)
        except errors.InUseError:
            pass
    for layer in quarantined:
        if any(x.id == layer.id for x in store.layers()):
            store.delete_layer(layer.id)
    records = []
    with store._handle.read() as view:
        records = [(r.entity.split(":")[0], r.trigger, r.from_state) for r in view.records()]
with layerstore.open(root) as store:
    store.pull(made.reference)
os.unlink(os.path.join(root, "journal", "data.mdb"))
layerstore.rebuild(root)                                                 # adopt, for layers and images
with layerstore.open(root) as store, store._handle.read() as view:
    records += [(r.entity.split(":")[0], r.trigger, r.from_state) for r in view.records()]
missing = {(t.kind.value, t.trigger.value, t.source.value) for t in states.TRANSITIONS} - set(records)
assert not missing, f"did not pass {missing}"
assert violations(root) == [], violations(root)
assert faults and in_child
