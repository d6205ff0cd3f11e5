"""Every error layerstore raises, by whose fault it is.

::

    LayerstoreError
    ├── CallerError                 the call was wrong; nothing was changed
    │   ├── InvalidArgumentError       an ID, name, digest or option that cannot be right
    │   ├── UnknownLayerError          no committed layer by that ID or name
    │   ├── UnknownImageError          no committed image by that ID or name
    │   ├── UnknownMountError          nothing of this store is mounted there
    │   ├── ParentUnavailableError     the parent is missing or not committed
    │   ├── DuplicateLayerError        the ID exists, or is claimed, with other content
    │   ├── DuplicateNameError         the name belongs to something else
    │   ├── BeneathError               it is in a store beneath, which is only read
    │   ├── InUseError                 a child, image, lease, mount or reader still needs it
    │   ├── StagedHandleError          a staged handle that was used up, discarded or is foreign
    │   ├── ClosedError                the store handle is closed
    │   ├── ForkedError                the handle was inherited by fork
    │   └── AlreadyOpenError           this process has the store open already
    ├── InputError                  the content that was handed in is wrong; nothing was changed
    │   ├── ArchiveError               a tar that is malformed or refused, with its offset
    │   ├── CompressionError           a compressed stream that is truncated, corrupt or has trailing junk
    │   ├── DigestMismatchError        the bytes are not those that were promised
    │   ├── SizeMismatchError          more or fewer bytes than were promised
    │   ├── LimitExceededError         a configured limit on entries, bytes, lengths … was passed
    │   ├── SourceError                an image source that is missing, malformed or incomplete
    │   │   ├── RangesUnsupportedError    of this blob only the whole can be had
    │   │   └── RegistryError             a registry that refuses, or answers what it should not
    │   │       ├── RegistryAccessError       credentials are missing, or do not suffice
    │   │       └── RegistryUnavailableError  it cannot be reached, or failed at every try
    │   ├── TocError                   a table of contents that is malformed, or says what is not so
    │   ├── UnsupportedMediaTypeError  a manifest, config or layer of a type we do not know
    │   ├── NoMatchingPlatformError    an index without an image for this platform
    │   └── ImageRefusedError          who verifies images here (PullOptions.verify) refuses this one
    ├── DamagedError                the store itself is damaged
    │   ├── JournalDamagedError        the journal or catalog cannot be read or fails verification
    │   └── LayerDamagedError          a layer is quarantined; names the bad files
    ├── HostError                   the machine does not let us
    │   ├── UnsafeFilesystemError      the file system cannot keep the promises
    │   ├── BeneathMissingError        a layer of a store beneath is not there; names store and layer
    │   ├── UnsupportedFormatError     the store was written by a newer layerstore
    │   ├── ReadOnlyError              the store is open, or mounted, read-only
    │   ├── NoSpaceError               the disk or a quota of its file system is full
    │   │   ├── NoInodesError             it has room for bytes, and for no more files
    │   │   └── QuotaError                the store's own quota is used up
    │   ├── PrivilegeError             needs a privilege that this process lacks
    │   ├── PidNamespaceError          another pid namespace has the store open
    │   ├── BusyError                  a lock was not to be had in the time allowed
    │   └── IoError                    any other failing system call
    └── OutcomeError                the outcome is not simply "nothing happened"
        ├── PendingError               durable, and will be finished by recovery
        ├── OutcomeUnknownError        the device lied or failed; only a reopen can tell
        └── PoisonedError              an earlier failure poisoned this handle; reopen

Each carries ``hint``: one line that says what to do. Names end in ``Error``. Nothing else belongs here.
"""

from __future__ import annotations

from collections.abc import Sequence

__all__ = [
    "AlreadyOpenError", "ArchiveError", "BeneathError", "BeneathMissingError", "BusyError", "CallerError", "ClosedError",
    "CompressionError", "DamagedError", "DigestMismatchError", "DuplicateLayerError", "DuplicateNameError", "ForkedError",
    "HostError", "ImageRefusedError", "InUseError", "InputError", "InvalidArgumentError", "IoError", "JournalDamagedError",
    "LayerDamagedError", "LayerstoreError", "LimitExceededError", "NoInodesError", "NoMatchingPlatformError",
    "NoSpaceError",
    "OutcomeError", "OutcomeUnknownError", "ParentUnavailableError", "PendingError", "PidNamespaceError",
    "PoisonedError", "PrivilegeError", "QuotaError", "RangesUnsupportedError", "ReadOnlyError", "RegistryAccessError",
    "RegistryError", "RegistryUnavailableError", "SizeMismatchError", "SourceError", "StagedHandleError",
    "TocError", "UnknownImageError", "UnknownLayerError", "UnknownMountError", "UnsafeFilesystemError",
    "UnsupportedFormatError", "UnsupportedMediaTypeError",
]


