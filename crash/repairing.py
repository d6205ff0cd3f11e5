"""The workload ``repair``: layers that were damaged on purpose are put right, or quarantined.

One has all its content in a second layer, and a tree that something of each kind is wrong with; of another one file is lost
for good. The ledger knows the damage: until the repair is told of, each of it may be there or not, and nothing else may be.
``look``: a path that is to be mended is good, or just as bad as it was; and what it was is kept when it is good.
"""

from __future__ import annotations

import io
import os
import tarfile
from contextlib import suppress

import layerstore
from crash import workloads as w
from crash.workloads import Workload, put
from layerstore.store import Store
from layerstore.testing import Ledger, layer
from layerstore.testing.ledger import Facts
from layerstore.testing.oracle import damages

__all__ = [
    "DAMAGE", "ILL", "LOST", "NAME", "SPARE", "NotAllError", "build", "data_of", "flip", "flipped", "look", "mended",
    "prepare", "text_of",
]

NAME = "repair"
ILL, SPARE, LOST = w.FIRST_ID, w.SECOND_ID, w.TOP_ID

DAMAGE = {   # what a check says of it
    ILL: [f"damage:{ILL}/{path}" for path in (
        "", "only-a1", "only-a1/data", "only-a1/empty", "only-a1/link", "shared/file", "stray")],
    LOST: [f"damage:{LOST}/only-a2/data"],
}


def mended(layer_id: str) -> Facts:
    """What a repair of one of the two that are damaged brings about."""
    return dict.fromkeys(DAMAGE[layer_id], None) | (layer(layer_id, "quarantined") if layer_id == LOST else {})


def build() -> dict[str, Workload]:
    return {NAME: Workload(NAME, prepare, _run, _again, look=look)}


def prepare(root: str, ledger: Ledger, *, lost: bool = True) -> None:
    """A store with three layers, two of which are damaged (*lost*: one beyond repair); the ledger knows of it."""
    with layerstore.open(root) as store:
        put(store, ledger, w.ONE, ILL)
        put(store, ledger, w.ONE, SPARE)
        put(store, ledger, w.TWO, LOST)
        _damage(os.path.join(root, "layers", ILL, "diff"))
        if lost:
            flip(os.path.join(root, "layers", LOST, "diff", "only-a2", "data"))
        w.settle(root)   # what the power is cut of is the repair
        found = damages(store, content=True)
        assert sorted(found) == sorted(DAMAGE[ILL] + (DAMAGE[LOST] if lost else [])), found
        with ledger.asking(found):
            pass
        # the other name of a file that is bad: it is as bad, and may come apart from it until all is done
        with suppress(NotAllError), ledger.asking({f"damage:{ILL}/only-a1/hard": "bad"}):
            raise NotAllError


def _damage(diff: str) -> None:
    own = os.path.join(diff, "only-a1")
    flip(os.path.join(own, "data"))                     # it has a second name
    os.unlink(os.path.join(own, "empty"))
    os.unlink(os.path.join(own, "link"))
    os.symlink("elsewhere", os.path.join(own, "link"))
    os.chmod(os.path.join(diff, "shared", "file"), 0o777)
    with open(os.path.join(diff, "stray"), "wb") as file:
        file.write(b"somebody's")


def flip(path: str) -> None:
    status = os.stat(path)
    with open(path, "r+b") as file:
        data = file.read()
        file.seek(0)
        file.write(flipped(data)[:1])
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


class NotAllError(Exception):
    """A repair that came back, and has not done all: some of it may be done."""


def _run(root: str, ledger: Ledger) -> None:
    with layerstore.open(root) as store:
        for layer_id, outcome in ((ILL, ((ILL,), ())), (LOST, ((), (LOST,)))):
            with suppress(NotAllError):
                _mend(store, ledger, layer_id, outcome)


def _mend(
    store: Store, ledger: Ledger, layer_id: str, outcome: tuple[tuple[str, ...], tuple[str, ...]],
) -> None:
    with ledger.asking(mended(layer_id)):
        report = store.repair(layers=[layer_id])
        if (report.mended, report.quarantined) != outcome:   # a call failed: it says so, and is right to go on
            if layer_id in report.quarantined:
                with ledger.asking(layer(layer_id, "quarantined")):
                    pass
            raise NotAllError


def _again(store: Store) -> None:
    store.repair()
    assert {each.id for each in store.layers() if each.state == "quarantined"} == {LOST}, "another one could not be mended"
    store.delete_layer(LOST)
    kept = os.listdir(os.path.join(store.root, "quarantine"))
    found = [os.path.join(each, name) for each in kept for name in os.listdir(os.path.join(store.root, "quarantine", each))]
    texts = [text_of(os.path.join(store.root, "quarantine", each)) for each in found]
    assert b"somebody's" in texts, "what was too many is not kept as evidence"


def look(root: str, _lines: list[bytes]) -> list[str]:
    """Torn or empty, what took a path's place would be worse than what was there."""
    own = os.path.join(root, "layers", ILL)
    good, bad = data_of(w.ONE.tar, "only-a1/data"), flipped(data_of(w.ONE.tar, "only-a1/data"))
    stray = b"somebody's"
    allowed = {
        "only-a1/data": (good, bad), "only-a1/hard": (good, bad), "only-a1/empty": (None, b""), "stray": (None, stray),
    }
    found = {name: text_of(os.path.join(own, "diff", name)) for name in allowed}
    wrong = [f"{name} is neither mended nor as it was" for name, data in found.items() if data not in allowed[name]]
    kept = _everything(os.path.join(own, "mending")) + _everything(os.path.join(root, "quarantine"))
    if found["only-a1/data"] == good and bad not in kept:
        wrong.append("what only-a1/data was is not kept")
    if found["stray"] is None and stray not in kept:
        wrong.append("what was too many is not kept")
    return wrong


def data_of(tar: bytes, name: str) -> bytes:
    with tarfile.open(fileobj=io.BytesIO(tar)) as archive:
        file = archive.extractfile(name)
        assert file is not None
        return file.read()


def flipped(data: bytes) -> bytes:
    return bytes([data[0] ^ 1]) + data[1:]


def _everything(directory: str) -> list[bytes | None]:
    return [text_of(os.path.join(parent, name)) for parent, _, names in os.walk(directory) for name in names]


def text_of(path: str) -> bytes | None:
    if not os.path.isfile(path) or os.path.islink(path):
        return None
    with open(path, "rb") as file:
        return file.read()
