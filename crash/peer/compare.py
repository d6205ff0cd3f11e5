"""One layer imported on another, killed before each of its changes, in two stores; what each is worth afterwards."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field

from crash import content
from crash.content import Content
from crash.peer.subjects import CommandError, ContainersStorage, Layerstore, Look, Subject
from crash.peer.supervise import run
from crash.workloads import BASE, ONE
from layerstore.testing import differences, read_tree


@dataclass(slots=True)
class Point:
    """A kill before one change, and what came of it. Left-overs: paths that belong to nothing that is listed.

    ``lost``: what was there before the import and is not any more; whether the parent mounts then is in ``detail``.
    ``outcome``: ``committed``, ``rolled back``, ``torn`` (listed, and not whole; or the parent damaged), ``unusable``
    (listing fails). ``left`` after the next open, ``left_after`` after the same import once more, ``left_repaired``
    after the repair that its manual has. ``again``: whether that import succeeded, or said that the layer is there.
    """

    subject: str
    number: int
    change: str
    outcome: str = ""
    detail: list[str] = field(default_factory=list)
    left: list[str] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    again: bool = False
    left_after: list[str] = field(default_factory=list)
    left_repaired: list[str] = field(default_factory=list)


def made(work: str, layer: Content = ONE) -> list[Subject]:
    """The subjects, with the tars of the two layers written into *work*."""
    os.makedirs(work, exist_ok=True)
    tars = {"parent": os.path.join(work, "parent.tar"), "layer": os.path.join(work, "layer.tar")}
    for name, what in (("parent", BASE), ("layer", layer)):
        with open(tars[name], "wb") as file:
            file.write(what.tar)
    return [ContainersStorage(tars, layer), Layerstore(tars, layer)]


def compare(subject: Subject, work: str, *, every: int = 1) -> Iterator[Point]:
    """Kill the import before each *every*-th of its changes."""
    start, root = (os.path.join(work, f"{subject.name}-{part}") for part in ("start", "store"))
    os.makedirs(start)
    subject.prepare(start)
    _fresh(start, root)
    undisturbed = run(subject.load(root), work, env=subject.environment())
    if undisturbed.status != 0 or subject.layer_id not in subject.look(root).listed:
        raise AssertionError(f"{subject.name} fails without any kill: {undisturbed.stderr!r}")
    for number in range(1, len(undisturbed.changes) + 1, every):
        _fresh(start, root)
        ended = run(subject.load(root), work, kill_before=number, env=subject.environment())
        point = Point(subject.name, number, _plain(ended.changes[-1], root))
        judge(subject, root, paths(start), point)
        yield point
    for path in (start, root):
        shutil.rmtree(path)


def judge(subject: Subject, root: str, before: set[str], point: Point) -> None:
    """Write into *point* what the store at *root* is worth. *before*: the paths before the import was begun."""
    try:
        look = subject.look(root)
    except CommandError as error:
        point.outcome, point.detail = "unusable", [str(error)]
        return
    listed = look.listed
    committed = subject.layer_id in listed
    trees = {subject.layer_id: subject.layer, next(iter(listed - {subject.layer_id}), ""): BASE}
    for layer_id in listed:
        point.detail += [f"{layer_id[:12]}: {line}" for line in _wrong(subject.tree(root, layer_id), trees[layer_id])]
    if len(listed - {subject.layer_id}) != 1:
        point.detail.append("the parent is gone")
    point.outcome = "torn" if point.detail else "committed" if committed else "rolled back"
    point.kept = [_plain(path, root) for path in look.kept]
    point.left = _left(root, before, look)
    point.lost = sorted(_plain(path, root) for path in before - paths(root))
    if point.lost:
        _mount(subject, root, listed - {subject.layer_id}, point)
    try:
        subject.call(subject.load(root))
        point.again = True
    except CommandError as error:
        point.again = committed and "already in use" in str(error)
        point.detail += [] if point.again else [str(error)]
    point.left_after = _left(root, before, subject.look(root))
    subject.repair(root)
    point.left_repaired = _left(root, before, subject.look(root))


def _mount(subject: Subject, root: str, layers: set[str], point: Point) -> None:
    try:
        for layer_id in layers:
            subject.mount(root, layer_id)
        point.detail.append("the parent mounts all the same")
    except CommandError as error:
        point.outcome = "torn"
        point.detail.append(f"the parent does not mount any more: {error}")


def _wrong(tree: str, wanted: Content) -> list[str]:
    try:
        return differences(content.TREES[wanted.diff_id], read_tree(tree))[:3]
    except FileNotFoundError:
        return ["no tree"]


def _left(root: str, before: set[str], look: Look) -> list[str]:
    """What nothing knows of, without what lies in a directory that nothing knows of."""
    strange = {path for path in paths(root) - before if not look.knows(path)}
    return sorted(_plain(path, root) for path in strange if os.path.dirname(path) not in strange)


def paths(root: str) -> set[str]:
    """Everything beneath *root*, relative."""
    return {
        os.path.relpath(os.path.join(at, name), root)
        for at, directories, files in os.walk(root) for name in (*directories, *files)
    }


def _fresh(start: str, root: str) -> None:
    shutil.rmtree(root, ignore_errors=True)
    subprocess.run(["cp", "-a", "--", start, root], check=True)


def _plain(text: str, root: str) -> str:
    """Without the store's place and random names."""
    text = text.replace(root, "ROOT").replace("c" * 64, "<layer>")
    text = re.sub(r"[0-9a-f]{64}", "<id>", re.sub(r"(?<![0-9a-f])[0-9a-f]{32}(?![0-9a-f])", "<txid>", text))
    return re.sub(r"(?<=/l/)[A-Z0-9]{26}", "<link>", re.sub(r"\d{6,}", "*", text))
