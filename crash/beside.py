"""Workloads that write beside the store: a view, images pushed to directories and archives, a snapshot; and who reads them.

The ledger's subjects are ``beside:<what>``, which the store's own oracle does not know (``apart``). ``look`` reads what a
crash left as another tool would, before anybody opens the store. In ``-killed`` a process is killed in the middle, and the
next one finds what the first had not yet made durable: it must not build on it.
"""

from __future__ import annotations

import json
import os
import signal
import tarfile
from collections.abc import Callable, Iterator, Mapping
from functools import partial

import layerjournal
import layerstore
from crash import viewreading
from crash import workloads as w
from crash.content import Picture, digest, picture
from crash.workloads import Images, Workload, pull
from layerstore.store import Store
from layerstore.system import faults, kernel
from layerstore.testing import Ledger, run_child
from layerstore.testing.ledger import Expectation, Value, expectation
from layerstore.testing.oracle import compare

__all__ = ["apart", "build"]

_PREFIX = "beside:"
VIEW, OUT, TAR, DOCKER, SNAPSHOT = "view", "out", "out.tar", "docker.tar", "snapshot"


def apart(expect: Expectation) -> tuple[Expectation, Expectation]:
    """What is expected of the store, and what of the things beside it."""
    def part(beside: bool) -> Expectation:
        return Expectation(
            {subject: each for subject, each in expect.allowed.items() if subject.startswith(_PREFIX) is beside},
            {number: mine for number, facts in expect.open.items()
             if (mine := {s: v for s, v in facts.items() if s.startswith(_PREFIX) is beside})},
            expect.answered,
        )

    return part(beside=False), part(beside=True)


def build(images: Images, directory: str) -> dict[str, Workload]:
    """All of them, by name; a third image is written to *directory*."""
    third = picture(os.path.join(directory, "third"), [w.ONE, w.FOUR])
    one, two = images.first, images.second
    made = [
        Workload("view", partial(_shown, one, two), partial(_refresh, third), _view_again, look=_look_at_view),
        Workload("view-first", partial(_pulled, one, two), _view_first, _view_again, look=_look_at_view),
        Workload("view-killed", partial(_shown, one, two), partial(_view_killed, third), _view_again, look=_look_at_view),
        Workload("view-removed", partial(_shown, one, two), _remove, _view_again, look=_look_at_view),
        Workload("push", partial(_pulled, one, two), partial(_push, one, two), _push_again, look=_look_at_layout),
        Workload("push-killed", partial(_pulled, one, two), partial(_push_killed, one), _push_again, look=_look_at_layout),
        Workload("push-archives", partial(_pulled, one, two), partial(_push_archives, one, two), _push_again,
                 look=_look_at_archives),
        Workload("snapshot", partial(_pulled, one, two), _snapshot, _snapshot_again, look=_look_at_snapshot),
    ]
    return {each.name: each for each in made}


def _beside(root: str, name: str) -> str:
    return os.path.join(os.path.dirname(root), name)


def _told(name: str, value: Value) -> dict[str, Value]:
    return {f"{_PREFIX}{name}": value}


def _pulled(one: Picture, two: Picture, root: str, ledger: Ledger) -> None:
    with layerstore.open(root) as store:
        pull(store, ledger, one, "one")
        pull(store, ledger, two, "two")
        kernel.syncfs(store._handle.sync_fd)   # what the power is cut of is what is made of them


def _killed(fault: str, do: Callable[[], object]) -> None:
    """Do it in a child that dies there; what the recording notes at fault points it notes of the child, too."""
    noting, dying = faults.install(None), faults.parse(fault)
    faults.install(noting)

    def hook(point: str, when: str) -> None:
        if noting is not None:
            noting(point, when)
        dying(point, when)

    status = run_child(do, hook=hook)
    assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL, f"not killed at {fault}: {status:#x}"


# -- a view ------------------------------------------------------------------------------------------------------------


def _names(*names: str) -> str:
    return " ".join(sorted(f"localhost/{each}:latest" for each in names))


def _view(store: Store, ledger: Ledger, *names: str) -> None:
    with ledger.asking(_told(VIEW, _names(*names))):
        store.view(_beside(store.root, VIEW))


