"""The content that the rigs put into stores: small deterministic tars and images, made by Python's ``tarfile``.

Every tree that a rig's store may serve is made here, so ``TREES`` (by diffID) is what the oracle compares with.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass

from layerstore.testing.trees import Tree, tree_of_tar

TREES: dict[str, Tree] = {}
_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
_BUNDLE = "application/vnd.dev.sigstore.bundle.v0.3+json"
_TAG = "org.opencontainers.image.ref.name"


def digest(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


@dataclass(frozen=True)
class Content:
    """One layer: its tar, and what identifies it."""

    label: str
    tar: bytes

    @property
    def diff_id(self) -> str:
        return digest(self.tar)

    @property
    def blob(self) -> bytes:
        return gzip.compress(self.tar, mtime=0)

    @property
    def descriptor(self) -> dict[str, object]:
        """The blob's, as a manifest has it."""
        return described("application/vnd.oci.image.layer.v1.tar+gzip", self.blob)


def content(label: str, *, size: int = 3000) -> Content:
    """A layer of two directories, three files, a symlink, a hard link and (in some) a whiteout; *size* bytes of it
    in a file of pseudo-random bytes, so that a file whose data were lost cannot look right.
    """
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as archive:
        add(archive, "shared", tarfile.DIRTYPE, mode=0o755)
        add(archive, f"only-{label}", tarfile.DIRTYPE, mode=0o750)
        add(archive, f"only-{label}/data", data=_bytes(label, size))
        add(archive, f"only-{label}/empty", data=b"", mode=0o600)
        add(archive, f"only-{label}/link", tarfile.SYMTYPE, target="data")
        add(archive, f"only-{label}/hard", tarfile.LNKTYPE, target=f"only-{label}/data")
        add(archive, "shared/file", data=f"from {label}\n".encode())
        if label[-1:] in "13579":
            add(archive, "shared/.wh.gone", data=b"")
    made = Content(label, buffer.getvalue())
    TREES[made.diff_id] = tree_of_tar(made.tar)
    return made


def many(label: str, *, files: int = 90) -> Content:
    """A layer of so many small files that threads help to make them; some take the place of others."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for number in range(files):
            add(archive, f"{label}-{number % 3}/{number}", data=_bytes(f"{label}{number}", number))
        add(archive, f"{label}-0/0", data=b"instead")
        add(archive, f"{label}-1/linked", tarfile.LNKTYPE, target=f"{label}-0/0")
    made = Content(label, buffer.getvalue())
    TREES[made.diff_id] = tree_of_tar(made.tar)
    return made


def twice(label: str) -> Content:
    """A layer in which a file takes the place of another, which is kept for the tar's sake."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as archive:
        add(archive, label, tarfile.DIRTYPE, mode=0o755)
        for data in (b"first", b"then"):
            add(archive, f"{label}/file", data=data + label.encode())
    made = Content(label, buffer.getvalue())
    TREES[made.diff_id] = tree_of_tar(made.tar)
    return made


def add(
    archive: tarfile.TarFile, path: str, kind: bytes = tarfile.REGTYPE, *, data: bytes = b"", mode: int = 0o644,
    target: str = "",
) -> None:
    info = tarfile.TarInfo(path)
    info.type, info.size, info.mode, info.linkname, info.mtime = kind, len(data), mode, target, 1_700_000_000
    archive.addfile(info, io.BytesIO(data))


def _bytes(label: str, size: int) -> bytes:
    return hashlib.shake_256(label.encode()).digest(size)


@dataclass(frozen=True)
class Picture:
    """An image: layers, base first, and its documents. ``signatures`` are the manifests of those that lie beside it."""

    layers: tuple[Content, ...]
    config: bytes
    manifest: bytes
    reference: str
    signatures: tuple[bytes, ...] = ()

    @property
    def id(self) -> str:
        return hashlib.sha256(self.config).hexdigest()

    def layer_ids(self) -> list[str]:
        """Chain IDs, base first. Source: OCI image specification, config.md, "Layer ChainID"."""
        ids: list[str] = []
        for each in self.layers:
            own = each.diff_id.removeprefix("sha256:")
            ids.append(own if not ids else hashlib.sha256(f"{ids[-1]}+{own}".encode()).hexdigest())
        return ids


def picture(directory: str, layers: Sequence[Content], *, tag: str = "latest", signed: bool = False) -> Picture:
    """Write an image of *layers* as an OCI layout in *directory* (made if absent).

    *signed*: with what has the form of a signature of cosign's, and of one that refers to the manifest (OCI 1.1).
    """
    config = _json({
        "architecture": "amd64", "os": "linux", "config": {},
        "rootfs": {"type": "layers", "diff_ids": [each.diff_id for each in layers]},
    })
    manifest = _json({
        "schemaVersion": 2, "mediaType": _MANIFEST,
        "config": described("application/vnd.oci.image.config.v1+json", config),
        "layers": [each.descriptor for each in layers],
    })
    machine = {"architecture": "amd64", "os": "linux"}
    entries = [described(_MANIFEST, manifest) | {"annotations": {_TAG: tag}, "platform": machine}]
    vouching = _signatures(manifest) if signed else []
    entries += [described(_MANIFEST, document) | entry for document, _, entry in vouching]
    index = _json({"schemaVersion": 2, "manifests": entries})
    blobs = os.path.join(directory, "blobs", "sha256")
    os.makedirs(blobs, exist_ok=True)
    beside = [data for document, payload, _ in vouching for data in (document, payload)]
    for data in (config, manifest, *(each.blob for each in layers), *beside):
        _write(os.path.join(blobs, digest(data)[7:]), data)
    _write(os.path.join(directory, "oci-layout"), _json({"imageLayoutVersion": "1.0.0"}))
    _write(os.path.join(directory, "index.json"), index)
    return Picture(
        tuple(layers), config, manifest, f"oci:{directory}:{tag}", tuple(document for document, _, _ in vouching))


def _signatures(manifest: bytes) -> list[tuple[bytes, bytes, dict[str, object]]]:
    """Each as a manifest, its one blob, which is config and layer at once, and what the index says besides."""
    subject = described(_MANIFEST, manifest)
    found = []
    for more, entry in (
        ({}, {"annotations": {_TAG: f"{digest(manifest).replace(':', '-')}.sig"}}),
        ({"subject": subject, "artifactType": _BUNDLE}, {"artifactType": _BUNDLE}),
    ):
        payload = _json({"critical": {"image": {"docker-manifest-digest": digest(manifest)}}, "kind": len(found)})
        blob = described(_BUNDLE, payload)
        document = _json({"schemaVersion": 2, "mediaType": _MANIFEST, "config": blob, "layers": [blob], **more})
        found.append((document, payload, dict(entry)))
    return found


def described(media_type: str, data: bytes) -> dict[str, object]:
    return {"mediaType": media_type, "digest": digest(data), "size": len(data)}


def _json(value: object) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


def _write(path: str, data: bytes) -> None:
    with open(path, "wb") as file:
        file.write(data)
