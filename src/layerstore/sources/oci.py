"""From an OCI layout (in a directory or an archive) to one image: which manifest is meant, and is it whole.

Registries hold the same documents, and have only other ways to them: ``Documents``. Every document is checked by size
and digest before it is parsed; a layout's layers are checked to be there, and not read. Source: OCI image-spec 1.1,
image-layout.md and image-index.md; Docker's schema 2 documents are taken as well.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from layerstore.errors import NoMatchingPlatformError, SourceError, UnsupportedMediaTypeError
from layerstore.model import Descriptor, LayerSource, Limits, SourceImage
from layerstore.partial import BlobSource
from layerstore.signatures import Signature
from layerstore.sources.attached import is_attachment, listed_under, referrers_tag, signatures_of
from layerstore.sources.documents import (
    INDEX_TYPES,
    MANIFEST_TYPES,
    Listed,
    check_layout,
    check_pairs,
    parse_config,
    parse_index,
    parse_manifest,
    show,
    show_list,
)
from layerstore.sources.files import Files, check_blob, layer_blob, read_blob, read_document
from layerstore.sources.platforms import Platform, best, check_config, this_machine
from layerstore.sources.reference import Reference, suggested_name

__all__ = ["Documents", "resolve", "resolve_from", "signatures"]

_MAX_DEPTH = 4   # indexes below index.json; two are seen in the field


class Documents(Protocol):
    """Where documents and layers are had by their descriptors. ``label`` says in messages whose they are."""

    label: str

    def manifest(self, found: Descriptor, what: str) -> bytes:
        """An index or manifest, its size and digest verified."""

    def config(self, found: Descriptor, what: str) -> bytes:
        """A config, its size and digest verified."""

    def layer(self, found: Descriptor, what: str) -> BlobSource:
        """A layer's blob, of which nothing is verified."""


class _InFiles:
    """Implements ``Documents``: a layout has no other place for a manifest than for any blob."""

    def __init__(self, files: Files, limits: Limits) -> None:
        self._files, self._limits, self.label = files, limits, files.label

    def manifest(self, found: Descriptor, what: str) -> bytes:
        return read_blob(self._files, found, what, self._limits)

    config = manifest

    def layer(self, found: Descriptor, what: str) -> BlobSource:
        check_blob(self._files, found, what)
        return layer_blob(self._files, found, what)


class _Beside(_InFiles):
    """Implements ``Attachments``: by the tags and artifact types of ``index.json``."""

    blob = _InFiles.manifest

    def __init__(self, files: Files, limits: Limits) -> None:
        super().__init__(files, limits)
        what = f"index.json of {files.label}"
        self._listed = parse_index(read_document(files, "index.json", limits), None, what)

    def tagged(self, tag: str) -> tuple[bytes, str] | None:
        found = next((each.descriptor for each in self._listed if each.tag == tag), None)
        return None if found is None else (self.manifest(found, f"{tag} of {self.label}"), found.media_type)

    def referrers(self, subject: str) -> Sequence[Listed]:
        """As in ``Attachments``."""
        tag = referrers_tag(subject)
        under_tag = self.tagged(tag)
        return [] if under_tag is None else listed_under(under_tag[0], f"{tag} of {self.label}")

    def unassigned(self) -> Sequence[Listed]:
        """Of an index's entries it is not said there of what they are; who reads them sees."""
        return self._listed


def signatures(files: Files, image: SourceImage, limits: Limits) -> tuple[Signature, ...]:
    """What a layout has beside *image*, which came from it, to vouch for it. Raises as ``signatures_of``."""
    return signatures_of(_Beside(files, limits), image, limits)


def resolve(files: Files, reference: Reference, platform: Platform | None, limits: Limits) -> SourceImage:
    """Find the one image that *reference* means. *platform* None: this machine's, where there is a choice.

    Raises SourceError, NoMatchingPlatformError, UnsupportedMediaTypeError, DigestMismatchError,
    SizeMismatchError, LimitExceededError.
    """
    check_layout(read_document(files, "oci-layout", limits), f"oci-layout of {files.label}")
    what = f"index.json of {files.label}"
    listed = parse_index(read_document(files, "index.json", limits), None, what)
    entries = _tagged(listed, reference.tag, what)
    name = suggested_name(reference, entries[0].tag)
    # what a tag stands for alone is meant; the machine's platform decides only where there is a choice
    chosen = entries[0] if len(entries) == 1 else _for_platform(entries, platform, what)
    return resolve_from(_InFiles(files, limits), chosen, platform, name)