def _shown(one: Picture, two: Picture, root: str, ledger: Ledger) -> None:
    """Both are shown; then one goes, whose layers the view keeps."""
    _pulled(one, two, root, ledger)
    with layerstore.open(root) as store:
        _view(store, ledger, "one", "two")
        with ledger.asking(w.image(two.id, None), w.name("two", "image", None)):
            store.delete_image(two.id)
        kernel.syncfs(store._handle.sync_fd)


def _view_first(root: str, ledger: Ledger) -> None:
    with layerstore.open(root) as store:
        _view(store, ledger, "one", "two")


def _refresh(third: Picture, root: str, ledger: Ledger) -> None:
    """One image goes from the view, another comes; then what it held is deleted."""
    with layerstore.open(root) as store:
        pull(store, ledger, third, "third")
        _view(store, ledger, "one", "third")
        _collect(store, ledger)


def _collect(store: Store, ledger: Ledger) -> None:
    """What the view shows is held, and what it does not show any more is not."""
    kept = {each for image in store.images() for each in image.layers}
    with ledger.asking(*(w.layer(each.id, None) for each in store.layers() if each.id not in kept)):
        store.collect_garbage(grace=0)


def _view_killed(third: Picture, root: str, ledger: Ledger) -> None:
    """The first refresh is killed when the view has changed, and that is not yet on disk."""
    def first() -> None:
        with layerstore.open(root) as store:
            _view(store, ledger.shared(), "one", "third")

    with layerstore.open(root) as store:
        pull(store, ledger, third, "third")
    _killed("view.switch.sync:before:kill", first)
    with layerstore.open(root) as store:
        _view(store, ledger, "one", "third")
        _collect(store, ledger)


def _remove(root: str, ledger: Ledger) -> None:
    with layerstore.open(root) as store, ledger.asking(_told(VIEW, None)):
        store.remove_view(_beside(root, VIEW))


def _view_again(store: Store) -> None:
    at = _beside(store.root, VIEW)
    for _ in range(2):
        store.view(at)
        shown = {name for names in viewreading.read_view(at).values() for name in names}
        assert shown == {f"localhost/{name}:latest" for image in store.images() for name in image.names}, shown
    store.remove_view(at)
    assert not os.path.lexists(at), "something of the view is left"


def _look_at_view(root: str, lines: list[bytes]) -> list[str]:
    at = _beside(root, VIEW)
    viewreading.moved(at, root)

    def facts() -> dict[str, Value]:
        shown = [name for names in viewreading.read_view(at).values() for name in names] if os.path.isdir(at) else []
        return _told(VIEW, " ".join(sorted(shown)) or None)

    return _compared(VIEW, facts, lines)


def _compared(what: str, facts: Callable[[], Mapping[str, Value]], lines: list[bytes]) -> list[str]:
    try:
        return compare(facts(), apart(expectation(lines))[1])
    except Exception as error:  # noqa: BLE001 - whatever the reader stumbles over
        return [f"{what} is broken: {error!r}"]


# -- images that are pushed --------------------------------------------------------------------------------------------


def _push_to(store: Store, ledger: Ledger, what: Picture, name: str, target: str, compression: str = "as-it-came") -> None:
    with ledger.asking(_told(target.partition("/")[2] or target, what.id)):
        kind, _, rest = target.partition("/")
        store.push(name, f"{kind}:{_beside(store.root, rest)}", compression=compression)


def _push(one: Picture, two: Picture, root: str, ledger: Ledger) -> None:
    """Two images to one layout, which is new; the second shares layers with the first, and its tag moves."""
    with layerstore.open(root) as store:
        _push_to(store, ledger, one, "one", f"oci/{OUT}:a", "none")
        _push_to(store, ledger, two, "two", f"oci/{OUT}:b")
        _push_to(store, ledger, two, "two", f"oci/{OUT}:a", "none")


def _push_killed(one: Picture, root: str, ledger: Ledger) -> None:
    """The first push is killed when all blobs have their names, of which not all are on disk."""
    def first() -> None:
        with layerstore.open(root) as store:
            _push_to(store, ledger.shared(), one, "one", f"oci/{OUT}:a", "none")

    _killed("push.document.parent.sync:before:kill:2", first)
    with layerstore.open(root) as store:
        _push_to(store, ledger, one, "one", f"oci/{OUT}:a", "none")


