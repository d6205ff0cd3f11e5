"""Sending an image to other tools, by ``oci:``, ``oci-archive:``, ``docker-archive:``, ``docker://``. Only reads the store.

Config and diffIDs are always those that came. A compressed blob that was kept (``PullOptions.keep_blobs``) goes out as it
came. Otherwise a layer is compressed anew, by the same rule each time. Where the result is the blob that the manifest
names (a plain tar always is, a compressed one if it was made in the same way) it is that blob; if all are, the manifest
goes out byte for byte. Otherwise it names the new blobs.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

from layerstore.chunked import is_chunked
from layerstore.errors import InvalidArgumentError
from layerstore.lifecycle import catalog
from layerstore.model import BLOB_KEY, Descriptor, Image, Layer
from layerstore.opening.beneath import looking
from layerstore.opening.handle import Handle
from layerstore.opening.reading import ReaderLock
from layerstore.sources.reference import parse_reference
from layerstore.sources.registry import RegistryOptions
from layerstore.sources.registry.names import PREFIX
from layerstore.targets import Outgoing, OutgoingLayer, Target
from layerstore.targets.archives import DockerArchiveTarget, OciArchiveTarget
from layerstore.targets.layout import LayoutTarget
from layerstore.targets.manifests import repo_tag
from layerstore.verbs import export

__all__ = ["COMPRESSIONS", "PushReport", "push"]

COMPRESSIONS = ("as-it-came", "none", "gzip", "zstd", "zstd:chunked")
_CHUNKED = COMPRESSIONS[-1]


@dataclass(frozen=True, slots=True)
class PushReport:
    """What was sent: digests there. ``kept``: whether the manifest is the one that came; None for a format without one.

    ``signatures``: how many are beside it there. Signatures of a manifest that had to be made anew, or that the place has
    others for, do not go out.
    ``plain``: those of the blobs that were to be zstd:chunked, and are plain zstd, since no TOC could describe them.
    """

    target: str
    config_digest: str
    manifest_digest: str | None
    kept: bool | None
    blobs: tuple[str, ...]               # of the layers, base first
    signatures: int = 0
    plain: tuple[str, ...] = ()


def push(
    handle: Handle, reference: str, target: str, compression: str, progress: Callable[[int], None],
    registry: RegistryOptions | None, *, signatures: bool = True,
) -> PushReport:
    """The verb behind ``Store.push``."""
    handle.check_usable()
    if compression not in COMPRESSIONS:
        raise InvalidArgumentError(f"{compression!r} is none of {', '.join(COMPRESSIONS)}")
    there, tag = _target(target, registry or RegistryOptions(), os.path.join(handle.root, "staging"))
    is_list = isinstance(there, DockerArchiveTarget)
    with looking(handle) as view:
        kind, owner = catalog.resolve(view, reference)
        if kind != "image":
            raise InvalidArgumentError(f"{reference} is a layer", hint="'layerstore export' writes a layer")
        image = catalog.image(view, owner)
        layers = catalog.layers_of(view, image)
    with ReaderLock(handle, image.layers):   # all of it, from the first byte to the last
        outgoing = _outgoing(handle, image, layers, tag, compression, is_list=is_list)
        outgoing = replace(outgoing, signatures=image.signatures if signatures else ())
        sent = there.send(outgoing, progress)
    return PushReport(
        target, image.config_digest, sent.manifest_digest,
        None if sent.manifest_digest is None else sent.manifest_digest == image.manifest_digest,
        tuple(blob.digest for blob in sent.blobs), sent.signatures,
        () if is_list else tuple(
            blob.digest for blob, layer in zip(sent.blobs, outgoing.layers, strict=True)
            if layer.compression == _CHUNKED and not is_chunked(blob)
        ),
    )


def _target(text: str, registry: RegistryOptions, beside: str) -> tuple[Target, str | None]:
    if text.startswith(PREFIX):
        from layerstore.targets.registry import RegistryTarget  # noqa: PLC0415 - imports urllib3

        return RegistryTarget(text, registry, beside), None
    where = parse_reference(text)
    if where.kind == "oci":
        return LayoutTarget(where.path), where.tag
    if where.kind == "oci-archive":
        return OciArchiveTarget(where.path), where.tag
    return DockerArchiveTarget(where.path), None if where.tag is None else repo_tag(where.tag)


def _outgoing(
    handle: Handle, image: Image, layers: list[Layer], tag: str | None, compression: str, *, is_list: bool,
) -> Outgoing:
    manifest, config = export.image_documents(handle, image.id)
    listed = json.loads(manifest)["layers"]   # checked when it came
    outgoing = []
    for layer, was in zip(layers, listed, strict=True):
        blob = Descriptor(was["mediaType"], was["digest"], was["size"], was.get("annotations") or {})
        came_as = _kind_of(blob)
        wanted = compression in ("as-it-came", came_as, came_as.partition(":")[0]) and not is_list   # it is zstd, too
        kind = came_as if compression == "as-it-came" else compression
        outgoing.append(OutgoingLayer(
            layer.diff_id, layer.diff_size, blob, kind, partial(export.diff, handle, layer.id),
            partial(export.kept_blob, handle, layer.id) if wanted and layer.big_data.get(BLOB_KEY) == blob.digest else None,
        ))
    return Outgoing(manifest, image.manifest_media_type, config, image.config_digest, tuple(outgoing), tag)


def _kind_of(blob: Descriptor) -> str:
    """The compression that a layer's descriptor says."""
    kind = next((kind for kind in ("gzip", "zstd") if blob.media_type.endswith(kind)), "none")
    return _CHUNKED if kind == "zstd" and is_chunked(blob) else kind
