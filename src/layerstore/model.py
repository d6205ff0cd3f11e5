"""The values that layerstore hands out and takes in: frozen, slotted, without behaviour beyond validation.

No I/O and no imports of ours but ``errors`` and ``partial``. Digests are ``sha256:<64 hex>``; sizes are bytes; times are
nanoseconds since 1970 UTC; layer and image IDs are exactly 64 lowercase hex digits.
"""

from __future__ import annotations

import hashlib
import re
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import BinaryIO, Protocol

from layerstore.errors import InvalidArgumentError
from layerstore.partial import BlobSource, Digests, Donors
from layerstore.signatures import Signature
from layerstore.system.idmap import IDENTITY, IdMap

BLOB_KEY = "layer-blob"
"""Under which big data a layer's compressed blob is kept, where it was asked for (``PullOptions.keep_blobs``)."""

_DIGEST = re.compile(r"sha256:[0-9a-f]{64}\Z")
_ID = re.compile(r"[0-9a-f]{64}\Z")


def check_digest(value: str, what: str = "digest") -> str:
    """Return *value* if it is ``sha256:`` and 64 lowercase hex digits, else raise InvalidArgumentError."""
    if not isinstance(value, str) or not _DIGEST.match(value):
        raise InvalidArgumentError(f"{what} {value!r} is not 'sha256:' and 64 lowercase hex digits")
    return value


def check_id(value: str, what: str = "layer ID") -> str:
    """Return *value* if it is exactly 64 lowercase hex digits, else raise InvalidArgumentError."""
    if not isinstance(value, str) or not _ID.match(value):
        raise InvalidArgumentError(f"{what} {value!r} is not 64 lowercase hex digits")
    return value


@dataclass(frozen=True, slots=True)
class Descriptor:
    """What a manifest says of a blob (OCI image-spec, descriptor.md). Size in bytes."""

    media_type: str
    digest: str
    size: int
    annotations: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Limits:
    """How much one layer may demand. Each limit passed raises LimitExceededError naming the field."""

    max_entries: int = 4_000_000
    max_directories: int = 1_000_000    # remembered until the archive leaves the one that they are in: some 230 bytes
    max_bytes: int = 1 << 40            # uncompressed, bytes
    max_ratio: int = 2_000              # uncompressed : compressed, after 16 MiB of output; gzip has no more than 1,032
    max_path_length: int = 4_096        # bytes; also of where the layer's own symbolic links lead an entry
    max_depth: int = 255                # path components
    max_pax_record: int = 1 << 20       # bytes of one PAX header or GNU long name
    max_xattr_value: int = 65_536       # bytes
    max_xattrs: int = 128               # extended attributes of one entry
    max_xattr_bytes: int = 1 << 28      # of all entries together: names, values, and 64 bytes for each
    max_hole_bytes: int = 1 << 36       # holes of all sparse files together: they cost a tar nothing, and us their hashing
    max_manifest_json: int = 4 << 20    # bytes of an OCI index, manifest or config
    max_toc: int = 64 << 20             # bytes of a table of contents, compressed or not; of a compressed tar-split
    max_signature_bytes: int = 1 << 20  # of all signatures of an image together, and of signed indexes


@dataclass(frozen=True, slots=True)
class DiffTarget:
    """Where a differ puts a layer: an open staging tree. The differ owns neither descriptor.

    ``dir_fd`` is the transaction's directory (side files such as ``manifest`` go there), ``diff_fd`` the empty
    ``diff/`` below it. ``overlay_form`` is the xattr namespace for opaque directories: ``trusted`` or ``user``.
    ``progress(n)`` is told of *n* more bytes of the blob read, ``spared(n)`` of *n* that need not be, because what is in
    them is here, ``resumed(n)`` of *n* that an earlier attempt had read and kept. ``donors`` has files that need no
    writing (None: there are none); ``digests`` is told what content the layer has (None: nobody wants to know).
    ``cancelled`` is set when the result is no longer wanted: the differ then raises whatever it likes, soon. ``ids`` says
    which ids on disk stand for the archive's. ``keep_free`` are bytes of the file system that are to stay free: what writes
    much looks from time to time, and raises NoSpaceError.
    """

    dir_fd: int
    diff_fd: int
    overlay_form: str = "trusted"
    limits: Limits = field(default_factory=Limits)
    progress: Callable[[int], None] = lambda _n: None
    spared: Callable[[int], None] = lambda _n: None
    resumed: Callable[[int], None] = lambda _n: None
    donors: Donors | None = None
    digests: Digests | None = None
    cancelled: threading.Event = field(default_factory=threading.Event)
    ids: IdMap = IDENTITY
    keep_free: int = 0


@dataclass(frozen=True, slots=True)
class DiffOutput:
    """What a differ knows when it is done; everything the store records of the content.

    ``diff_id`` is the digest of the uncompressed tar and ``diff_size`` its length in bytes; ``blob_digest`` and
    ``blob_size`` are those of the stream as it came (None for a directory). ``manifest_digest`` is the sha256 of
    the file ``manifest`` written beside ``diff/``. ``unset`` counts attributes that this process was not allowed
    to set (owners, devices, privileged xattrs) and that only the manifest keeps. ``big_data`` maps a key to the
    digest of a side file ``big-data/<key>`` that the differ wrote. ``tar_split_digest`` is the sha256 of the file
    ``tar-split``, from which the tar can be made again (None: the differ wrote none, and it cannot).
    """

    diff_id: str
    diff_size: int
    manifest_digest: str
    entries: int
    uids: tuple[int, ...] = ()
    gids: tuple[int, ...] = ()
    blob_digest: str | None = None
    blob_size: int | None = None
    compression: str = "none"           # none | gzip | zstd | xz | bzip2
    toc_digest: str | None = None
    unset: int = 0
    big_data: Mapping[str, str] = field(default_factory=dict)
    tar_split_digest: str | None = None


