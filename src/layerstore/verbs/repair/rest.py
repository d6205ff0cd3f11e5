"""What is no layer's: trees in ``layers/`` that nobody owns, images' side files, the quota. Layers: ``__init__``.

An image's side file, under the lock of ``images/``; none of it is journaled, for the row says all of the time what the
file must be, and a crash after each step leaves

1. ``repair.image.keep``: the damaged file has a name in ``quarantine/``   – as it was, and evidence
2. ``repair.image.write``: the new one beside it, ``.<id>.new``            – the same; recovery removes the new one
3. ``repair.image.sync``: one syncfs; only now may it be seen              – the same
4. ``repair.image.rename``: the new one takes its place                    – damaged or good
5. ``repair.image.settle``: the second syncfs                              – good

A tree that nobody owns moves to ``quarantine/`` by one rename, with one syncfs after the last.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from layerstore.errors import DamagedError, HostError
from layerstore.formats import records
from layerstore.lifecycle import catalog
from layerstore.lifecycle.states import State
from layerstore.model import Image
from layerstore.opening.handle import Handle
from layerstore.recovery import moving
from layerstore.system import flock, fs
from layerstore.system.fs import host_error
from layerstore.verbs import quota
from layerstore.verbs.check import structure
from layerstore.verbs.repair import promises
from layerstore.verbs.repair.plan import Do, Known, Step, plan
from layerstore.verbs.repair.report import RepairOptions
from layerstore.verbs.repair.supply import Source

__all__ = ["Done", "rest", "tried"]


@dataclass(frozen=True, slots=True)
class Done:
    """What a repair comes to, to be added to: as in its report."""

    steps: list[Step]
    mended: list[str]
    evidence: list[str]
    failed: dict[str, str]


def rest(handle: Handle, source: Source | None, done: Done, options: RepairOptions) -> None:
    """Put right what is no layer's. Durability: on disk when it returns; each by itself, as at the top of this module."""
    tried(done, "layers", lambda: _ownerless(handle, done, options))
    tried(done, quota.NAME, lambda: done.steps.extend(plan(structure.quota_file(handle), Known())))
    tried(done, "images", lambda: _images(handle, source, done, dry_run=options.dry_run))


def _images(handle: Handle, source: Source | None, done: Done, *, dry_run: bool) -> None:
    with handle.read() as view:
        images = list(catalog.images(view))
    for image in images:
        tried(done, image.id, partial(_image, handle, image, source, done, dry_run=dry_run))


def _ownerless(handle: Handle, done: Done, options: RepairOptions) -> None:
    before = len(done.evidence)
    for finding in structure.ownerless(handle):
        is_layer = not options.set_aside and _is_layer(handle, finding.subject.split("/", 1)[1])
        (step,) = plan([finding], Known(is_layer=is_layer))
        done.steps.append(step)
        if step.do is Do.SET_ASIDE and not options.dry_run:
            tried(done, finding.subject, partial(_set_aside, handle, finding.subject, done.evidence))
    if len(done.evidence) > before:
        handle.sync(handle.dirs["layers"], point="repair.aside.sync")


def _is_layer(handle: Handle, name: str) -> bool:
    """Whether the tree there says of itself, whole, that it is the layer *name*: then its row is what is lost, perhaps."""
    try:
        with fs.open_dir(name, handle.dirs["layers"]) as fd:
            side = records.read(fs.read_file(fd, records.LAYER_FILE), "the side file 'layer'")
            return side.get("layer_id") == name and side.get("txid") == fs.read_txid(fd)
    except (FileNotFoundError, NotADirectoryError, DamagedError):
        return False


def _set_aside(handle: Handle, path: str, evidence: list[str]) -> None:
    evidence.append(moving.set_aside(handle, *path.split("/", 1)))


def _image(handle: Handle, image: Image, source: Source | None, done: Done, *, dry_run: bool) -> None:
    findings = [each for each in structure.image(handle, image) if each.code == "image-file-damaged"]
    if not findings:
        return
    promise = promises.of(handle, image, source)
    parts = {} if promise is None else {"image": promise[0]}
    done.steps.extend(plan(findings, Known(parts=parts)))
    if promise is None or dry_run:
        return
    content = records.image_file(image.id, promise[1])
    _replace(handle, image, content, done.evidence)
    done.mended.append(image.id)


def tried(done: Done, subject: str, act: Callable[[], object]) -> None:
    """If this machine does not let us, that is told, and gone on: to raise it would say that nothing happened."""
    try:
        act()
    except HostError as error:
        done.failed[subject] = str(error)
    except OSError as error:
        done.failed[subject] = str(host_error(error, f"repairing {subject}"))


def _replace(handle: Handle, image: Image, content: bytes, evidence: list[str]) -> None:
    directory, aside = handle.dirs["images"], f".{image.id}.new"
    with flock.locked_dir(directory):
        with handle.read() as view:
            row = view.get("images", image.id)
        if row is None or row["state"] != State.COMMITTED or row["manifest_digest"] != image.manifest_digest:
            return                       # deleted meanwhile
        if fs.read_file(directory, image.id) == content:
            return                       # somebody was quicker
        evidence += _keep(handle, image.id)
        fs.unlink(directory, aside, point="repair.clear.unlink")   # what another repair left
        fs.write_new(directory, aside, content, point="repair.image.write")
        handle.sync(directory, point="repair.image.sync")
        fs.put_in_place(directory, aside, directory, image.id, point="repair.image.rename")
        handle.sync(directory, point="repair.image.settle")


def _keep(handle: Handle, image_id: str) -> list[str]:
    """Give what is there a name in ``quarantine/``: its path there, if there is anything."""
    directory, quarantine, number = handle.dirs["images"], handle.dirs["quarantine"], 0
    while True:
        target = f"images-{image_id}-{number}"
        try:
            if stat.S_ISDIR(os.stat(image_id, dir_fd=directory, follow_symlinks=False).st_mode):
                fs.move(directory, image_id, quarantine, target, point="repair.image.keep")
            else:
                fs.keep_as(directory, image_id, quarantine, target, point="repair.image.keep")
        except FileNotFoundError:
            return []
        except FileExistsError:
            number += 1
        else:
            return [f"quarantine/{target}"]