def _push_archives(one: Picture, two: Picture, root: str, ledger: Ledger) -> None:
    with layerstore.open(root) as store:
        _push_to(store, ledger, one, "one", f"oci-archive/{TAR}")
        _push_to(store, ledger, one, "one", f"docker-archive/{DOCKER}")
        _push_to(store, ledger, two, "two", f"oci-archive/{TAR}", "gzip")
        _push_to(store, ledger, two, "two", f"docker-archive/{DOCKER}")


def _push_again(store: Store) -> None:
    """In any place, also where an earlier push was interrupted; and what comes of it is pulled elsewhere."""
    for kind, name in (("oci", f"{OUT}:again"), ("oci-archive", TAR), ("docker-archive", DOCKER)):
        store.push("one", f"{kind}:{_beside(store.root, name)}", compression="none")
    (image,) = (each for each in store.images() if "one" in each.names)
    found = _layout(_beside(store.root, OUT))
    assert found["again"] == image.id, found


def _look_at_layout(root: str, lines: list[bytes]) -> list[str]:
    at = _beside(root, OUT)
    return _compared(OUT, lambda: {k: v for tag, i in _layout(at).items() for k, v in _told(f"{OUT}:{tag}", i).items()}, lines)


def _layout(at: str) -> dict[str, str]:
    """The image IDs by tag in an OCI layout; everything that it lists is there and is what its digest says."""
    def blob(name: str) -> bytes:
        return viewreading.read(os.path.join(at, name))

    if not os.path.exists(os.path.join(at, "index.json")):
        return {}
    assert json.loads(blob("oci-layout"))["imageLayoutVersion"] == "1.0.0"
    return dict(_listed(json.loads(blob("index.json")), blob))


def _listed(index: Mapping[str, object], blob: Callable[[str], bytes]) -> Iterator[tuple[str, str]]:
    def named(descriptor: Mapping[str, object]) -> bytes:
        data = blob("blobs/" + str(descriptor["digest"]).replace(":", "/"))
        assert (digest(data), len(data)) == (descriptor["digest"], descriptor["size"]), f"{descriptor} is not what it says"
        return data

    for each in index["manifests"]:  # type: ignore[attr-defined]
        manifest = json.loads(named(each))
        for layer in manifest["layers"]:
            named(layer)
        yield (each.get("annotations", {}).get("org.opencontainers.image.ref.name", ""),
               digest(named(manifest["config"])).removeprefix("sha256:"))


def _look_at_archives(root: str, lines: list[bytes]) -> list[str]:
    def facts() -> dict[str, Value]:
        found: dict[str, Value] = {}
        for name, read in ((TAR, _oci_archive), (DOCKER, _docker_archive)):
            if os.path.exists(_beside(root, name)):
                with tarfile.open(_beside(root, name)) as archive:
                    found |= _told(name, read({each.name: _member(archive, each) for each in archive}))
        return found

    return _compared("an archive", facts, lines)


def _member(archive: tarfile.TarFile, info: tarfile.TarInfo) -> bytes:
    file = archive.extractfile(info)
    assert file is not None
    data = file.read()
    assert len(data) == info.size, f"{info.name} is cut short"
    return data


def _oci_archive(members: Mapping[str, bytes]) -> str:
    ((_, image_id),) = _listed(json.loads(members["index.json"]), members.__getitem__)
    return image_id


def _docker_archive(members: Mapping[str, bytes]) -> str:
    ((listed),) = json.loads(members["manifest.json"])
    config = members[listed["Config"]]
    assert [digest(members[each]) for each in listed["Layers"]] == json.loads(config)["rootfs"]["diff_ids"]
    return digest(config).removeprefix("sha256:")


# -- a snapshot --------------------------------------------------------------------------------------------------------


def _snapshot(root: str, ledger: Ledger) -> None:
    with layerstore.open(root) as store, ledger.asking(_told(SNAPSHOT, "present")):
        store.snapshot(_beside(root, SNAPSHOT))


def _snapshot_again(store: Store) -> None:
    path = _beside(store.root, f"{SNAPSHOT}-again")
    store.snapshot(path)
    assert _records(path), "there is nothing in it"


def _records(path: str) -> int:
    return sum(1 for _ in layerjournal.Replay.open([path]).segments[0].records())


def _look_at_snapshot(root: str, lines: list[bytes]) -> list[str]:
    path = _beside(root, SNAPSHOT)
    return _compared(SNAPSHOT, lambda: _told(SNAPSHOT, "present" if os.path.exists(path) and _records(path) else None), lines)
