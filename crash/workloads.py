"""What is done to a store, by name. Each workload prepares a store, then does something with a ledger at hand.

``prepare`` runs undisturbed; ``run`` is what a rig kills, starves or cuts the power of; ``again`` is what a user would
do after the crash, on the recovered store, and must succeed. Checkpoints are as lazy as in the product: ``prepare``
makes none unless the workload is about one, so that recovery has redo to do.

All order is fixed (one worker, no threads but the product's own), so that the n-th call of a run is the n-th call of
the next. ``pair`` alone has two processes.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

import layerstore
from crash.content import Content, Picture, content, picture
from crash.remote import read_first, remotely
from crash.taking import TakingDiffer
from layerstore import LayerSpec, PullOptions, Tally, TarDiffer
from layerstore.dedup import LayerFinder
from layerstore.errors import SourceError
from layerstore.model import Descriptor, Image
from layerstore.store import Store
from layerstore.system import fs
from layerstore.testing.children import start_child
from layerstore.testing.ledger import Ledger, image, layer, name

ONE, TWO, THREE, FOUR, FIVE = (content(label) for label in ("a1", "a2", "a3", "a4", "a5"))
BASE, DOOMED, AGAIN, TOP, LEFT = (content(label) for label in ("base", "doomed1", "again", "top", "left"))
LARGE = content("large", size=300_000)
BASE_ID, TOP_ID, DOOMED_ID = "b" * 64, "c" * 64, "d" * 64
SHARED = content("shared6", size=100_000)   # large enough for its blocks to be shared, where the file system does that
FIRST_ID, SECOND_ID = "1" * 64, "2" * 64
SETTLE = "rig.settle"   # a sync of the rigs' own, and no barrier of the product


@dataclass(frozen=True)
class Workload:
    """A name, and three functions. ``prepare`` and ``run`` get the store's path and the ledger; ``again`` the store.

    ``look`` is what somebody sees who does not open the store, right after the crash: what is wrong with that.
    """

    name: str
    prepare: Callable[[str, Ledger], None]
    run: Callable[[str, Ledger], None]
    again: Callable[[Store], object]
    mend: Callable[[str], object] = lambda _root: None   # by an operator, where a crash leaves what is not opened
    look: Callable[[str, list[bytes]], list[str]] = lambda _root, _ledger: []
    handle: bool = True   # whether it works by a handle, which is poisoned where a sync fails


class Images:
    """The images that the workloads pull, written once into a directory of the rig's, outside every store."""

    def __init__(self, directory: str) -> None:
        self.first = picture(os.path.join(directory, "first"), [ONE, TWO, THREE], signed=True)
        self.second = picture(os.path.join(directory, "second"), [ONE, TWO, FIVE])
        self.large = picture(os.path.join(directory, "large"), [LARGE])


def settle(root: str) -> None:
    """All that was done to the store, and beside it, is on disk: what a loss of power takes away is of what comes after."""
    with fs.open_dir(root) as fd:
        fs.sync_filesystem(fd, point=SETTLE)


def stage(store: Store, what: Content) -> layerstore.StagedLayer:
    """Stage with a descriptor, so that what is left staged can be adopted."""
    tar = what.tar
    expect = Descriptor("application/vnd.oci.image.layer.v1.tar", what.diff_id, len(tar))
    return store.stage(TarDiffer(tar, expect=expect))


def _sealed(store: Store, what: Content) -> layerstore.StagedLayer:
    """The same, made durable at once."""
    staged = stage(store, what)
    staged.seal()
    return staged


def put(
    store: Store, ledger: Ledger, what: Content, layer_id: str, *, parent: str | None = None,
    names: tuple[str, ...] = (), big_data: dict[str, bytes] | None = None,
) -> None:
    """Stage and apply one layer."""
    facts = [layer(layer_id, what.diff_id), *(name(each, "layer", layer_id) for each in names)]
    with stage(store, what) as staged, ledger.asking(*facts):
        store.apply_staged_layer(staged, id=layer_id, parent=parent, names=names, big_data=big_data)


