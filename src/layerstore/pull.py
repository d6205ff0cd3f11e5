"""Pulling an image: its missing layers staged in parallel, then applied with the image as one batch.

Layers that are committed already (by chain ID) are not read. Trees are begun in the order of their content keys,
whatever the order in the image, so that two processes pulling images that share layers never wait for each other
in a circle (``begin``). However many layers are new, there are one syncfs and three durable transactions: ``begin``,
``claim``, ``commit``. The first failure cancels the others; what was finished by then is left for the next pull.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import dataclass, field, replace

from layerstore import catalog
from layerstore.apply import LayerSpec, apply_batch, check_name
from layerstore.begin import Want, begin
from layerstore.differs import TarDiffer
from layerstore.errors import (
    DigestMismatchError,
    DuplicateNameError,
    LayerstoreError,
    ParentUnavailableError,
    UnknownLayerError,
)
from layerstore.handle import Handle
from layerstore.holds import ReaderLock, set_name
from layerstore.model import Image, LayerSource, Limits, SourceImage, default_layer_id
from layerstore.progress import Progress, Quiet
from layerstore.sources import open_source
from layerstore.sources.registry import RegistryOptions
from layerstore.stage import StagedLayer, fill
from layerstore.staging import Staging, give_up, leave, seal
from layerstore.states import State

__all__ = ["Progress", "PullOptions", "Quiet", "pull"]

_TRIES = 5


@dataclass(frozen=True, slots=True)
class PullOptions:
    """How to pull. ``workers`` layers are staged at once; ``platform`` is ``os/arch[/variant]`` (None: this machine's).

    ``seal_every`` seconds, what is finished is made durable by a sync of its own, so that a loss of power in the middle
    of a long pull does not cost it; None: once, at the end, together with everything else. 0: each as it is finished.
    ``registry`` says how to speak with one, and as whom.
    """

    workers: int = 2
    platform: str | None = None
    replace_names: bool = False
    limits: Limits = field(default_factory=Limits)
    seal_every: float | None = None
    registry: RegistryOptions = field(default_factory=RegistryOptions)


@dataclass(slots=True)
class _Job:
    source: LayerSource
    layer_id: str
    parent: str | None
    staging: Staging | None = None

    @property
    def filling(self) -> Staging | None:
        """Its tree, if that is still to be filled."""
        return self.staging if self.staging is not None and self.staging.output is None else None


def pull(
    handle: Handle, reference: str, names: Sequence[str] | None, options: PullOptions, progress: Progress,
) -> Image:
    """Pull *reference*; the verb behind ``Store.pull``. *names* None: the source's own suggestion."""
    handle.check_writable()
    with open_source(
        reference, platform=options.platform, limits=options.limits, registry=options.registry,
    ) as source:
        wanted = source.resolve()
        if names is None:
            names = [wanted.name] if wanted.name is not None else []
        for name in names:
            check_name(name)
        for _ in range(_TRIES - 1):
            with suppress(ParentUnavailableError, UnknownLayerError):   # a layer that was there is being deleted meanwhile
                return _pull(handle, wanted, names, options, progress)
        return _pull(handle, wanted, names, options, progress)


def _pull(
    handle: Handle, wanted: SourceImage, names: Sequence[str], options: PullOptions, progress: Progress,
) -> Image:
    chain = _chain(wanted)
    with handle.read() as view:
        _check_names(view, names, wanted.id, options.replace_names)
        known = _known(view, wanted)
        missing = [job for job in chain if not catalog.is_committed(view, job.layer_id)]
        quarantined = [job for job in missing if catalog.tree_of(view, job.layer_id) is not None]
        for job in quarantined:
            _refuse_damaged(view, job)
    for job in chain:
        if job not in missing:
            progress.layer(job.source.diff_id, state="present", size=job.source.descriptor.size)
    if known is None or missing:
        # pinned by shared locks until the batch's own rows pin them: nobody may delete what we build on
        present = [job.layer_id for job in chain if job not in missing]
        with ReaderLock(handle, present):
            known = _stage_and_apply(handle, wanted, chain, missing, names, options, progress)
    for name in names:
        if name not in known.names:
            set_name(handle, name, "image", known.id, replace=options.replace_names)
    with handle.read() as view:
        return replace(catalog.image(view, wanted.id), created=known.created)


def _chain(wanted: SourceImage) -> list[_Job]:
    jobs: list[_Job] = []
    parent: str | None = None
    for source in wanted.layers:
        layer_id = default_layer_id(parent, source.diff_id)
        jobs.append(_Job(source, layer_id, parent))
        parent = layer_id
    return jobs


def _known(view: catalog.Reader, wanted: SourceImage) -> Image | None:
    row = view.get("images", wanted.id)
    if row is None or row["state"] != State.COMMITTED:
        return None
    return replace(catalog.image(view, wanted.id), created=False)


def _check_names(view: catalog.Reader, names: Sequence[str], image_id: str, replace_names: bool) -> None:
    """Before a byte is fetched; decided again, and finally, in the claim."""
    for name in names:
        row = view.get("names", name)
        if row is not None and row["id"] != image_id and not replace_names:
            raise DuplicateNameError(f"the name {name!r} belongs to {row['kind']} {row['id']}")


def _refuse_damaged(view: catalog.Reader, job: _Job) -> None:
    found = catalog.tree_of(view, job.layer_id)
    if found is not None and found[1]["state"] == State.QUARANTINED:
        catalog.layer(view, job.layer_id)   # raises LayerDamagedError


def _stage_and_apply(
    handle: Handle, wanted: SourceImage, chain: list[_Job], missing: list[_Job], names: Sequence[str],
    options: PullOptions, progress: Progress,
) -> Image:
    staged: list[StagedLayer] = []
    try:
        _stage_all(handle, missing, options, progress)
        specs = []
        for job in missing:
            if job.staging is not None:
                handle_of = StagedLayer(handle, job.staging)
                staged.append(handle_of)
                specs.append(LayerSpec(handle_of, parent=job.parent, id=job.layer_id))
        _layers, image = apply_batch(
            handle, specs, image=wanted, image_layers=[job.layer_id for job in chain], image_names=names,
            replace_names=options.replace_names,
        )
    finally:
        for each in staged:
            each.release()   # does nothing once applied; else it stays for the next pull
    assert image is not None
    return image


def _stage_all(handle: Handle, missing: list[_Job], options: PullOptions, progress: Progress) -> None:
    """Stage what is missing; on the first error cancel the rest, keep what is finished, and raise it."""
    try:
        if options.workers == 1:
            _stage_in_order(handle, missing, options, progress)
        else:
            _stage_in_parallel(handle, missing, options, progress)
    except BaseException:
        _keep_what_is_finished(handle, missing)
        raise


def _stage_in_order(handle: Handle, missing: list[_Job], options: PullOptions, progress: Progress) -> None:
    """One after the other, in this thread: every effect in the same order every time."""
    sealer = _Sealer(handle, missing, options)
    for begun in _begun(handle, missing, progress):
        for job in begun:
            if job.filling is not None:
                _fill(handle, job, options.limits, progress, threading.Event())
                _tell_staged(job, progress)
                sealer.seal_if_due()


def _stage_in_parallel(handle: Handle, missing: list[_Job], options: PullOptions, progress: Progress) -> None:
    sealer, cancelled = _Sealer(handle, missing, options), threading.Event()
    running: dict[Future[None], _Job] = {}
    with ThreadPoolExecutor(options.workers, thread_name_prefix="layerstore-stage") as pool:
        try:
            for begun in _begun(handle, missing, progress):
                for job in begun:
                    if job.filling is not None:
                        running[pool.submit(_fill, handle, job, options.limits, progress, cancelled)] = job
                _collect(running, progress, timeout=0.0)
                sealer.seal_if_due()
            while running:
                _collect(running, progress, timeout=None)
                sealer.seal_if_due()
        except BaseException:
            cancelled.set()
            for future in running:
                future.cancel()
            raise


def _begun(handle: Handle, missing: list[_Job], progress: Progress) -> Iterator[list[_Job]]:
    """All jobs, as their trees are begun: by the order of content keys, so that nobody waits in a circle (``begin``)."""
    # whoever holds trees out of order already must not wait in a circle either
    ordered = not handle.held_by_this_thread()
    todo = sorted(missing, key=lambda j: (j.source.descriptor.digest, j.layer_id))
    for job in todo:
        progress.layer(job.source.diff_id, state="waiting", size=job.source.descriptor.size)
    while todo:
        wants = [Want(job.source.descriptor.digest, _Needless(job)) for job in todo]
        trees = begin(handle, wants, ordered=ordered, waiting=_Waiting(todo[0], progress))
        begun, todo = todo[:len(trees)], todo[len(trees):]
        for job, tree in zip(begun, trees, strict=True):
            job.staging = tree
        for job in begun:
            _look_at(handle, job, progress)
        yield begun


@dataclass(frozen=True, slots=True)
class _Needless:
    """Whether another process committed the layer, as it may while we wait."""

    job: _Job

    def __call__(self, view: catalog.Reader) -> bool:
        return catalog.is_committed(view, self.job.layer_id)


class _Waiting:
    """Tells what another process has fetched of a layer meanwhile."""

    def __init__(self, job: _Job, progress: Progress) -> None:
        self._job, self._progress, self._told = job, progress, 0

    def __call__(self, kept: int) -> None:
        kept = min(kept, self._job.source.descriptor.size)
        if kept > self._told:
            more, self._told = kept - self._told, kept
            self._progress.awaited(self._job.source.diff_id, more)


def _look_at(handle: Handle, job: _Job, progress: Progress) -> None:
    tree, state = job.staging, "staging"
    if tree is None:
        state = "present"
    elif tree.output is not None:
        state = "adopted"
        if tree.output.diff_id != job.source.diff_id:
            # an earlier pull staged the blob under another promise; it is what it is, and not what this image says
            handle.let_go(tree.txid)
            job.staging = None
            raise DigestMismatchError(
                f"the blob {job.source.descriptor.digest} is not the layer that the image's config promises",
                expected=job.source.diff_id, actual=tree.output.diff_id,
            )
    progress.layer(job.source.diff_id, state=state, size=job.source.descriptor.size)


def _fill(handle: Handle, job: _Job, limits: Limits, progress: Progress, cancelled: threading.Event) -> None:
    assert job.staging is not None
    differ = TarDiffer(job.source.blob, expect=job.source.descriptor, diff_id=job.source.diff_id)
    label = job.source.diff_id
    fill(handle, job.staging, differ, limits=limits, progress=lambda n: progress.advance(label, n),
         resumed=lambda n: progress.resumed(label, n), spared=lambda n: progress.spared(label, n), cancelled=cancelled)


def _tell_staged(job: _Job, progress: Progress) -> None:
    progress.layer(job.source.diff_id, state="staged", size=job.source.descriptor.size)


def _collect(running: dict[Future[None], _Job], progress: Progress, *, timeout: float | None) -> None:
    """Whatever is filled by now; raise the first failure, after telling of what succeeded."""
    done, _ = wait(running, timeout=timeout, return_when=FIRST_COMPLETED)
    jobs = [(future, running.pop(future)) for future in done]
    for future, job in jobs:
        if future.exception() is None:
            _tell_staged(job, progress)
    for future, job in jobs:
        if future.exception() is not None:
            job.staging = None   # given up by fill
            try:
                future.result()   # raises it
            finally:
                del future, jobs, done   # they hold the error, which holds this frame: nothing may wait for a collection


class _Sealer:
    """Seals what is finished and not durable, as one group, every so often; never, unless it is asked for."""

    def __init__(self, handle: Handle, jobs: list[_Job], options: PullOptions) -> None:
        self._handle, self._jobs, self._every, self._last = handle, jobs, options.seal_every, time.monotonic()

    def seal_if_due(self) -> None:
        if self._every is None or time.monotonic() - self._last < self._every:
            return
        trees = [job.staging for job in self._jobs if job.staging is not None]
        finished = [tree for tree in trees if tree.output is not None and not tree.durable]
        if finished:
            seal(self._handle, finished)
            self._last = time.monotonic()


def _keep_what_is_finished(handle: Handle, jobs: list[_Job]) -> None:
    trees = [job.staging for job in jobs if job.staging is not None]
    for tree in trees:
        if tree.output is not None:
            with suppress(LayerstoreError):
                leave(handle, tree)
    with suppress(LayerstoreError):
        give_up(handle, *(tree for tree in trees if tree.output is None))
