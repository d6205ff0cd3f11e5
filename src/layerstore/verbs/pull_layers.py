"""The layers that an image lacks here: staged, several at a time, each by the differ that its blob wants.

Trees are begun in the order of their content keys, whatever the order in the image, so that two processes pulling images
that share layers never wait for each other in a circle (``begin``). The first failure cancels the others; what was
finished by then is left for the next pull, and so is what was fetched of the rest.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial

from layerstore.chunked import is_chunked
from layerstore.dedup import LayerFinder
from layerstore.differs import ChunkedDiffer, TarDiffer
from layerstore.errors import DigestMismatchError, InvalidArgumentError, LayerstoreError
from layerstore.lifecycle import catalog
from layerstore.model import Differ, LayerSource, Limits
from layerstore.opening.handle import Handle
from layerstore.progress import Progress
from layerstore.signatures import OfferedImage
from layerstore.sources.registry import RegistryOptions
from layerstore.system import pool
from layerstore.verbs.begin import Want, begin
from layerstore.verbs.stage import fill
from layerstore.verbs.staging import Staging, give_up, leave, seal

__all__ = ["Job", "PullOptions", "differ_of", "stage_all"]

_SEAL_LOOK_SECONDS = 0.5                 # who waits for layers looks so often whether it is time to seal some


@dataclass(frozen=True, slots=True)
class PullOptions:
    """How to pull. ``workers`` layers, 1 or more, are staged at once.

    ``platform`` is ``os/arch[/variant]`` (None: this machine's).
    ``wait`` seconds for another process or thread that stages the same content, then BusyError (None: as long as it lives).
    ``seal_every`` seconds, what is finished is made durable by a sync of its own, so that a loss of power in the middle
    of a long pull does not cost it; None: once, at the end, together with everything else. 0: each as it is finished.
    ``registry`` says how to speak with one, and as whom. ``partial``: of a layer with a table of contents (zstd:chunked,
    eStargz) only what is in no layer here is fetched; else all of it. ``preflight``: begin only if the layers seem to fit
    on the disk and into the quota; the size of compressed ones is guessed, rather too low (``space``). ``keep_blobs``: each
    new layer's compressed blob is kept, too, so that a push sends the very image that came; it takes its size more, and is
    fetched whole.

    ``verify`` is called with an ``OfferedImage``, whatever of it is here already, before a layer is asked for and before
    anything is written: what it raises refuses the image (``ImageRefusedError``). ``signatures``: those that the source
    offers are looked for, shown to it, and kept with an image that is new here.
    """

    workers: int = 2
    platform: str | None = None
    replace_names: bool = False
    limits: Limits = field(default_factory=Limits)
    seal_every: float | None = None
    partial: bool = True
    preflight: bool = True
    keep_blobs: bool = False
    verify: Callable[[OfferedImage], object] | None = None
    signatures: bool = True
    wait: float | None = None
    registry: RegistryOptions = field(default_factory=RegistryOptions)

    def __post_init__(self) -> None:
        if self.workers < 1:
            raise InvalidArgumentError(f"{self.workers} workers stage nothing", hint="workers is 1 or more")


@dataclass(slots=True)
class Job:
    """One of them: where it comes from, what it is to be called, and its tree once that is begun."""

    source: LayerSource
    layer_id: str
    parent: str | None
    staging: Staging | None = None

    @property
    def filling(self) -> Staging | None:
        """Its tree, if that is still to be filled."""
        return self.staging if self.staging is not None and self.staging.output is None else None


def stage_all(
    handle: Handle, missing: list[Job], names: Sequence[str], options: PullOptions, progress: Progress,
) -> None:
    """Stage what is missing; on the first error cancel the rest, keep what is finished, and raise it.

    *names* is what the image will be called: others of the name are where its content is looked for first.
    """
    if not missing:
        return
    filler, sealer = _Filler(handle, names, options, progress), _Sealer(handle, missing, options)
    try:
        if options.workers == 1:
            _stage_in_order(missing, filler, sealer, options)
        else:
            _stage_in_parallel(missing, filler, sealer, options)
    except BaseException:
        _keep_what_is_finished(handle, missing)
        raise


def _stage_in_order(missing: list[Job], filler: _Filler, sealer: _Sealer, options: PullOptions) -> None:
    """One after the other, in this thread: every effect in the same order every time."""
    for begun in _begun(filler.handle, missing, filler.progress, options.wait):
        for job in begun:
            if job.filling is not None:
                filler.fill(job, threading.Event())
                filler.tell_staged(job)
                sealer.seal_if_due()


def _stage_in_parallel(missing: list[Job], filler: _Filler, sealer: _Sealer, options: PullOptions) -> None:
    cancelled = threading.Event()
    running: dict[pool.Job, Job] = {}
    with pool.pooled(min(options.workers, len(missing)), "layerstore-stage") as threads:
        try:
            for begun in _begun(filler.handle, missing, filler.progress, options.wait):
                for job in begun:
                    if job.filling is not None:
                        running[threads.submit(partial(filler.fill, job, cancelled))] = job
                _collect(threads.finished(wait=0.0), running, filler)
                sealer.seal_if_due()
            while threads:
                _collect(threads.finished(wait=_SEAL_LOOK_SECONDS), running, filler)
                sealer.seal_if_due()
        finally:
            cancelled.set()              # before the threads are waited for


def _begun(handle: Handle, missing: list[Job], progress: Progress, wait: float | None) -> Iterator[list[Job]]:
    """All jobs, as their trees are begun: by the order of content keys, so that nobody waits in a circle (``begin``)."""
    # whoever holds trees out of order already must not wait in a circle either
    ordered = not handle.held_by_this_thread()
    todo = sorted(missing, key=lambda j: (j.source.descriptor.digest, j.layer_id))
    for job in todo:
        progress.layer(job.source.diff_id, state="waiting", size=job.source.descriptor.size)
    while todo:
        wants = [Want(job.source.descriptor.digest, _Needless(job)) for job in todo]
        trees = begin(handle, wants, wait=wait, ordered=ordered, waiting=_Waiting(todo[0], progress))
        begun, todo = todo[:len(trees)], todo[len(trees):]
        for job, tree in zip(begun, trees, strict=True):
            job.staging = tree
        for job in begun:
            _look_at(handle, job, progress)
        yield begun


@dataclass(frozen=True, slots=True)
class _Needless:
    """Whether another process committed the layer, as it may while we wait."""

    job: Job

    def __call__(self, view: catalog.Reader) -> bool:
        return catalog.is_committed(view, self.job.layer_id)


class _Waiting:
    """Tells what another process has fetched of a layer meanwhile."""

    def __init__(self, job: Job, progress: Progress) -> None:
        self._job, self._progress, self._told = job, progress, 0

    def __call__(self, kept: int) -> None:
        kept = min(kept, self._job.source.descriptor.size)
        if kept > self._told:
            more, self._told = kept - self._told, kept
            self._progress.awaited(self._job.source.diff_id, more)


def _look_at(handle: Handle, job: Job, progress: Progress) -> None:
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


def differ_of(
    handle: Handle, source: LayerSource, *, names: Sequence[str], parent: str | None, partial: bool,
    keep_blob: bool = False, note: Callable[[str, str], None] = lambda _layer, _what: None,
) -> Differ:
    """The differ that a layer's blob wants. *partial*: of one with a table of contents only what is not here is fetched.

    *keep_blob*: beside the tree, for a push of the same bytes; then all of it is fetched.
    """
    if keep_blob or not partial or not is_chunked(source.descriptor):
        return TarDiffer(source.blob, expect=source.descriptor, diff_id=source.diff_id, keep_blob=keep_blob)

    def tell(what: str) -> None:
        handle.observer.event("noted", diff_id=source.diff_id, note=what)
        note(source.diff_id, what)

    finder = LayerFinder(handle, names=names, parent=parent)
    return ChunkedDiffer(source.blob, expect=source.descriptor, diff_id=source.diff_id, finder=finder, tell=tell)


class _Filler:
    """Fills the tree of one layer after the other; for several threads."""

    def __init__(self, handle: Handle, names: Sequence[str], options: PullOptions, progress: Progress) -> None:
        self.handle, self.progress = handle, progress
        self._names, self._options = names, options

    def fill(self, job: Job, cancelled: threading.Event) -> None:
        assert job.staging is not None
        label, progress = job.source.diff_id, self.progress
        fill(self.handle, job.staging, self._differ(job), limits=self._options.limits,
             progress=lambda n: progress.advance(label, n), resumed=lambda n: progress.resumed(label, n),
             spared=lambda n: progress.spared(label, n), cancelled=cancelled)

    def _differ(self, job: Job) -> Differ:
        return differ_of(
            self.handle, job.source, names=self._names, parent=job.parent, partial=self._options.partial,
            keep_blob=self._options.keep_blobs,
            note=lambda *told: self.progress.note(*told),  # noqa: PLW0108 - looked for only when there is something to say
        )

    def tell_staged(self, job: Job) -> None:
        self.progress.layer(job.source.diff_id, state="staged", size=job.source.descriptor.size)


def _collect(finished: list[pool.Job], running: dict[pool.Job, Job], filler: _Filler) -> None:
    """Raise the first failure, after telling of what succeeded."""
    for each in finished:
        if each.error is None:
            filler.tell_staged(running[each])
    for each in finished:
        if each.error is not None:
            running[each].staging = None   # given up by fill
            each.check()


class _Sealer:
    """Seals what is finished and not durable, as one group, every so often; never, unless it is asked for."""

    def __init__(self, handle: Handle, jobs: list[Job], options: PullOptions) -> None:
        self._handle, self._jobs, self._every, self._last = handle, jobs, options.seal_every, time.monotonic()

    def seal_if_due(self) -> None:
        if self._every is None or time.monotonic() - self._last < self._every:
            return
        trees = [job.staging for job in self._jobs if job.staging is not None]
        finished = [tree for tree in trees if tree.output is not None and not tree.durable]
        if finished:
            seal(self._handle, finished)
            self._last = time.monotonic()


def _keep_what_is_finished(handle: Handle, jobs: list[Job]) -> None:
    trees = [job.staging for job in jobs if job.staging is not None]
    for tree in trees:
        if tree.output is not None:
            with suppress(LayerstoreError):
                leave(handle, tree)
    with suppress(LayerstoreError):
        give_up(handle, *(tree for tree in trees if tree.output is None))
