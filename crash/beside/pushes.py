"""Workloads that push images to directories and archives, and write a snapshot; who reads them knows no layerstore."""

from __future__ import annotations

import json
import os
import tarfile
from collections.abc import Callable, Iterator, Mapping
from functools import partial

import layerjournal
import layerstore
from crash.beside.common import beside, compared, killed, pulled, told
from crash.beside.viewreading import read
from crash.content import Picture, digest
from crash.workloads import Workload
from layerstore.store import Store
from layerstore.testing import Ledger
from layerstore.testing.ledger import Value

__all__ = ["OUT", "build", "look_at_layout"]

OUT, TAR, DOCKER, SNAPSHOT = "out", "out.tar", "docker.tar", "snapshot"


def build(one: Picture, two: Picture) -> list[Workload]:
    before = partial(pulled, one, two)
    return [
        Workload("push", before, partial(_push, one, two), _push_again, look=look_at_layout),
        Workload("push-killed", before, partial(_push_killed, one), _push_again, look=look_at_layout),
        Workload("push-archives", before, partial(_push_archives, one, two), _push_again, look=_look_at_archives),
        Workload("snapshot", before, _snapshot, _snapshot_again, look=_look_at_snapshot),
    ]


def _push_to(store: Store, ledger: Ledger, what: Picture, name: str, target: str, compression: str = "as-it-came") -> None:
    with ledger.asking(told(target.partition("/")[2] or target, what.id)):
        kind, _, rest = target.partition("/")
        store.push(name, f"{kind}:{beside(store.root, rest)}", compression=compression)


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

    killed("push.document.parent.sync:before:kill:2", first)
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
        store.push("one", f"{kind}:{beside(store.root, name)}", compression="none")
    (image,) = (each for each in store.images() if "one" in each.names)
    found = _layout(beside(store.root, OUT))
    assert found["again"] == image.id, found


def look_at_layout(root: str, lines: list[bytes]) -> list[str]:
    at = beside(root, OUT)

    def facts() -> dict[str, Value]:
        found: dict[str, Value] = {}
        for tag, image_id in _layout(at).items():
            found |= told(f"{OUT}:{tag}", image_id)
        return found

    return compared(OUT, facts, lines)


def _layout(at: str) -> dict[str, str]:
    """The image IDs by tag in an OCI layout; everything that it lists is there and is what its digest says."""
    def blob(name: str) -> bytes:
        return read(os.path.join(at, name))

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
        for name, image_in in ((TAR, _oci_archive), (DOCKER, _docker_archive)):
            if os.path.exists(beside(root, name)):
                with tarfile.open(beside(root, name)) as archive:
                    found |= told(name, image_in({each.name: _member(archive, each) for each in archive}))
        return found

    return compared("an archive", facts, lines)


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
    with layerstore.open(root) as store, ledger.asking(told(SNAPSHOT, "present")):
        store.snapshot(beside(root, SNAPSHOT))


def _snapshot_again(store: Store) -> None:
    path = beside(store.root, f"{SNAPSHOT}-again")
    store.snapshot(path)
    assert _records(path), "there is nothing in it"


def _records(path: str) -> int:
    return sum(1 for _ in layerjournal.Replay.open([path]).segments[0].records())


def _look_at_snapshot(root: str, lines: list[bytes]) -> list[str]:
    path = beside(root, SNAPSHOT)
    return compared(SNAPSHOT, lambda: told(SNAPSHOT, "present" if os.path.exists(path) and _records(path) else None), lines)
