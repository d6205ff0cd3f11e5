"""Committing: what was written to a writable mount becomes a layer, and with those beneath it an image.

May live here: finding the mount, holding it, making the image's documents. Reading the upper directory is
``DirectoryDiffer``'s, everything on the disk ``stage``'s and ``apply``'s: a crash leaves what it leaves of any apply.

The upper directory is alive, so it is looked at before and after it is read: every path's inode, size and change time.
If they are not the same, what was read may be a mixture, and nothing is committed. Change times are the kernel's and
cannot be set, but go by ticks: a directory in which something changed in this very tick is looked at again a little later.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat as stat_module
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from layerstore.differs import DirectoryDiffer
from layerstore.errors import BusyError, InvalidArgumentError, UnknownMountError
from layerstore.lifecycle import catalog
from layerstore.lifecycle.states import State
from layerstore.model import Image, Layer, SourceImage, StageOptions, default_layer_id
from layerstore.opening.beneath import looking
from layerstore.opening.handle import Handle
from layerstore.opening.reading import ReaderLock
from layerstore.sources.platforms import this_machine
from layerstore.system import flock, fs
from layerstore.system.descriptors import DIRECTORY
from layerstore.verbs.apply import apply_batch
from layerstore.verbs.batch import LayerSpec
from layerstore.verbs.export import image_documents
from layerstore.verbs.names import check_name
from layerstore.verbs.stage import stage

__all__ = ["CommitOptions", "commit"]

OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
_TAR = {   # an uncompressed layer, in the manifest of each kind
    OCI_MANIFEST: "application/vnd.oci.image.layer.v1.tar",
    "application/vnd.docker.distribution.manifest.v2+json": "application/vnd.docker.image.rootfs.diff.tar",
}
_OCI_CONFIG = "application/vnd.oci.image.config.v1+json"
_TICK_NS = 20_000_000   # more than two of the coarsest ticks that Linux has
_TRIES = 100


@dataclass(frozen=True, slots=True)
class CommitOptions:
    """How to commit.

    ``base``: the image whose config the new one takes over, where the mount's layers are those of several. ``config``:
    members of its ``config`` object to set (``Cmd``, ``Env`` …; OCI image specification, config.md), or what makes the new
    object of the base's. ``comment``: for its history. ``replace_names``: take the names away from what has them.
    """

    base: str | None = None
    config: Mapping[str, Any] | Callable[[Mapping[str, Any]], Mapping[str, Any]] | None = None
    comment: str = ""
    replace_names: bool = False


def commit(handle: Handle, target: str, names: Sequence[str], options: CommitOptions) -> Image:
    """Commit the writable mount at *target* (a path, or the mount's ID); the verb behind ``Store.commit``."""
    handle.check_writable()
    for name in names:
        check_name(name)
    if any(side is not None and any(a != b for a, b, _ in side) for side in (handle.ids.uids, handle.ids.gids)):
        raise InvalidArgumentError("the upper directory has the host's ids, which a layer of this store must not have",
                                   hint="commit in the user namespace that the store is for")
    mount_id, row = _mount_at(handle, target)
    layer_ids, recorded = list(row["layers"]), catalog.recorded_beneath(row)
    lock = flock.lock_tree(handle.dirs["uppers"], mount_id, shared=True, wait=0.0, point="commit.lock")
    if lock is None:
        raise UnknownMountError(f"the upper directory of the mount at {target} is gone")
    with lock, ReaderLock(handle, layer_ids, recorded=recorded):
        _mount_at(handle, mount_id)   # an unmount may have been quicker; from here on it is refused
        with looking(handle) as view:
            chain = [catalog.layer(view, each, recorded=recorded.get(each)) for each in layer_ids]
            base = _base(view, layer_ids, options.base)
        before = _settled(lock.fd, target)
        upper = os.path.join(handle.root, "uppers", mount_id, "upper")
        with stage(handle, DirectoryDiffer(upper), StageOptions(), lambda _n: None) as staged:
            if _look(lock.fd)[0] != before:
                raise _changing(target)
            output = staged.output
            made = _image(handle, chain, base, (output.diff_id, output.diff_size), options)
            top = default_layer_id(layer_ids[-1], output.diff_id)
            _, image = apply_batch(
                handle, [LayerSpec(staged, parent=layer_ids[-1], id=top)], image=made, image_layers=[*layer_ids, top],
                image_names=names, replace_names=options.replace_names,
            )
    assert image is not None
    return image


# -- the mount -----------------------------------------------------------------------------------------------------


def _mount_at(handle: Handle, target: str) -> tuple[str, Mapping[str, Any]]:
    """ID and row of the writable mount, mounted or kept, at a path or of an ID."""
    path = os.path.realpath(target)
    with handle.read() as view:
        for key, row in view.scan("mounts"):
            if target != key and path != row["target"]:
                continue
            if not row["writable"]:
                raise InvalidArgumentError(f"the mount at {row['target']} is read-only: there is nothing to commit")
            if row["state"] == State.MOUNTED or row.get("kept", False):
                return key, row
    raise UnknownMountError(f"nothing of this store is mounted at {target}")


def _base(view: catalog.Reader, layer_ids: list[str], wanted: str | None) -> Image | None:
    """The image that was mounted: the row has its layers only. None for a chain that is no image's."""
    found = [each for each in catalog.images(view) if list(each.layers) == layer_ids]
    if wanted is not None:
        kind, owner = catalog.resolve(view, wanted)
        found = [each for each in found if (kind, owner) == ("image", each.id)]
        if not found:
            raise InvalidArgumentError(f"{wanted} is not an image of the layers that are mounted")
    if len(found) > 1:
        raise InvalidArgumentError(
            f"{len(found)} images have the layers that are mounted: {', '.join(each.id[:12] for each in found)}",
            hint="say whose config the new one takes over (base)",
        )
    return found[0] if found else None


# -- has it changed? -------------------------------------------------------------------------------------------------


def _settled(own_fd: int, target: str) -> bytes:
    for _ in range(_TRIES):
        digest, newest = _look(own_fd)
        if abs(time.time_ns() - newest) > _TICK_NS:
            return digest
        time.sleep(_TICK_NS / 1e9)
    raise _changing(target)


def _changing(target: str) -> BusyError:
    return BusyError(f"what is mounted at {target} changed while it was read", hint="pause what runs in it, and try again")


def _look(own_fd: int) -> tuple[bytes, int]:
    """A digest of what every change would change, and the newest time of a change, in nanoseconds since 1970."""
    seen, newest = hashlib.sha256(), 0
    with fs.open_dir("upper", own_fd) as upper:
        pending = [(b".", os.dup(upper))]
        while pending:
            path, fd = pending.pop()
            try:
                for name in sorted(map(os.fsencode, [".", *os.listdir(fd)])):
                    found = os.stat(name, dir_fd=fd, follow_symlinks=False)
                    newest = max(newest, found.st_ctime_ns)
                    seen.update(b"%s/%s\0%d %d %d\n" % (path, name, found.st_ino, found.st_size, found.st_ctime_ns))
                    if name != b"." and stat_module.S_ISDIR(found.st_mode):
                        pending.append((path + b"/" + name, os.open(name, DIRECTORY, dir_fd=fd)))
            except FileNotFoundError:
                seen.update(os.urandom(32))   # it is changing just now: like nothing else
            finally:
                os.close(fd)
    return seen.digest(), newest


# -- the image's documents -------------------------------------------------------------------------------------------


def _image(
    handle: Handle, chain: list[Layer], base: Image | None, layer: tuple[str, int], options: CommitOptions,
) -> SourceImage:
    """The base's config and manifest with one more layer. Of a chain that is no image's: as few members as there may be."""
    kind = base.manifest_media_type if base is not None and base.manifest_media_type in _TAR else OCI_MANIFEST
    if base is None:
        machine = this_machine()
        config: dict[str, Any] = {"architecture": machine.architecture, "os": machine.os, "config": {}}
        config["rootfs"] = {"type": "layers", "diff_ids": [each.diff_id for each in chain]}
        manifest: dict[str, Any] = {"schemaVersion": 2, "mediaType": kind, "config": {"mediaType": _OCI_CONFIG}}
        manifest["layers"] = [_descriptor(kind, each.diff_id, each.diff_size) for each in chain]
    else:
        manifest, config = map(json.loads, image_documents(handle, base.id))
        _of_its_own(manifest, base)
    now = datetime.fromtimestamp(handle.clock() / 1e9, UTC).isoformat().replace("+00:00", "Z")
    config["created"] = now
    before = config.get("config") or {}
    changed = options.config(before) if callable(options.config) else {**before, **(options.config or {})}
    config["config"] = dict(changed)
    config["rootfs"]["diff_ids"].append(layer[0])
    if config.get("history") or base is None:
        entry = {"created": now, "created_by": "layerstore commit"}
        entry |= {"comment": options.comment} if options.comment else {}
        config["history"] = [*(config.get("history") or [{"created": now}] * len(chain)), entry]
    text = _json(config)
    manifest["config"] = {**manifest["config"], "digest": _sha256(text), "size": len(text)}
    manifest["layers"].append(_descriptor(kind, *layer))
    whole = _json(manifest)
    return SourceImage(whole, _sha256(whole), kind, text, _sha256(text), layers=())


def _of_its_own(manifest: dict[str, Any], base: Image) -> None:
    """What the base's manifest says of the base alone is not said of the new image.

    Instead what it stands on (``org.opencontainers.image.base.digest``; OCI image specification, annotations.md).
    """
    for member in ("subject", "artifactType", "annotations"):
        manifest.pop(member, None)
    if base.manifest_media_type == OCI_MANIFEST:
        manifest["annotations"] = {"org.opencontainers.image.base.digest": base.manifest_digest}


def _descriptor(kind: str, digest: str, size: int) -> dict[str, Any]:
    return {"mediaType": _TAR[kind], "digest": digest, "size": size}


def _json(document: dict[str, Any]) -> bytes:
    return json.dumps(document, separators=(",", ":"), ensure_ascii=False).encode()


def _sha256(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()
