"""Pulling an image: its missing layers staged in parallel, then applied with the image as one batch.

Layers that are committed already (by chain ID), here or in a store beneath, are not read; how the others are staged is in
``pull_layers``. However many layers are new, there are one syncfs and three durable transactions: ``begin``, ``claim``,
``commit``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace

from layerstore.errors import (
    DuplicateNameError,
    ImageRefusedError,
    InputError,
    ParentUnavailableError,
    UnknownLayerError,
)
from layerstore.lifecycle import catalog
from layerstore.lifecycle.stacked import STORE
from layerstore.lifecycle.states import State
from layerstore.model import Image, SourceImage, default_layer_id
from layerstore.opening.beneath import looking
from layerstore.opening.handle import Handle
from layerstore.opening.reading import ReaderLock
from layerstore.progress import Progress, Quiet
from layerstore.signatures import OfferedImage, Signature
from layerstore.sources import ImageSource, open_source
from layerstore.verbs.apply import apply_batch
from layerstore.verbs.batch import LayerSpec
from layerstore.verbs.holds import set_name
from layerstore.verbs.names import check_name
from layerstore.verbs.pull_layers import Job, PullOptions, stage_all
from layerstore.verbs.space import preflight
from layerstore.verbs.stage import StagedLayer

__all__ = ["Progress", "PullOptions", "Quiet", "pull"]

_TRIES = 5


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
        if options.verify is not None:
            wanted = _verified(reference, source, wanted, options.verify, options)
        for _ in range(_TRIES - 1):
            with suppress(ParentUnavailableError, UnknownLayerError):   # a layer that was there is being deleted meanwhile
                return _pull(handle, reference, source, wanted, names, options, progress)
        return _pull(handle, reference, source, wanted, names, options, progress)


def _verified(
    reference: str, source: ImageSource, wanted: SourceImage, verify: Callable[[OfferedImage], object],
    options: PullOptions,
) -> SourceImage:
    """*wanted* with its signatures, once *verify* has let it pass."""
    if options.signatures:
        wanted = replace(wanted, signatures=_signatures(source, wanted))
    offered = OfferedImage(
        reference, wanted.manifest_digest, wanted.manifest_media_type, wanted.manifest, wanted.config, wanted.indexes,
        wanted.signatures,
    )
    try:
        verify(offered)
    except ImageRefusedError:
        raise
    except Exception as error:
        what = f"{reference}, the manifest {wanted.manifest_digest}, is refused: {error}"
        raise ImageRefusedError(what, reference=reference, manifest_digest=wanted.manifest_digest) from error
    return wanted


def _signatures(source: ImageSource, wanted: SourceImage) -> tuple[Signature, ...]:
    try:
        return source.signatures(wanted)
    except InputError as error:   # silence must not pass for "unsigned"; but who does not care can go on
        error.hint += "; or pull without signatures (--no-signatures, PullOptions.signatures)"
        raise


def _pull(
    handle: Handle, reference: str, source: ImageSource, wanted: SourceImage, names: Sequence[str], options: PullOptions,
    progress: Progress,
) -> Image:
    chain = _chain(wanted)
    with looking(handle) as view:
        _check_names(view, names, wanted.id, options.replace_names)
        known = _known(view, wanted)
        _check_verified(known, reference, wanted, options)
        missing = [job for job in chain if not catalog.is_committed(view, job.layer_id)]
        quarantined = [job for job in missing if catalog.tree_of(view, job.layer_id) is not None]
        for job in quarantined:
            _refuse_damaged(view, job)
    for job in chain:
        if job not in missing:
            progress.layer(job.source.diff_id, state="present", size=job.source.descriptor.size)
    if known is None or missing:
        if options.signatures and options.verify is None:   # not asked for before: the image may have been known
            wanted = replace(wanted, signatures=_signatures(source, wanted))
        # pinned by shared locks until the batch's own rows pin them: nobody may delete what we build on
        if options.preflight:
            preflight(handle, [job.source for job in missing])
        present = [job.layer_id for job in chain if job not in missing]
        with ReaderLock(handle, present):
            known = _stage_and_apply(handle, wanted, chain, missing, names, options, progress)
        _check_verified(known, reference, wanted, options)   # another process may have been before us
    with handle.read() as own:   # one that the image has beneath becomes the store's own, too: it outlives that store
        has = {name for name in names if (own.get("names", name) or {}).get("id") == known.id}
    for name in names:
        if name not in has:
            set_name(handle, name, "image", known.id, replace=options.replace_names)
    with looking(handle) as view:
        return replace(catalog.image(view, wanted.id), created=known.created)


def _chain(wanted: SourceImage) -> list[Job]:
    jobs: list[Job] = []
    parent: str | None = None
    for source in wanted.layers:
        layer_id = default_layer_id(parent, source.diff_id)
        jobs.append(Job(source, layer_id, parent))
        parent = layer_id
    return jobs


def _known(view: catalog.Reader, wanted: SourceImage) -> Image | None:
    row = view.get("images", wanted.id)
    if row is None or row["state"] != State.COMMITTED or STORE in row:
        return None   # one that is beneath gets a row here, too: its names and documents outlive that store
    return replace(catalog.image(view, wanted.id), created=False)


def _check_verified(known: Image | None, reference: str, wanted: SourceImage, options: PullOptions) -> None:
    """Who verified one manifest said nothing of an image that is here by another, be it of the same config."""
    if options.verify is not None and known is not None and known.manifest_digest != wanted.manifest_digest:
        raise ImageRefusedError(
            f"the image {known.id} is here with the manifest {known.manifest_digest}; what was verified is {reference}, "
            f"the manifest {wanted.manifest_digest}",
            reference=reference, manifest_digest=wanted.manifest_digest, hint="delete it, and pull again",
        )


def _check_names(view: catalog.Reader, names: Sequence[str], image_id: str, replace_names: bool) -> None:
    """Before a byte is fetched; decided again, and finally, in the claim."""
    for name in names:
        row = view.get("names", name)
        if row is not None and row["id"] != image_id and not replace_names:
            raise DuplicateNameError(f"the name {name!r} belongs to {row['kind']} {row['id']}")


def _refuse_damaged(view: catalog.Reader, job: Job) -> None:
    found = catalog.tree_of(view, job.layer_id)
    if found is not None and found[1]["state"] == State.QUARANTINED:
        catalog.layer(view, job.layer_id)   # raises LayerDamagedError


def _stage_and_apply(
    handle: Handle, wanted: SourceImage, chain: list[Job], missing: list[Job], names: Sequence[str],
    options: PullOptions, progress: Progress,
) -> Image:
    staged: list[StagedLayer] = []
    try:
        stage_all(handle, missing, names, options, progress)
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
