"""Make the golden stores: what the first release left on disk, for every later one to open.

    python tests/golden/make_store.py tests/golden/v1.1 NAME…    (as root; the stores are made as ``nobody``)

``clean.tar.gz`` is a store at rest: a base layer, one on it with big data and a name, an image, a staged tree, trash,
an archived segment. ``redo.tar.gz`` is what a loss of power and a kill left: lost renames, a torn side file, a lost
image file, a batch that was promised, a deletion that was promised, a tree that was being staged, a stray.
``filled.tar.gz`` has what came with the file ``output``: a tree that was filled and not synced when its owner was killed,
one whose ``output`` is torn, one that was rolled back to staged. ``signed.tar.gz``, of format 1.1, has an image with
signatures, and the kept upper directory of a mount with a label; ``mapped.tar.gz`` has a map of ids (container 0 is nobody);
``beneath.tar.gz`` stands on ``v1/clean``, by a layer, an image that was pulled over it, and a lease. Beside each:
``<name>.json``, with what it holds, its canonical dump, and what recovery plans.

They are made once and never edited or made anew: a new format gets new files beside these. Made as an ordinary user,
so that no owner is recorded and anybody can unpack them.
"""

import io
import json
import os
import pathlib
import shutil
import signal
import sys
import tarfile
import tempfile

HERE = pathlib.Path(__file__).parent
sys.path[:0] = [str(HERE.parent), str(HERE.parent.parent)]

import layerjournal  # noqa: E402
import layerstore  # noqa: E402
from crash.content import content, picture  # noqa: E402
from layerstore import TarDiffer  # noqa: E402
from layerstore.lifecycle.machine import fire  # noqa: E402
from layerstore.lifecycle.states import Kind, Trigger  # noqa: E402
from layerstore.model import Descriptor  # noqa: E402
from layerstore.system import faults  # noqa: E402
from layerstore.testing.children import run_child, start_child  # noqa: E402

NOBODY = 65534
NAMES = ("clean", "redo", "filled")   # of format 1.0
LABEL, MOUNT = "system_u:object_r:container_file_t:s0:c1,c2", "5" * 32
XATTR = "SCHILY.xattr."
LEFT_OUT = ("lock.mdb",)   # LMDB makes it anew, and it is of one machine


def clean(root, pictures):
    """A store at rest that has everything in it."""
    with opened(root) as store:
        put(store, "base", "b" * 64, names=["base"])
        put(store, "old", "d" * 64)
        store.delete_layer("d" * 64)
        store.checkpoint(archive=True)
        put(store, "top", "c" * 64, parent="b" * 64, names=["top"], big_data={"key": b"value"})
        put(store, "again", "d" * 64, parent="b" * 64)
        store.pull(pictures.reference, names=["app"])
        put(store, "doomed", "e" * 64)
        store.delete_layer("e" * 64)
        left = staged(store, "left")
        left.seal()
        left.release()


def redo(root, pictures):
    """What the power and a kill left. Each loss is made as the crash rigs have seen it."""
    clean(root, pictures)
    with opened(root) as store:
        lost = put(store, "lost", "1" * 64, parent="c" * 64)
        doomed = put(store, "doomed2", "2" * 64)   # deleted below
        gone = put(store, "gone", "3" * 64)
        store.delete_layer(gone.id)
    killed_together(root, {
        "txn.claim:after": lambda store: put(store, "promised", "4" * 64),
        "txn.delete:after": lambda store: store.delete_layer(doomed.id),
        "stage.txid:after": lambda store: put(store, "stray", "5" * 64),
        "txn.begin:after": lambda store: put(store, "unfinished", "6" * 64),
        "apply.big-data.write:after": lambda store: put(store, "claimed", "7" * 64, big_data={"k": b"v"}),
    })
    path = pathlib.Path(root)
    os.rename(path / "layers" / lost.id, path / "staging" / lost.txid)
    side = path / "layers" / ("d" * 64) / "layer"
    side.write_bytes(side.read_bytes()[:20])
    os.rename(path / "trash" / gone.txid, path / "layers" / gone.id)
    os.unlink(path / "images" / pictures.id)