def resolve_from(documents: Documents, chosen: Listed, platform: Platform | None, name: str | None) -> SourceImage:
    """The image that *chosen*, an index or a manifest, stands for. Raises as ``resolve``."""
    found, indexes = _descend(documents, chosen, platform)
    return _image(documents, found, platform, name, indexes)


def _tagged(listed: Sequence[Listed], tag: str | None, what: str) -> list[Listed]:
    """The entries of *tag*; without a tag, all of them if they share one (or have none), else SourceError."""
    if not listed:
        raise SourceError(f"{what} lists no image")
    if tag is None:   # signatures are no choice; alone they are refused for what they are
        listed = [entry for entry in listed if not is_attachment(entry)] or listed
    tags = sorted({entry.tag for entry in listed if entry.tag is not None})
    if tag is None:
        if len({entry.tag for entry in listed}) > 1:
            untagged = ", and some without a tag" if any(entry.tag is None for entry in listed) else ""
            raise SourceError(
                f"{what} lists several images: {show_list(tags)}{untagged}",
                hint="add ':' and one of these tags to the reference",
            )
        return list(listed)
    found = [entry for entry in listed if entry.tag == tag]
    if not found:
        raise SourceError(
            f"{what} has no image with the tag {tag!r}",
            hint=f"the tags there are: {show_list(tags)}" if tags else "leave the tag out: there is none",
        )
    return found


def _for_platform(entries: Sequence[Listed], platform: Platform | None, what: str) -> Listed:
    """Of an index's entries, the one that suits the platform best."""
    wanted = platform or this_machine()
    position = best(wanted, [entry.platform for entry in entries])
    if position is not None:
        return entries[position]
    if all(entry.platform is None for entry in entries):
        if len({entry.descriptor.digest for entry in entries}) == 1:
            return entries[0]
        raise SourceError(f"{what} lists {len(entries)} images that neither a tag nor a platform tells apart")
    offered = [str(entry.platform) for entry in entries if entry.platform is not None]
    offered = [each for each in offered if each != "unknown/unknown"]   # attestations beside the images
    there = show_list(offered) or "no platform that it names"
    raise NoMatchingPlatformError(f"{what} has no image for {wanted}, but for {there}")


def _descend(documents: Documents, chosen: Listed, platform: Platform | None) -> tuple[Listed, tuple[bytes, ...]]:
    """Follow nested indexes to what is none; that, and the indexes."""
    indexes: list[bytes] = []
    for _ in range(_MAX_DEPTH):
        found = chosen.descriptor
        if found.media_type not in INDEX_TYPES:
            return chosen, tuple(indexes)
        what = f"the index {found.digest} of {documents.label}"
        indexes.append(documents.manifest(found, what))
        listed = parse_index(indexes[-1], found.media_type, what)
        if not listed:
            raise SourceError(f"{what} lists no image")
        chosen = _for_platform(listed, platform, what)
    if chosen.descriptor.media_type in INDEX_TYPES:
        raise SourceError(f"{documents.label} nests more than {_MAX_DEPTH} indexes")
    return chosen, tuple(indexes)


def _image(
    documents: Documents, chosen: Listed, platform: Platform | None, name: str | None, indexes: tuple[bytes, ...],
) -> SourceImage:
    found = chosen.descriptor
    if found.media_type not in MANIFEST_TYPES:
        raise UnsupportedMediaTypeError(
            f"{found.digest} of {documents.label} is no image manifest but of the type {show(found.media_type)}"
        )
    what = f"the manifest {found.digest} of {documents.label}"
    manifest_bytes = documents.manifest(found, what)
    manifest = parse_manifest(manifest_bytes, found.media_type, what)
    config_what = f"the config {manifest.config.digest} of {documents.label}"
    config_bytes = documents.config(manifest.config, config_what)
    config = parse_config(config_bytes, config_what)
    check_config(platform, config.platform, documents.label)
    check_pairs([layer.digest for layer in manifest.layers], config.diff_ids, what)
    layers = []
    for n, (layer, diff_id) in enumerate(zip(manifest.layers, config.diff_ids, strict=True)):
        layers.append(LayerSource(layer, diff_id, documents.layer(layer, f"layer {n}")))
    return SourceImage(
        manifest_bytes, found.digest, found.media_type, config_bytes, manifest.config.digest, tuple(layers),
        name, indexes,
    )