class LayerstoreError(Exception):
    """The root of every error here. ``str(e)`` says what happened; ``e.hint`` says what to do."""

    default_hint = "see the message"

    def __init__(self, what: str, *, hint: str | None = None) -> None:
        super().__init__(what)
        self.hint = hint or self.default_hint


class CallerError(LayerstoreError):
    """The call was wrong. Nothing was changed."""


class InvalidArgumentError(CallerError):
    default_hint = "correct the argument"


class UnknownLayerError(CallerError):
    default_hint = "list what is there with 'layerstore layers'"


class UnknownImageError(CallerError):
    default_hint = "list what is there with 'layerstore images'"


class UnknownMountError(CallerError):
    default_hint = "only what this store mounted can be unmounted by it"


class ParentUnavailableError(CallerError):
    default_hint = "apply the parent first, or apply both as one batch"


class DuplicateLayerError(CallerError):
    default_hint = "a committed layer is never replaced: delete it first, or use another ID"


class DuplicateNameError(CallerError):
    default_hint = "choose another name, or ask for the name to be moved (replace_names=True, --replace)"


class BeneathError(CallerError):
    """What is in a store beneath can be neither deleted nor changed by way of the one above."""

    default_hint = "open that store itself; or give the name to something else"


class InUseError(CallerError):
    default_hint = "remove what uses it first"


class StagedHandleError(CallerError):
    default_hint = "stage the content again; a handle is good for one apply"


class ClosedError(CallerError):
    default_hint = "open the store again"


class ForkedError(CallerError):
    default_hint = "open the store in the child process itself"


class AlreadyOpenError(CallerError):
    default_hint = "share the open handle between threads, or close it first"


class InputError(LayerstoreError):
    """The content that was handed in is wrong. Nothing was changed."""

    default_hint = "fetch the content again from a source you trust"


class ArchiveError(InputError):
    """A tar stream that is malformed, or refused for safety.

    ``offset`` is the byte offset of the offending header in the uncompressed stream, or None.
    """

    def __init__(self, what: str, *, offset: int | None = None, hint: str | None = None) -> None:
        super().__init__(what if offset is None else f"{what} (at offset {offset})", hint=hint)
        self.offset = offset


class CompressionError(InputError):
    pass


class DigestMismatchError(InputError):
    """The bytes are not those that were promised: ``expected`` and ``actual`` are ``sha256:hex``."""

    def __init__(self, what: str, *, expected: str, actual: str, hint: str | None = None) -> None:
        super().__init__(f"{what}: expected {expected}, got {actual}", hint=hint)
        self.expected, self.actual = expected, actual


class SizeMismatchError(InputError):
    """More or fewer bytes than were promised (both in bytes; ``actual`` may be a lower bound)."""

    def __init__(self, what: str, *, expected: int, actual: int, hint: str | None = None) -> None:
        super().__init__(f"{what}: expected {expected} bytes, got {actual}", hint=hint)
        self.expected, self.actual = expected, actual


class LimitExceededError(InputError):
    """A configured limit was passed: ``limit`` names it, ``maximum`` is its value."""

    def __init__(self, what: str, *, limit: str, maximum: int, hint: str | None = None) -> None:
        super().__init__(
            f"{what}: more than {maximum} ({limit})",
            hint=hint or f"if the content is to be trusted, raise Limits.{limit}",
        )
        self.limit, self.maximum = limit, maximum


class SourceError(InputError):
    default_hint = "check the path and that the image in it is complete"


class RangesUnsupportedError(SourceError):
    default_hint = "read the whole blob"


class RegistryError(SourceError):
    """A registry refuses, or answers what it should not.

    ``status`` is the HTTP status (None: there was no answer), ``url`` what was asked for (by GET, or POST for a token),
    without its query.
    """

    default_hint = "check the reference; if it is right, ask who runs the registry"

    def __init__(self, what: str, *, status: int | None = None, url: str, hint: str | None = None) -> None:
        super().__init__(what, hint=hint)
        self.status, self.url = status, url


class RegistryAccessError(RegistryError):
    default_hint = "log in (skopeo login, podman login, docker login), or give --creds"


class RegistryUnavailableError(RegistryError):
    default_hint = "check the host and the network, then try again: what is here already is kept"