def drop(store: Store, ledger: Ledger, layer_id: str, *names: str) -> None:
    """Delete one layer."""
    with ledger.asking(layer(layer_id, None), *(name(each, "layer", None) for each in names)):
        store.delete_layer(layer_id)


def facts_of(what: Picture, tag: str) -> list[dict[str, str | None]]:
    """All that a pull of an image under the name *tag* is to bring about."""
    layers = [layer(i, each.diff_id) for i, each in zip(what.layer_ids(), what.layers, strict=True)]
    return [image(what.id), name(tag, "image", what.id), *layers]


def pull(store: Store, ledger: Ledger, what: Picture, tag: str) -> None:
    """Pull an image with one worker."""
    with ledger.asking(*facts_of(what, tag)):
        store.pull(what.reference, names=[tag], options=PullOptions(workers=1))


def signatures_of(pulled: Image) -> tuple[bytes, ...]:
    """The manifests of an image's signatures, in the catalog."""
    return tuple(each.manifest for each in pulled.signatures)


def pull_again(what: Picture, tag: str) -> Callable[[Store], object]:
    """The pull of a user who saw it crash: it must succeed, and everything must be there; an image with its signatures."""
    def again(store: Store) -> None:
        for each in store.images():
            assert each.id != what.id or signatures_of(each) == what.signatures, "the image is there without its signatures"
        pulled = store.pull(what.reference, names=[tag])
        assert signatures_of(pulled) == what.signatures, "the pulled image has other signatures"
        assert pulled.id == what.id, f"the pull gave image {pulled.id}, not {what.id}"
        assert list(pulled.layers) == what.layer_ids(), "the pulled image has other layers"
        assert store.resolve(tag) == ("image", what.id), f"the name {tag} leads elsewhere"

    return again


def _fresh(root: str, ledger: Ledger) -> None:
    with layerstore.open(root) as store:
        put(store, ledger, BASE, BASE_ID, names=("base",))


def _reopen(_store: Store) -> None:
    """Nothing to do again but to open, which the oracle has done."""


def _ensure(*wanted: tuple[Content, str, str | None]) -> Callable[[Store], object]:
    """Apply what is not there yet, as a user would."""
    def again(store: Store) -> None:
        here = {each.id for each in store.layers()}
        for what, layer_id, parent in wanted:
            if layer_id not in here:
                with stage(store, what) as staged:
                    store.apply_staged_layer(staged, id=layer_id, parent=parent)

    return again


def apply_(root: str, ledger: Ledger) -> None:
    """Single applies: with big data and a name, plain, and a duplicate."""
    with layerstore.open(root) as store:
        put(store, ledger, TOP, TOP_ID, parent=BASE_ID, names=("top",), big_data={"key": b"value" * 50})
        put(store, ledger, ONE, FIRST_ID)
        put(store, ledger, ONE, FIRST_ID)


def batch(root: str, ledger: Ledger) -> None:
    """Two layers, one on the other, as one batch."""
    facts = [layer(FIRST_ID, ONE.diff_id), layer(SECOND_ID, TWO.diff_id), name("pair", "layer", SECOND_ID)]
    with layerstore.open(root) as store, stage(store, ONE) as one, stage(store, TWO) as two:
        with ledger.asking(*facts):  # the trees are staged before anything is asked for
            store.apply_batch([
                LayerSpec(one, id=FIRST_ID, parent=BASE_ID),
                LayerSpec(two, id=SECOND_ID, parent=FIRST_ID, names=("pair",)),
            ])


def _with_doomed(root: str, ledger: Ledger) -> None:
    with layerstore.open(root) as store:
        put(store, ledger, BASE, BASE_ID, names=("base",))
        put(store, ledger, DOOMED, DOOMED_ID, names=("doomed",))


def delete(root: str, ledger: Ledger) -> None:
    """Delete a layer, and create its ID again with other content."""
    with layerstore.open(root) as store:
        drop(store, ledger, DOOMED_ID, "doomed")
        put(store, ledger, AGAIN, DOOMED_ID, parent=BASE_ID)


