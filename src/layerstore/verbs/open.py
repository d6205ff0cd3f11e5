"""Opening a store: made if need be, the stores beneath it recorded and opened, recovered.

In order, and what a crash in each leaves: ``opening.create``, a store half made; ``opening.beneath``, the old list of
stores beneath or the new one; ``recovery.recover``, one recovered in part. The next opening goes on.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import replace

from layerstore.errors import UnknownImageError
from layerstore.observe import Observer
from layerstore.opening import beneath
from layerstore.opening.form import Form
from layerstore.opening.handle import Handle
from layerstore.recovery import recover
from layerstore.recovery.recover import RecoveryReport
from layerstore.system.fs import host_error

__all__ = ["opened"]


def opened(
    path: str, readonly: bool, form: Form | None, allow_filesystem: tuple[str, ...], observer: Observer,
    clock: Callable[[], int], below: Sequence[str | os.PathLike[str]] | None,
) -> tuple[Handle, RecoveryReport]:
    """The store at *path*, made in this *form* if there is none (None: it must be there), over the stores *below*."""
    found = None if below is None else beneath.found_at(below)
    if form is not None:
        from layerstore.opening.create import create  # noqa: PLC0415 - who only reads does not need it

        if found and form.overlay is None:
            form = replace(form, overlay=beneath.form_of(found))
        create(path, form=form, allow_filesystem=allow_filesystem, clock=clock)
    try:
        if found is not None and not readonly:
            beneath.record(path, found)
        handle = Handle(path, readonly=readonly, allow_filesystem=allow_filesystem, observer=observer, clock=clock)
    except FileNotFoundError as error:
        hint = "pull into it, or open it writable, to make one"
        raise UnknownImageError(f"there is no store at {path}", hint=hint) from error
    except OSError as error:
        raise host_error(error, f"opening the store at {path}") from error
    try:
        beneath.attach(handle, found)
        report = recover.dry_run(handle) if readonly else recover.recover(handle)
    except BaseException as error:
        handle.close()
        if isinstance(error, OSError):
            raise host_error(error, f"recovering the store at {path}") from error
        raise
    handle.recovered = {action.layer_id: handle.clock() for action in report.actions if action.layer_id is not None}
    handle.observer.event(
        "opened", root=path, readonly=readonly, actions=len(report.actions), deferred=len(report.deferred),
        head=report.head, low_water=report.low_water, seconds=report.seconds,
    )
    return handle, report