class Differ(Protocol):
    """Fills a staging tree with a layer's content. Single use; write your own for another format.

    ``content_key`` names what the tree will hold before it is made (for a blob: its digest), so that a finished
    tree of an earlier, interrupted pull can be adopted instead of made again; None means "cannot be known".
    """

    @property
    def content_key(self) -> str | None: ...

    def apply_diff(self, target: DiffTarget) -> DiffOutput:
        """Fill ``target.diff_fd``, write ``manifest`` into ``target.dir_fd``, verify every digest, and report.

        Nothing needs to be synced; the store does that. On any error raise: the store discards the tree.
        """
        ...


@dataclass(frozen=True, slots=True)
class LayerSource:
    """One layer of a source image: its descriptor, the diffID that the config promises, and its blob."""

    descriptor: Descriptor
    diff_id: str
    blob: BlobSource

    def open(self) -> BinaryIO:
        """A fresh, independent stream of the blob, from its first byte."""
        return self.blob.open()


@dataclass(frozen=True, slots=True)
class SourceImage:
    """An image resolved for one platform: the exact bytes of manifest and config, and its layers, base first.

    ``id`` is the hex of the config's digest (as in the field). ``name`` is the source's own suggestion, or None.
    ``indexes`` led to the manifest, the outermost first. ``signatures`` are to be kept with it; a source tells of them
    when it is asked.
    """

    manifest: bytes
    manifest_digest: str
    manifest_media_type: str
    config: bytes
    config_digest: str
    layers: Sequence[LayerSource]
    name: str | None = None
    indexes: tuple[bytes, ...] = ()
    signatures: tuple[Signature, ...] = ()

    @property
    def id(self) -> str:
        return self.config_digest.removeprefix("sha256:")

    @property
    def subjects(self) -> list[str]:
        """Digests of what a signature of this image may be of: its manifest, and the indexes that led there."""
        return [self.manifest_digest, *(f"sha256:{hashlib.sha256(each).hexdigest()}" for each in self.indexes)]


@dataclass(frozen=True, slots=True)
class Beneath:
    """What is recorded of a layer in a store beneath: the uuid of that store, and the layer's diffID."""

    store: str
    diff_id: str


@dataclass(frozen=True, slots=True)
class StoreBeneath:
    """A store beneath: its uuid, where it is looked for, and (None: it is open) why nothing of it can be seen."""

    uuid: str
    path: str
    missing: str | None = None


@dataclass(frozen=True, slots=True)
class Layer:
    """A committed (or quarantined) layer as the catalog has it. ``txid`` is the tree's own name inside the store.

    ``store`` is the uuid of the store beneath that has it; None for one of the store's own. ``parent_beneath``: where the
    parent was when the layer was applied, if that was in a store beneath (of a layer beneath: in its own store, mostly).
    """

    id: str
    parent: str | None
    names: tuple[str, ...]
    state: str
    diff_id: str
    diff_size: int
    blob_digest: str | None
    blob_size: int | None
    toc_digest: str | None
    compression: str
    manifest_digest: str
    tar_split_digest: str | None
    entries: int
    uids: tuple[int, ...]
    gids: tuple[int, ...]
    unset: int
    big_data: Mapping[str, str]
    created_ns: int
    txid: str
    damaged_files: tuple[str, ...] = ()
    created: bool = True   # False: an apply found it already committed with the same content
    store: str | None = None
    parent_beneath: Beneath | None = None


@dataclass(frozen=True, slots=True)
class Image:
    """A committed image: its ID (the config digest's hex), names and layer IDs, base first.

    ``damaged``: those of its layers that are quarantined: it is served only to who asks for damaged content. ``signatures``
    are as they came with it, ``indexes`` what some of them are of; neither says that anybody verified them. ``store`` is
    the uuid of the store beneath that has it, or None; ``beneath``: those of its layers that were in one when it came.
    """

    id: str
    names: tuple[str, ...]
    layers: tuple[str, ...]
    manifest_digest: str
    manifest_media_type: str
    config_digest: str
    created_ns: int
    created: bool = True   # False: a pull found it already there
    damaged: tuple[str, ...] = ()
    signatures: tuple[Signature, ...] = ()
    indexes: tuple[bytes, ...] = ()
    store: str | None = None
    beneath: Mapping[str, Beneath] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Lease:
    """A named hold on layers: none of them can be deleted until it is dropped."""

    name: str
    layers: tuple[str, ...]
    since_ns: int


@dataclass(frozen=True, slots=True)
class Mount:
    """A mount of this store's, or (``mounted`` false) one whose writable upper directory is still kept.

    ``label`` is the security context (SELinux) of all that it shows; None: each file has its own.
    """

    id: str
    target: str
    layers: tuple[str, ...]
    writable: bool
    mounted: bool
    boot_id: str
    since_ns: int
    label: str | None = None


@dataclass(frozen=True, slots=True)
class StageOptions:
    """How to stage. ``wait`` seconds for another process that stages the same content (None: as long as it lives)."""

    limits: Limits = field(default_factory=Limits)
    wait: float | None = None


def default_layer_id(parent: str | None, diff_id: str) -> str:
    """The field's chain ID: the diffID's hex for a base layer, else sha256 of ``<parent>+<diffID hex>``.

    Source: containers/image, storage_dest.go (so that stores agree with each other on IDs).
    """
    component = diff_id.removeprefix("sha256:")
    if parent is None:
        return component
    return hashlib.sha256(f"{parent}+{component}".encode()).hexdigest()