def checkpoints(root: str, ledger: Ledger) -> None:
    """Checkpoint and archive between deletes and applies: what is covered is emptied and archived."""
    with layerstore.open(root) as store:
        store.checkpoint(archive=True)
        drop(store, ledger, DOOMED_ID, "doomed")
        put(store, ledger, ONE, FIRST_ID, parent=BASE_ID)
        store.checkpoint(archive=True)
        put(store, ledger, AGAIN, DOOMED_ID)
        drop(store, ledger, FIRST_ID)
        store.checkpoint()


def garbage(root: str, ledger: Ledger) -> None:
    """Leave a staged layer, sealed, and one that is not; then collect both, and the layer that nothing uses."""
    with layerstore.open(root) as store:
        _sealed(store, LEFT).release()
        stage(store, TWO).release()
        put(store, ledger, ONE, FIRST_ID)
        with ledger.asking(layer(FIRST_ID, None)):
            store.collect_garbage(retention=0, grace=0)


def _left_staged(root: str, ledger: Ledger) -> None:
    _fresh(root, ledger)
    with layerstore.open(root) as store:
        stage(store, LEFT).release()


def adopt(root: str, ledger: Ledger) -> None:
    """Stage what an earlier attempt left staged, and apply it; then stage and discard."""
    with layerstore.open(root) as store:
        put(store, ledger, LEFT, FIRST_ID, parent=BASE_ID)
        stage(store, TWO).discard()


def _with_shared(root: str, ledger: Ledger) -> None:
    with layerstore.open(root) as store:
        put(store, ledger, BASE, BASE_ID, names=("base",))
        put(store, ledger, SHARED, DOOMED_ID, names=("doomed",))


def take(root: str, ledger: Ledger) -> None:
    """A layer takes its content from another one, which is deleted while it does; the deletion is finished afterwards."""
    with layerstore.open(root) as store:
        def delete_source() -> None:
            with ledger.asking(layer(DOOMED_ID, None), name("doomed", "layer", None)):
                deferred = store.delete_layer(DOOMED_ID, wait=0.0).deferred
                assert deferred or not differ.found, "the source was deleted while it was held"

        differ = TakingDiffer(SHARED.tar, LayerFinder(store._handle), meanwhile=delete_source)
        with store.stage(differ) as staged, ledger.asking(layer(FIRST_ID, SHARED.diff_id)):
            assert differ.taken + differ.cloned + differ.damaged >= differ.found, "what was found was not taken"
            store.apply_staged_layer(staged, id=FIRST_ID, parent=BASE_ID)
        store.recover()


def fetching(what: Picture, tag: str) -> Callable[[str, Ledger], None]:
    """Pull an image whose blob is remote; first the net is gone after some of it, then it is gone on with."""
    def run(root: str, ledger: Ledger) -> None:
        with layerstore.open(root) as store, read_first():
            with suppress(SourceError), remotely(ending_at=200_000):
                pull(store, ledger, what, tag)
            with remotely():
                pull(store, ledger, what, tag)

    return run


def fetch_again(what: Picture, tag: str) -> Callable[[Store], object]:
    """The pull of a user who saw it crash. What a spool has is not fetched again."""
    def again(store: Store) -> None:
        kept = sum(left_to_go_on_with(store.root, each.blob) for each in what.layers)
        fetched = Tally()
        with remotely():
            store.pull(what.reference, names=[tag], progress=fetched)
        most = sum(len(each.blob) for each in what.layers) - kept
        assert fetched.total().fetched <= most, f"{fetched.total().fetched} bytes were fetched, of {most} not kept"
        pull_again(what, tag)(store)

    return again


def left_to_go_on_with(root: str, blob: bytes) -> int:
    """How many bytes of *blob* the spool of an unfinished tree has, told apart by their content."""
    found = 0
    for txid in os.listdir(os.path.join(root, "staging")):
        try:
            with open(os.path.join(root, "staging", txid, "blob"), "rb") as file:
                data = file.read()
        except FileNotFoundError:
            continue
        while found < len(blob) and (length := _next_piece(data, blob, found)):
            found += length
    return found