class TocError(InputError):
    default_hint = "the layer contradicts itself: tell who made the image, or pull another build of it"


class UnsupportedMediaTypeError(InputError):
    default_hint = "convert the image to OCI or Docker schema 2 with gzip, zstd or plain layers"


class NoMatchingPlatformError(InputError):
    default_hint = "name a platform that the index holds"


class ImageRefusedError(InputError):
    """Whoever verifies images here refuses this one; nothing of it was fetched. ``manifest_digest`` is ``sha256:hex``."""

    default_hint = "pull an image that is signed by whom you trust; --verify, or PullOptions.verify, decided"

    def __init__(self, what: str, *, reference: str, manifest_digest: str, hint: str | None = None) -> None:
        super().__init__(what, hint=hint)
        self.reference, self.manifest_digest = reference, manifest_digest


class DamagedError(LayerstoreError):
    """The store itself is damaged. Nothing was deleted."""

    default_hint = "keep a copy of the store, then run 'layerstore check'"


class JournalDamagedError(DamagedError):
    default_hint = "run 'layerstore rebuild --dry-run', then 'layerstore rebuild': it keeps the damaged database, too"


class LayerDamagedError(DamagedError):
    """A quarantined layer. ``files`` are the paths known to be bad, ``layer_id`` whose they are."""

    def __init__(self, what: str, *, layer_id: str, files: Sequence[str] = (), hint: str | None = None) -> None:
        mend = "'layerstore repair --from SOURCE'; or ask for it as it is (damaged=True, --damaged)"
        super().__init__(what, hint=hint or mend)
        self.layer_id, self.files = layer_id, tuple(files)


class HostError(LayerstoreError):
    """The machine does not let us."""


class UnsafeFilesystemError(HostError):
    default_hint = "use ext4, xfs or btrfs; or name the file system as acceptable (allow_filesystem=…)"


class BeneathMissingError(HostError):
    """A layer that something stands on is not to be found: ``layer_id``, which was in the store with the uuid ``store``."""

    default_hint = "mount that store where it was, or say where it is (beneath=…, --beneath DIR); or pull the image again"

    def __init__(self, what: str, *, store: str, layer_id: str, hint: str | None = None) -> None:
        super().__init__(what, hint=hint)
        self.store, self.layer_id = store, layer_id


class UnsupportedFormatError(HostError):
    default_hint = "use the layerstore version that wrote the store, or a newer one"


class ReadOnlyError(HostError):
    default_hint = "open the store writable, on a file system mounted read-write"


class NoSpaceError(HostError):
    """``needed`` and ``free`` are bytes, where they are known."""

    default_hint = "free space: 'layerstore gc', or delete images"

    def __init__(
        self, what: str, *, needed: int | None = None, free: int | None = None, hint: str | None = None,
    ) -> None:
        super().__init__(what, hint=hint)
        self.needed, self.free = needed, free


class NoInodesError(NoSpaceError):
    """Files, not bytes: ``needed`` and ``free`` are numbers of inodes, where they are known."""

    default_hint = "remove files on that file system: 'layerstore gc', or delete images; 'df -i' counts"


class QuotaError(NoSpaceError):
    """The store's own limit: ``quota`` bytes, of which ``used`` are taken. Nothing was changed."""

    default_hint = "delete images, let go of staged layers ('layerstore gc --retention 0'), or raise the quota"

    def __init__(
        self, what: str, *, quota: int, used: int, needed: int | None = None, hint: str | None = None,
    ) -> None:
        super().__init__(
            f"{what}: the store's quota is {quota} bytes, and {used} are used", needed=needed, free=max(quota - used, 0),
            hint=hint,
        )
        self.quota, self.used = quota, used


class PrivilegeError(HostError):
    default_hint = "run as root, or use 'layerstore extract'"


class PidNamespaceError(HostError):
    default_hint = "open the store from one pid namespace at a time (for containers: share the host's)"


class BusyError(HostError):
    default_hint = "try again later, or wait longer"


class IoError(HostError):
    default_hint = "look at the kernel log; the device or its file system may be failing"


class OutcomeError(LayerstoreError):
    """The outcome is not simply "nothing happened"."""


class PendingError(OutcomeError):
    default_hint = "nothing to do: the next writable open finishes it (or: 'layerstore recover')"


class OutcomeUnknownError(OutcomeError):
    default_hint = "close the store and open it again; recovery tells what became of it"


class PoisonedError(OutcomeError):
    default_hint = "close the store and open it again"
