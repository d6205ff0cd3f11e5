"""The face: one method a verb, no logic. What a verb does is in the module of its name."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import import_module
from types import TracebackType
from typing import TYPE_CHECKING, Any

from layerstore.calling import as_verb
from layerstore.errors import InvalidArgumentError, LayerstoreError
from layerstore.lifecycle import catalog
from layerstore.model import (
    Differ,
    Image,
    Layer,
    Lease,
    Mount,
    StageOptions,
    StoreBeneath,
    check_digest,
    check_id,
)
from layerstore.observe import Observer, verb, watching
from layerstore.opening import beneath as stores_beneath
from layerstore.opening.form import Form
from layerstore.opening.handle import Handle
from layerstore.opening.journaling import journal_errors
from layerstore.progress import CheckProgress, Progress, Quiet
from layerstore.recovery import recover
from layerstore.recovery.recover import RecoveryReport
from layerstore.verbs.open import opened


class _Verb:
    """The module of a verb, imported when it is used. A command that only reads needs few of them, and wants to start soon.

    A writable open imports all: nothing is imported while something is half-done, nor from what an upgrade has replaced.
    Who knows what it opens for imports that much (``open_for``).
    """

    def __init__(self, name: str) -> None:
        self._name = f"layerstore.{name}"
        self.name = name.rpartition(".")[2]

    def load(self) -> Any:
        return import_module(self._name)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.load(), name)


_VERBS = [_Verb(f"verbs.{name}") for name in (
    "apply", "batch", "check", "checkpoint", "commit", "delete", "explain", "export", "gauges", "gc", "holds", "mount",
    "pull", "quota", "push", "repair", "space", "stage", "usage", "view",
)] + [_Verb("opening.reading"), _Verb("opening.create")]
if TYPE_CHECKING:   # for type checkers they are plain imports
    from layerstore.lifecycle.timeline import Life
    from layerstore.opening import reading
    from layerstore.partial import Finder
    from layerstore.sources.registry import RegistryOptions
    from layerstore.trees.extract import ExtractReport
    from layerstore.verbs import (
        apply,
        batch,
        check,
        checkpoint,
        delete,
        explain,
        export,
        gauges,
        gc,
        holds,
        mount,
        pull,
        push,
        quota,
        repair,
        space,
        stage,
        usage,
        view,
    )
    from layerstore.verbs import commit as committing
    from layerstore.verbs.pull import PullOptions
    from layerstore.verbs.stage import StagedLayer
else:
    (apply, batch, check, checkpoint, committing, delete, explain, export, gauges, gc, holds, mount, pull, quota, push,
     repair, space, stage, usage, view, reading, _) = _VERBS


def open(  # noqa: A001 - layerstore.open is the name that users expect
    root: str | os.PathLike[str], *, readonly: bool = False, create: bool = True,
    allow_filesystem: Sequence[str] = (), overlay_form: str | None = None, observer: Observer | None = None,
    clock: Callable[[], int] = time.time_ns, uid_map: Sequence[tuple[int, int, int]] | None = None,
    gid_map: Sequence[tuple[int, int, int]] | None = None, beneath: Sequence[str | os.PathLike[str]] | None = None,
) -> Store:
    """Open the store at *root*, making it if it is not there (unless *create* is false), and recover it.

    Args:
        root: the store's directory (mode 0700), on ext4, xfs or btrfs for the full promises.
        readonly: show what is committed; recover nothing, write nothing. ``Store.recovery`` then says what a
            writable open would do.
        create: make a store in an absent or empty directory.
        allow_filesystem: names of file systems to accept although they are not known to keep the promises.
        overlay_form: for a new store, the xattr namespace of opaque directories: ``trusted`` (root's default) or
            ``user`` (where that may not be set, and for mounts in a user namespace).
        observer: told of transitions, barriers, recovery and verbs (docs/observing.md). What it raises is logged only.
        clock: nanoseconds since 1970; only ever recorded, never decided upon, but for gc's ages.
        uid_map: for a new store, which user ids on disk stand for those of layers: ranges (container ID, host ID,
            size), as in /etc/subuid. For a store that root runs for containers in user namespaces. By default ids are
            the same; in a user namespace the store records that namespace's map, and so is understood from outside.
        gid_map: the same for groups; by default *uid_map*.
        beneath: directories of stores that are only read: what is committed in them is looked up after what is here, in
            their order, and layers may stand on it. A writable opening records them; None: those that are recorded.
            Of these one that is not there is left out: ``Store.beneath`` says why (docs/beneath.md).

    Returns:
        The open store; use it as a context manager. ``Store.recovery`` is the report.

    Raises:
        LayerstoreError: InvalidArgumentError, AlreadyOpenError, UnsafeFilesystemError, UnsupportedFormatError,
            PidNamespaceError, ReadOnlyError, JournalDamagedError, BusyError.

    Durability: creating, recording *beneath* and recovering are durable when this returns. A crash inside is finished by
    the next open.

    """
    if not readonly:
        for each in _VERBS:
            each.load()
    path, watcher = os.path.abspath(os.fspath(root)), watching(observer)
    with verb(watcher, "open"):
        form = Form(overlay_form, uid_map, gid_map) if create and not readonly else None
        return Store(*opened(path, readonly, form, tuple(allow_filesystem), watcher, clock, beneath))


def open_for(
    verbs: Sequence[str], root: str | os.PathLike[str], *, allow_filesystem: Sequence[str] = (),
    observer: Observer | None = None, beneath: Sequence[str | os.PathLike[str]] | None = None,
) -> Store:
    """Open the store writable, as ``open`` does, for a process that uses these *verbs*, by their modules' names, only.

    Theirs are the modules that are imported, before anything is begun: others cost a short command half of its start.
    """
    for name in (*verbs, "create", "reading"):
        next(each for each in _VERBS if each.name == name).load()
    path, watcher = os.path.abspath(os.fspath(root)), watching(observer)
    with verb(watcher, "open"):
        return Store(*opened(path, False, Form(), tuple(allow_filesystem), watcher, time.time_ns, beneath))


class Store:
    """An open store. Made by ``layerstore.open``.

    Thread-safe: one handle may be used by many threads. Not usable after fork: open the store in the child. In
    asyncio, run the calls in a thread (``asyncio.to_thread``); every one may block on the disk.
    """

    def __init__(self, handle: Handle, report: RecoveryReport) -> None:
        self._handle = handle
        self.recovery: RecoveryReport = report
        """What recovery did when the store was opened (or would do, read-only)."""

    @property
    def root(self) -> str:
        return self._handle.root

    @property
    def uuid(self) -> str:
        return str(self._handle.config["uuid"])

    @property
    def beneath(self) -> list[StoreBeneath]:
        """The stores beneath, in the order in which they are looked through; then those that are missing, and why."""
        handle = self._handle
        return [*(StoreBeneath(each.config["uuid"], each.root) for each in handle.beneath), *handle.absent]

    @property
    def durability(self) -> str:
        """``proven`` on ext4, xfs and btrfs; ``unproven`` elsewhere."""
        return self._handle.filesystem.durability

    @property
    def filesystem(self) -> str:
        return self._handle.filesystem.name

    # -- putting in ----------------------------------------------------------------------------------------------

    @as_verb
    def stage(
        self, differ: Differ, *, options: StageOptions | None = None, progress: Callable[[int], None] = lambda _n: None,
    ) -> StagedLayer:
        """Make a layer's content a complete, verified tree, not yet visible.

        Args:
            differ: where the content comes from, e.g. ``TarDiffer(path, expect=descriptor)``.
            options: limits, and how long to wait for another process that stages the same content.
            progress: told of each *n* more bytes read.

        Returns:
            An opaque handle for one apply; leaving its ``with`` unapplied discards it.

        Raises:
            InputError: and its kin, for bad content (nothing is left).
            HostError: BusyError among them.

        Durability: none yet for the content: the apply makes it durable, one sync for all that it applies, or
        ``StagedLayer.seal`` before. After a kill the next stage of the same content (known by the differ's content key)
        adopts the tree, when it has verified all of it; after a loss of power, too, if it is still whole. What was not
        finished is swept by the next open.

        """
        return stage.stage(self._handle, differ, options or StageOptions(), progress)

    def finder(self, *, names: Sequence[str] = (), parent: str | None = None) -> Finder:
        """What finds content in the committed layers here, for a ``ChunkedDiffer``; a pull has one of its own.

        Args:
            names: what the layer's image is to be called: other versions of it are looked in first.
            parent: the ID of the layer that the new one is to stand on.

        Returns:
            For as long as the store is open, and for several threads.

        Durability: reads only.

        """
        from layerstore.dedup import LayerFinder  # noqa: PLC0415 - as the verbs: imported when it is needed

        self._handle.check_usable()
        return LayerFinder(self._handle, names=names, parent=parent)

    @as_verb
    def apply_staged_layer(
        self, staged: StagedLayer, *, parent: str | None = None, id: str | None = None,  # noqa: A002
        names: Sequence[str] = (), big_data: Mapping[str, bytes] | None = None, replace_names: bool = False,
    ) -> Layer:
        """Turn a staged layer into a committed one.

        Args:
            staged: from ``stage``; used up by success.
            parent: the ID (64 hex digits) of a committed layer to stand on; None for a base layer.
            id: the new layer's ID, 64 hex digits; by default the field's chain ID of parent and diffID.
            names: names to give it.
            big_data: small named blobs kept beside the layer.
            replace_names: take the names away from what has them.

        Returns:
            The layer; ``created`` is False if it was there already with the same diffID and parent.

        Raises:
            CallerError: ParentUnavailableError, DuplicateLayerError, DuplicateNameError, InvalidArgumentError,
                StagedHandleError: nothing happened, the handle is still good.
            PendingError: it is durable and will be finished.

        Durability: committed, visible and on disk when this returns, by one syncfs and, with the row that ``stage``
        made, three durable transactions (big data costs more). A crash before the commit point leaves it staged or
        filled, for the next stage of the same content; after, recovery finishes it.

        """
        spec = batch.LayerSpec(staged, parent=parent, id=id, names=tuple(names), big_data=dict(big_data or {}))
        return apply.apply_batch(self._handle, [spec], replace_names=replace_names)[0][0]

    @as_verb
    def apply_batch(self, specs: Sequence[batch.LayerSpec], *, replace_names: bool = False) -> list[Layer]:
        """Apply several staged layers as one: all become visible in the same moment, or none does.

        A member's parent may be an earlier member. Raises and durability as ``apply_staged_layer``.
        """
        return apply.apply_batch(self._handle, specs, replace_names=replace_names)[0]

    @as_verb
    def pull(
        self, source: str, *, names: Sequence[str] | None = None, options: pull.PullOptions | None = None,
        progress: Progress | None = None,
    ) -> Image:
        """Pull an image: ``oci:DIR[:TAG]``, ``oci-archive:FILE[:TAG]``, ``docker-archive:FILE[:TAG]``, ``docker://HOST/…``.

        Args:
            source: where from; also ``containers-storage:[overlay@ROOT]NAME``, a store of podman's (docs/podman.md).
            names: names for the image; None takes the source's own suggestion.
            options: workers, platform, limits, whether names may be moved, who verifies the image.
            progress: told per layer what happens; a ``layerstore.Tally`` keeps it as figures.

        Returns:
            The image; ``created`` is False if it was there.

        Raises:
            InputError: SourceError (RegistryError, …), DigestMismatchError … for bad content.
            ImageRefusedError: by ``options.verify``; nothing was fetched, and nothing changed.
            LayerstoreError: DuplicateNameError; HostError; PendingError.

        Durability: image, signatures and layers are on disk and visible, together, when this returns, by one syncfs and
        three durable transactions. A crash before leaves the image absent. Finished layers are there for the next pull
        after a kill or an error; after a loss of power if write-back had them, or ``PullOptions.seal_every`` sealed them.

        """
        return pull.pull(self._handle, source, names, options or pull.PullOptions(), progress or Quiet())

    # -- looking -------------------------------------------------------------------------------------------------

    @as_verb
    def layers(self) -> list[Layer]:
        """Every committed and quarantined layer, by ID, and what is committed beneath. Never waits for a writer."""
        with stores_beneath.looking(self._handle) as view:
            return list(catalog.layers(view))

    @as_verb
    def layer(self, layer_id: str, *, damaged: bool = False) -> Layer:
        """One layer by its exact ID. UnknownLayerError; LayerDamagedError if it is quarantined and not *damaged*."""
        check_id(layer_id)
        with stores_beneath.looking(self._handle) as view:
            return catalog.layer(view, layer_id, damaged=damaged)

    @as_verb
    def layers_by_digest(self, digest: str, *, kind: str = "diff") -> list[Layer]:
        """Committed layers with that diffID (``kind="diff"``), blob digest (``"blob"``) or TOC digest (``"toc"``)."""
        check_digest(digest)
        with stores_beneath.looking(self._handle) as view:
            return catalog.by_digest(view, kind, digest)

    @as_verb
    def chain(self, layer_id: str, *, damaged: bool = False) -> list[Layer]:
        """A layer and its ancestors, base first. LayerDamagedError if one is quarantined and not *damaged*."""
        return mount.chain_of(self._handle, "layer", check_id(layer_id), damaged=damaged)

    @as_verb
    def images(self) -> list[Image]:
        """Every committed image, by ID, those beneath too. Never waits for a writer; never sees half an image."""
        with stores_beneath.looking(self._handle) as view:
            return list(catalog.images(view))

    @as_verb
    def image(self, image_id: str) -> Image:
        """One image by its exact ID. UnknownImageError."""
        check_id(image_id, "image ID")
        with stores_beneath.looking(self._handle) as view:
            return catalog.image(view, image_id)

    @as_verb
    def image_documents(self, image_id: str) -> tuple[bytes, bytes]:
        """The exact bytes of an image's manifest and config. DamagedError if its side file is."""
        return export.image_documents(self._handle, self.image(image_id).id)

    @as_verb
    def resolve(self, reference: str) -> tuple[str, str]:
        """``("image" | "layer", ID)`` for a name, an ID, or an unambiguous ID prefix."""
        with stores_beneath.looking(self._handle) as view:
            return catalog.resolve(view, reference)

    # -- taking out ----------------------------------------------------------------------------------------------

    @as_verb
    def mount(
        self, reference: str, target: str | os.PathLike[str], *, writable: bool = False, damaged: bool = False,
        label: str | None = None,
    ) -> Mount:
        """Mount an image or layer by overlayfs at an existing directory; the layers cannot be deleted meanwhile.

        *damaged*: also if a layer is quarantined; what is bad in it is in the mount, too. *label*: a security context for
        all that is in it (SELinux: ``user:role:type[:level]``); it is recorded, and a writable mount that is taken up again
        has it again. Raises PrivilegeError without the privilege to mount (use ``extract``), BusyError,
        InvalidArgumentError, LayerDamagedError, HostError where the kernel does not take the label.
        Durability: the mount's row is on disk first; a mount does not survive a reboot, but the upper directory of
        a writable one does, and mounting the same at the same place takes it up again.
        """
        chain = mount.chain_of(self._handle, *self.resolve(reference), damaged=damaged)
        return mount.mount(self._handle, chain, os.fspath(target), writable=writable, damaged=damaged, label=label)

    @as_verb
    def unmount(self, target: str | os.PathLike[str], *, keep_upper: bool = False) -> None:
        """Unmount; the upper directory of a writable mount is removed unless *keep_upper*."""
        mount.unmount(self._handle, os.fspath(target), keep_upper=keep_upper)

    @as_verb
    def commit(
        self, target: str | os.PathLike[str], *, names: Sequence[str] = (), options: committing.CommitOptions | None = None,
    ) -> Image:
        """Make an image of a writable mount: what was written to it becomes a layer on those that are mounted.

        The mount stays, and may be committed again. What runs in it had better be paused: if anything changes while it is
        read, nothing is committed. (Not noticed is what is written through a shared memory mapping that was dirty before.)

        Args:
            target: where it is mounted, or its ID; or where it was, if its upper directory was kept.
            names: names for the image.
            options: whose config it takes over, and what is set in it.

        Returns:
            The image. Its layers are the mount's and one more; config and manifest are the base image's with that added.

        Raises:
            UnknownMountError: nothing of this store is mounted there.
            InvalidArgumentError: the mount is read-only, or several images have its layers.
            BusyError: it changed meanwhile.
            LayerstoreError: otherwise as ``apply_staged_layer``.

        Durability: as ``apply_staged_layer``: image and layer are on disk and visible, together, when this returns; a
        crash before leaves neither. The upper directory itself is not synced.

        """
        return committing.commit(self._handle, os.fspath(target), names, options or committing.CommitOptions())

    @as_verb
    def mounts(self) -> list[Mount]:
        return mount.mounts(self._handle)

    @as_verb
    def extract(
        self, reference: str, directory: str | os.PathLike[str], *, progress: Callable[[int], None] | None = None,
        damaged: bool = False,
    ) -> ExtractReport:
        """Copy an image's or layer's merged content into an absent or empty directory; needs no privilege.

        *damaged*: also if a layer is quarantined, with what is bad in it; else LayerDamagedError.

        Durability: none; what was copied is not synced.
        """
        chain = mount.chain_of(self._handle, *self.resolve(reference), damaged=damaged)
        return mount.extract_chain(self._handle, chain, os.fspath(directory), progress, damaged=damaged)

    @contextmanager
    def diff(self, layer_id: str) -> Iterator[Iterator[bytes]]:
        """A layer's original uncompressed tar, byte for byte, as chunks of bytes; for a ``with``.

        Args:
            layer_id: 64 hex digits.

        Yields:
            An iterator of the chunks, each of at most some MiB. Read to its end inside the ``with``.

        Raises:
            CallerError: UnknownLayerError; InvalidArgumentError if the layer has no tar-split.
            LayerDamagedError: while iterating, if the tree is not what it was: the last chunk comes only when the digest
                of all is the layer's diffID.

        Durability: reads only. A deletion meanwhile hides the layer at once, and takes its tree away afterwards.

        """
        with export.diff(self._handle, layer_id) as chunks:
            yield chunks

    @contextmanager
    def tar_split(self, layer_id: str) -> Iterator[Iterator[bytes]]:
        """A layer's tar-split as JSON lines, as the Go tools (vbatts/tar-split) read it; used, and fails, as ``diff``."""
        with export.go_tar_split(self._handle, layer_id) as chunks:
            yield chunks

    @contextmanager
    def layer_paths(self, layer_id: str, *, damaged: bool = False) -> Iterator[list[str]]:
        """The ``diff`` directories of a layer's chain, base first, locked against deletion and repair while inside.

        LayerDamagedError if one is quarantined and not *damaged*.
        """
        chain = self.chain(layer_id, damaged=damaged)
        with reading.ReaderLock(self._handle, [each.id for each in chain], damaged=damaged):
            yield [stores_beneath.diff_path(self._handle, each.id) for each in chain]

    # -- for other tools -------------------------------------------------------------------------------------------

    @as_verb
    def view(self, directory: str | os.PathLike[str]) -> view.ViewReport:
        """Publish the committed images at *directory*, for podman, buildah and their like, or bring that up to date.

        They read it as an additional image store (``additionalimagestores`` in storage.conf). Content is not copied: the
        view leads to the store's trees, which a lease keeps as long as it shows them (docs/podman.md).

        Args:
            directory: absent, empty, or a view of this store. What is in a view is layerstore's to change.

        Returns:
            What it shows, what was added and taken away, and which images had to be left out, and why.

        Raises:
            InvalidArgumentError: something else is there.
            PrivilegeError: podman, run like this process, could not read the trees.
            LayerstoreError: LayerDamagedError; HostError.

        Durability: on disk when this returns. A crash before leaves the view as it was, or as it was to be; what else it
        leaves is not seen by who reads the view, and goes at the next refresh.

        """
        return view.view(self._handle, os.fspath(directory))

    @as_verb
    def push(
        self, reference: str, target: str, *, compression: str = "as-it-came", registry: RegistryOptions | None = None,
        progress: Callable[[int], None] = lambda _n: None, signatures: bool = True,
    ) -> push.PushReport:
        """Write an image to ``oci:DIR[:TAG]``, ``oci-archive:FILE[:TAG]``, ``docker-archive:FILE[:NAME]``, ``docker://HOST/…``.

        Args:
            reference: a name, ID or unambiguous ID prefix of an image.
            target: where to. A layout may have other images, which stay; a file is replaced.
            compression: of layers: ``as-it-came`` (their kind; made anew), ``none``, ``gzip``, ``zstd`` or ``zstd:chunked``
                (docs/chunked.md). A Docker archive always has plain tars.
            registry: how to speak with a registry, and as whom.
            progress: told of each *n* more bytes of the layers' tars.
            signatures: those that came with the image go out with it, if its manifest does; a Docker archive has none.

        Returns:
            The digests there. Config and diffIDs are kept; the manifest if ``kept`` says so (docs/podman.md).

        Raises:
            LayerDamagedError: a layer no longer makes its tar.
            LayerstoreError: UnknownImageError; InvalidArgumentError; RegistryError …; HostError.

        Durability: the store is only read. What is written is synced before it gets its name: a crash leaves the target as
        it was, and perhaps blobs and ``.part`` files that nothing refers to.

        """
        return push.push(self._handle, reference, target, compression, progress, registry, signatures=signatures)

    @as_verb
    def remove_view(self, directory: str | os.PathLike[str]) -> None:
        """Take the view at *directory* away, and let go of what it kept. InvalidArgumentError if there is none.

        Durability: as for ``view``; a crash leaves an empty view or a part of one, and removing it again goes on.
        """
        view.remove(self._handle, os.fspath(directory))

    # -- holding, naming, deleting ---------------------------------------------------------------------------------

    @as_verb
    def set_name(self, name: str, reference: str, *, replace: bool = False) -> None:
        """Give *name* to an image or layer. DuplicateNameError if something else has it and not *replace*. Durable."""
        kind, owner = self.resolve(reference)
        holds.set_name(self._handle, name, kind, owner, replace=replace)

    @as_verb
    def drop_name(self, name: str) -> None:
        """Take a name away. BeneathError if it is one of a store beneath. Durable."""
        holds.drop_name(self._handle, name)

    @as_verb
    def take_lease(self, name: str, layers: Sequence[str]) -> None:
        """Keep layers from deletion, beyond this process's life, until ``drop_lease``. Durable."""
        holds.take_lease(self._handle, name, layers)

    @as_verb
    def drop_lease(self, name: str) -> None:
        holds.drop_lease(self._handle, name)

    @as_verb
    def leases(self) -> list[Lease]:
        with self._handle.read() as view:
            return list(catalog.leases(view))

    @as_verb
    def delete_layer(self, layer_id: str, *, wait: float = 10.0) -> delete.DeleteReport:
        """Delete a layer that no child, image, lease or mount uses (InUseError). BeneathError if it is beneath.

        It is hidden at once; readers that hold its tree are waited for *wait* seconds, then the rest is deferred
        to whoever can do it. Durability: the deletion is promised on disk before anything moves. When this returns, what
        was not deferred is out of its place on disk: not even a lost database brings it back.
        """
        return delete.delete_layer(self._handle, layer_id, wait=wait)

    @as_verb
    def delete_image(self, image_id: str, *, keep_layers: bool = False, wait: float = 10.0) -> delete.DeleteReport:
        """Delete an image and the layers that nothing else uses. Durability: as ``delete_layer``."""
        return delete.delete_image(self._handle, image_id, wait=wait, keep_layers=keep_layers)

    # -- keeping it well -------------------------------------------------------------------------------------------

    @as_verb
    def checkpoint(self, *, archive: bool | None = None) -> checkpoint.CheckpointReport:
        """Sync everything, so that recovery need not look further back; empty the trash; archive a long log."""
        return checkpoint.checkpoint(self._handle, archive=archive)

    @as_verb
    def snapshot(self, path: str | os.PathLike[str]) -> None:
        """Write a consistent copy of journal and catalog into one file, while others write; none of them waits.

        The file is a sealed segment: ``layerstore journal log|state|replay|verify FILE`` reads it anywhere, and
        ``layerstore.rebuild(source=FILE)`` goes by it. It holds no layers. (A copied ``data.mdb`` of a live store is torn.)

        Args:
            path: where to; nothing may be there.

        Raises:
            InvalidArgumentError: there is something. JournalDamagedError: the database is damaged. NoSpaceError, HostError.

        Durability: the file and its name are on disk when this returns; a crash before leaves at most ``<path>.part``.

        """
        self._handle.check_usable()
        if os.path.lexists(path):
            raise InvalidArgumentError(f"there is something at {os.fspath(path)}", hint="name a file that is not there yet")
        with journal_errors(None):
            self._handle.journal.snapshot_to(path)

    @as_verb
    def check(
        self, *, depth: str = "structure", content: bool = False, since_ns: int | None = None, budget: float | None = None,
        workers: int | None = None, rate: float | None = None, note: bool | None = None, beneath: bool = False,
        progress: CheckProgress | None = None,
    ) -> check.CheckReport:
        """Look for damage, beside everything else that goes on: nobody waits for it, and it waits for nobody.

        Args:
            depth: ``structure`` (journal, parts, side files: cheap), ``metadata`` (what every path is meant to be, too) or
                ``content`` (every digest, too).
            content: short for ``depth="content"``.
            since_ns: leave out layers found sound at that depth since then (nanoseconds since 1970).
            budget: seconds after which nothing further is begun, also of a large layer; the next check goes on there.
            workers: threads that hash; None: one a CPU, at most 8.
            rate: bytes read in a second to be hashed, at most.
            note: keep with each layer when it was found sound (None: if *since_ns* or *budget* is given). Not in a store
                that is open read-only.
            beneath: look at the stores beneath, too; what is found there names its store.
            progress: told of each layer, and of each *n* bytes that are hashed of it; a ``layerstore.Progress`` is one.

        Returns:
            What was found. Codes are stable: docs/check.md.

        Raises:
            InvalidArgumentError: these options do not go together.

        Durability: reads only; what is noted is advice, and never synced.

        """
        self._handle.check_usable()
        return check.check(self._handle, check.options(
            "content" if content else depth, since_ns=since_ns, budget=budget, workers=workers, rate=rate, note=note,
        ), beneath=beneath, progress=progress)

    @as_verb
    def repair(
        self, *, depth: str = "content", layers: Sequence[str] = (), source: str | None = None,
        options: PullOptions | None = None, wait: float = 10.0, dry_run: bool = False, set_aside: bool = False,
        workers: int | None = None, rate: float | None = None,
    ) -> repair.RepairReport:
        """Put right what a check finds, from the nearest good copy; quarantine what cannot be. Nothing is deleted.

        Args:
            depth: how closely to look for damage, as for ``check``.
            layers: only these IDs; empty: every layer, what nobody owns, and images' side files.
            source: where good copies are, as for ``pull``; of a chunked layer only the ranges that are needed are fetched.
            options: how to fetch from it.
            wait: seconds for readers that hold a damaged layer; then it is left (``RepairReport.busy``).
            dry_run: only plan: ``RepairReport.steps``. Nothing is changed, nor fetched.
            set_aside: set trees that nobody owns aside even if they have the whole side file of a layer, as they have after
                an older copy of the database was put back: then a rebuild takes them for layers again, and comes first.
            workers: threads that hash; None: one a CPU, at most 8.
            rate: bytes of content read in a second, at most, while damage is looked for.

        Returns:
            What was done, what was quarantined, and what must be remounted: to change what is mounted is undefined for
            overlayfs.

        Raises:
            LayerstoreError: InvalidArgumentError; UnknownLayerError; SourceError and its kin; NoSpaceError;
                OutcomeUnknownError.

        Durability: each layer's repair is in the journal before its first effect, and on disk when this returns. A crash
        leaves every path as it was or good; the next open ends what was begun.

        """
        self._handle.check_usable()
        return repair.repair(self._handle, repair.options(
            depth, layers=layers, source=source, pull=options or pull.PullOptions(), wait=wait, dry_run=dry_run,
            set_aside=set_aside, workers=workers, rate=rate,
        ))

    @as_verb
    def space(self) -> space.Space:
        """What the store takes of its disk and of its quota, part by part, and what is left, in bytes. Reads only.

        Whose the bytes of layers are tells ``usage``, which walks them; this walks none.
        """
        return space.space(self._handle)

    @as_verb
    def gauges(self) -> gauges.Gauges:
        """What gauges show of the store: its disk, trees by state, quota, reserve, trash and journal. Reads only.

        Takes no lock and waits for nobody. The cost is that of reading the catalog's rows, whatever lies in the store;
        what is counted here by its names, ``space`` measures. ``layerstore.observing.Metrics.watch`` asks for it.
        """
        return gauges.gauges(self._handle)

    @as_verb
    def usage(self) -> usage.Usage:
        """Measure what images and layers take on the disk, in bytes, and what would become free.

        Returns:
            Per image and in total: logical, allocated, unique, shared and reclaimable bytes, and those whose blocks
            another file shares where the file system says that (xfs, btrfs). ``layerstore.verbs.usage`` has the
            definitions. The rest of the store, and what is left, tells ``space``.

        Raises:
            LayerstoreError: PoisonedError, ClosedError: this handle cannot be used.

        Durability: reads only. Beside writers: whom a layer belongs to is one moment's truth; each layer is held by a
        reader's lock while it is measured, and one that is being deleted is counted as ``unread``. The cost is that of
        looking at every file.

        """
        return usage.usage(self._handle)

    @as_verb
    def quota(self) -> int | None:
        """The most bytes of layers (their uncompressed tars) that this store takes, or None."""
        return quota.limit_of(self._handle)

    @as_verb
    def set_quota(self, limit: int | None) -> None:
        """Let the store take at most *limit* bytes of layers (their uncompressed tars); None: as many as fit.

        Every process that stages or applies goes by it from its next layer on: QuotaError. It may be less than what is
        there. Durability: on disk when this returns; a crash before leaves the old limit or the new one.
        """
        quota.set_limit(self._handle, limit)

    @as_verb
    def explain(self, reference: str) -> Life:
        """One layer's life from the journal, archived records included, and what the disk says now. Reads only.

        Args:
            reference: a name, the ID of a layer or image, or a tree's txid, or the beginning of one (4 digits or more); of
                what is gone, too, as long as the journal has records of it.

        Returns:
            The life: its ``steps``, and ``text()``, ``html()`` and ``as_json()`` of them.

        Raises:
            LayerstoreError: UnknownLayerError, InvalidArgumentError if the reference is ambiguous, JournalDamagedError.

        """
        return explain.explain(self._handle, reference)

    @as_verb
    def collect_garbage(
        self, *, retention: float = 7 * 86_400.0, grace: float = 3_600.0, segments: int | None = None,
        rate: float | None = None, dry_run: bool = False,
    ) -> gc.GcReport:
        """Let go of old staged trees, of old layers that nothing needs, of the trash, and of archived log.

        Args:
            retention: seconds that staged trees are kept.
            grace: seconds that unreferenced layers are kept after their creation.
            segments: how many segments of the archived log are kept, the newest (at least 1); None: all.
            rate: files removed a second at most, for the sake of others on the disk; None: no limit.
            dry_run: only say what would go, and how many bytes that would free.

        Raises:
            InvalidArgumentError: *segments* or *rate* is too small.
            PendingError: the layers are gone, or will be; their space, or the rest, could not be dealt with now.

        Durability: all layers are promised to be deleted in one transaction, and are gone when this returns. A crash
        after the promise is finished by the next open; one before it has collected no layer.

        """
        policy = gc.GcPolicy(retention=retention, grace=grace, segments=segments, rate=rate)
        return gc.collect(self._handle, policy, dry_run=dry_run)

    @as_verb
    def recover(self, *, dry_run: bool = False) -> RecoveryReport:
        """Run recovery again (deferred deletions, say); *dry_run* only plans, and touches nothing."""
        if dry_run:
            self._handle.check_usable()
            return recover.dry_run(self._handle)
        self._handle.check_writable()
        return recover.recover(self._handle)

    def close(self) -> None:
        """Give locks and descriptors back. Unapplied staged layers stay, as after ``StagedLayer.release``."""
        self._handle.close()

    def __enter__(self) -> Store:
        return self

    def __exit__(
        self, _type: type[BaseException] | None, _value: BaseException | None, _traceback: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<layerstore.Store {self.root!r}{' closed' if self._handle.closed else ''}>"


__all__ = ["LayerstoreError", "Store", "open"]