def _next_piece(spool: bytes, blob: bytes, start: int) -> int:
    """The length of the blob's piece from *start* on that is in the spool whole, by the header that it must have."""
    at = spool.find(b"piece" + start.to_bytes(8, "little"))
    if at < 0:
        return 0
    length = int.from_bytes(spool[at + 13:at + 17], "little")
    return length if spool[at + 25:at + 25 + length] == blob[start:start + length] != b"" else 0


def build(images: Images) -> dict[str, Workload]:
    """All workloads, by name."""
    first, second = images.first, images.second

    def with_image(root: str, ledger: Ledger) -> None:
        _with_doomed(root, ledger)
        with layerstore.open(root) as store:
            pull(store, ledger, first, "app")

    def pulling(root: str, ledger: Ledger) -> None:
        with layerstore.open(root) as store:
            pull(store, ledger, first, "app")

    def image_delete(root: str, ledger: Ledger) -> None:
        with layerstore.open(root) as store:
            gone = [image(first.id, None), name("app", "image", None), *(layer(i, None) for i in first.layer_ids())]
            with ledger.asking(*gone):
                store.delete_image(first.id)
            pull(store, ledger, second, "app")

    def everything(root: str, ledger: Ledger) -> None:
        for part in (apply_, delete, adopt_after, image_delete, checkpoint_only, collect):
            part(root, ledger)

    def adopt_after(root: str, ledger: Ledger) -> None:
        with layerstore.open(root) as store:
            _sealed(store, LEFT).release()
            put(store, ledger, LEFT, SECOND_ID, parent=BASE_ID)

    def checkpoint_only(root: str, _ledger: Ledger) -> None:
        with layerstore.open(root) as store:
            store.checkpoint(archive=True)

    def collect(root: str, ledger: Ledger) -> None:
        with layerstore.open(root) as store:
            stage(store, FOUR).release()
            with ledger.asking(layer(FIRST_ID, None), layer(DOOMED_ID, None), layer(SECOND_ID, None)):
                store.collect_garbage(retention=0, grace=0)

    def two_writers(root: str, ledger: Ledger) -> None:
        def other() -> None:
            with layerstore.open(root) as store:
                pull(store, ledger.shared(), second, "other")

        child = start_child(other)   # forked before this process opens the store
        with layerstore.open(root) as store:
            drop(store, ledger, DOOMED_ID, "doomed")
            pull(store, ledger, first, "app")
        status = os.waitpid(child, 0)[1]
        assert status == 0, f"the other writer ended with {status:#x}"

    def pull_both(store: Store) -> None:
        pull_again(first, "app")(store)
        pull_again(second, "other")(store)

    made = [
        Workload("pull", _fresh, pulling, pull_again(first, "app")),
        Workload("apply", _fresh, apply_, _ensure((TOP, TOP_ID, BASE_ID), (ONE, FIRST_ID, None))),
        Workload("batch", _fresh, batch, _ensure((ONE, FIRST_ID, BASE_ID), (TWO, SECOND_ID, FIRST_ID))),
        Workload("delete", _with_doomed, delete, _ensure((AGAIN, DOOMED_ID, BASE_ID))),
        Workload("image-delete", with_image, image_delete, _reopen),
        Workload("checkpoint", _with_doomed, checkpoints, _ensure((AGAIN, DOOMED_ID, None))),
        Workload("gc", _fresh, garbage, _ensure((ONE, FIRST_ID, None))),
        Workload("adopt", _left_staged, adopt, _ensure((LEFT, FIRST_ID, BASE_ID))),
        Workload("resume", _fresh, fetching(images.large, "large"), fetch_again(images.large, "large")),
        Workload("take", _with_shared, take, _ensure((SHARED, FIRST_ID, BASE_ID))),
        Workload("everything", with_image, everything, pull_again(first, "more")),
        Workload("pair", _with_doomed, two_writers, pull_both),
    ]
    return {each.name: each for each in made}