def filled(root, pictures):
    """What a kill leaves since trees are sealed with their claim, and what a loss of power may make of it."""
    clean(root, pictures)
    killed_together(root, {
        "stage.sync:before": lambda store: put(store, "filled", "1" * 64),
        "stage.output:after": lambda store: put(store, "torn", "2" * 64),
        "apply.big-data.write:after": lambda store: put(store, "claimed", "7" * 64, big_data={"k": b"v"}),
    })
    torn = content("torn").diff_id
    for output in sorted(pathlib.Path(root, "staging").glob("*/output")):
        data = output.read_bytes()
        if torn.encode() in data:
            output.write_bytes(data[: len(data) // 2])


def signed(root, pictures):
    """What came with format 1.1. The mount is a row as after a reboot, for who makes this may not mount."""
    clean(root, pictures)
    with opened(root) as store:
        beside = picture(os.path.join(os.path.dirname(root), "signed-image"), [content("i1"), content("i3")], signed=True)
        store.pull(beside.reference, names=["signed"])
        where = {"boot_id": "0" * 36, "namespace": 1, "uppers": [0, 0], "label": LABEL}
        taken = {**where, "target": "/mnt/golden", "layers": ["b" * 64], "writable": True}
        for trigger, payload in ((Trigger.TAKE, taken), (Trigger.ATTACH, {**where, "kept": False}),
                                 (Trigger.DETACH, {"kept": True})):
            store._handle.update("mount", lambda txn, t=trigger, p=payload: fire(txn, Kind.MOUNT, MOUNT, t, txid=MOUNT, payload=p))
    for name in ("empty", "upper", "work"):
        os.makedirs(os.path.join(root, "uppers", MOUNT, name))
    pathlib.Path(root, "uppers", MOUNT, "upper", "written").write_text("by somebody\n")


def mapped(root, pictures):
    """What came with maps of ids."""
    only = [(0, NOBODY, 1)]
    layerstore.open(root, uid_map=only, gid_map=only, overlay_form="user").close()
    clean(root, pictures)


def beneath(root, pictures):
    """What came with stores beneath. The one that is beneath is itself a golden one."""
    lower = unpack("clean", os.path.dirname(root))
    layerstore.open(root, beneath=[lower], overlay_form="user").close()
    with opened(root) as store:
        put(store, "top-of-both", "8" * 64, parent="c" * 64, names=["both"])
        more = [content("i1"), content("i2"), content("i4"), content("i3")]      # all but the last are beneath
        store.pull(picture(os.path.join(os.path.dirname(root), "taller-image"), more).reference, names=["taller"])
        store.take_lease("golden", ["8" * 64])


def killed_together(root, doings):
    """Each in a process of its own, killed at its point; all have opened before the first dies, so none recovers."""
    started = []
    for where, do in doings.items():
        ready, go = os.pipe(), os.pipe()

        def child(where=where, do=do, ready=ready, go=go):
            with opened(root) as store:
                os.write(ready[1], b"r")
                os.read(go[0], 1)
                faults.install(killer(*where.split(":")))
                do(store)

        started.append((where, start_child(child), go))
        os.read(ready[0], 1)
    for where, pid, go in started:
        os.write(go[1], b"g")
        if os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) != -signal.SIGKILL:
            raise AssertionError(f"not killed at {where}")


def killer(point, when):
    return lambda name, moment: faults.perform("kill", name) if (name, moment) == (point, when) else None


def opened(root):
    ticks = iter(range(1_700_000_000_000_000_000, 1_800_000_000_000_000_000, 1_000_000))
    return layerstore.open(root, clock=lambda: next(ticks), overlay_form="user")


def put(store, label, layer_id, **options):
    with staged(store, label) as tree:
        return store.apply_staged_layer(tree, id=layer_id, **options)


def staged(store, label):
    tar = content(label).tar
    return store.stage(TarDiffer(tar, expect=Descriptor("application/vnd.oci.image.layer.v1.tar", digest(tar), len(tar))))


def digest(data):
    import hashlib

    return "sha256:" + hashlib.sha256(data).hexdigest()


def make(name, directory, work):
    root = os.path.join(work, name)
    shown = os.path.join(work, f"{name}.shown")

    warm = os.path.join(work, f"{name}-warm")   # what is imported late must be imported by somebody who may read it
    redo(warm, picture(os.path.join(work, "warm-image"), [content("i1")]))
    show(warm)

    def as_nobody():
        os.setgroups([])
        os.setgid(NOBODY)
        os.setuid(NOBODY)
        image = picture(os.path.join(work, f"{name}-image"), [content("i1"), content("i2"), content("i4")])
        MAKE[name](root, image)
        with open(shown, "w") as file:
            json.dump(show(root), file, indent=1, sort_keys=True)
            file.write("\n")

    if os.waitstatus_to_exitcode(run_child(as_nobody)) != 0:
        raise AssertionError(f"making {name} failed")
    shutil.copyfile(shown, os.path.join(directory, f"{name}.json"))
    with tarfile.open(os.path.join(directory, f"{name}.tar.gz"), "w:gz", format=tarfile.PAX_FORMAT) as archive:
        archive.add(root, arcname=name, filter=lambda info: _entry(info, work))


def _entry(info, work):
    info.uid = info.gid = 0
    info.uname = info.gname = ""
    path = os.path.join(work, info.name)
    for each in os.listxattr(path, follow_symlinks=False):
        info.pax_headers[XATTR + each] = os.getxattr(path, each, follow_symlinks=False).decode()
    return None if os.path.basename(info.name) in LEFT_OUT else info


MAKE = {"clean": clean, "redo": redo, "filled": filled, "signed": signed, "mapped": mapped, "beneath": beneath}


def show(root, beneath=None):
    """What a read-only open tells of a store: its catalog, what it serves, and what recovery would do."""
    with layerstore.open(root, readonly=True, beneath=beneath) as store:
        return {
            "dump": layerjournal.canonical_dump(store._handle.journal.fold()).hex(),
            "plan": store.recovery.as_json() | {"seconds": 0},
            "layers": {x.id: [x.state, x.diff_id, x.parent, list(x.names)] for x in store.layers()},
            "images": {x.id: list(x.names) for x in store.images()},
            "overlay_form": store._handle.overlay_form,
        }


def unpack(name, directory, version="v1"):
    """The golden store *name* in *directory*; its path. Owners are the caller's."""
    data = (HERE / version / f"{name}.tar.gz").read_bytes()
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        archive.extractall(directory, **({"filter": "fully_trusted"} if hasattr(tarfile, "fully_trusted_filter") else {}))
        for info in archive:
            if info.issym():   # the only times that ``extractall`` leaves out
                os.utime(os.path.join(directory, info.name), (info.mtime, info.mtime), follow_symlinks=False)
            for key, value in info.pax_headers.items():
                if key.startswith(XATTR):
                    os.setxattr(os.path.join(directory, info.name), key.removeprefix(XATTR), value.encode())
    return pathlib.Path(directory, name)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as made:
        os.chmod(made, 0o777)
        for each in sys.argv[2:]:
            make(each, sys.argv[1], made)
