"""Which barrier is needed? Each sync and durable commit of the product left out by name, alone and in pairs.

Leaving out means: in the recordings of the common workloads, and of the recovery of some of their crash states, the
syncs between the marks of that fault point have no effect (for a commit of LMDB: its fdatasync and the synchronous write
of its meta page). Only states that this makes possible are looked at. A barrier is *shown* to be needed by a state in
which the oracle finds a broken promise; what is not shown has a reason to stay (``reasons.py``), or should go.

    python -m crash.barriers [--pairs] [--states N] [--seed N] --json FILE [--page FILE]
"""

from __future__ import annotations

import argparse
import os
import re
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from itertools import combinations, islice
from typing import Any

from crash import beside, lost, repairing, workloads
from crash.barriers.reasons import REASONS, SELDOM
from crash.persistence.choose import Choice
from crash.persistence.explore import Scene, judge, order, recovery_scene, scene_of, scratch, spread
from crash.persistence.history import NEVER
from crash.persistence.recording import NothingRecordedError, Recorder
from crash.shim import stream
from crash.state import State
from crash.workloads import Images, Workload

# the second process of one passes no marks; others do what pull does, later, and a spool is never synced; after a loss of
# power nobody rebuilds from the snapshot of the last
SKIPPED = ("pair", "everything", "resume", "rebuild-from")
RECOVERIES = 6                      # crash states of each workload whose recovery is recorded, too
CREATING = "(making the journal's tables)"
PROBING = "(probing the file system)"


class MatrixError(AssertionError):
    """A row that says nothing: neither shown nor reasoned, both, or a name that no sync has."""


@dataclass
class Row:
    """``caught_by``: the workload, the state and what the oracle said of it; None if nothing was found."""

    leave_out: list[str]
    caught_by: str | None = None
    states: int = 0
    reason: str | None = None


def rows(options: argparse.Namespace) -> list[Row]:
    """The matrix, checked. MatrixError, with every row that is wrong."""
    with scratch("barriers-") as place:
        given = argparse.Namespace(**{**vars(options), "work": place})
        made = []
        for state in stream("crash.barriers", given):
            made.append(Row(**state.details))
            print(f"{made[-1].leave_out}: {made[-1].caught_by or 'not shown'} ({made[-1].states} states)", flush=True)
    found = reasoned(made, REASONS)
    if not options.only:
        unknown = REASONS.keys() - {name for row in found for name in row.leave_out}
        if unknown:
            raise MatrixError(f"reasons for what is not a barrier: {sorted(unknown)}")
    return found


def reasoned(made: Sequence[Row], reasons: dict[str, str]) -> list[Row]:
    """The rows with their reasons. A barrier alone is shown or has a reason, and never both."""
    wrong, result = [], []
    for row in made:
        known = [reasons[name] for name in row.leave_out if name in reasons]
        if row.caught_by is None and len(known) < len(row.leave_out):
            wrong.append(f"{row.leave_out}: neither shown by any of {row.states} states, nor reasoned")
        elif row.caught_by is not None and len(row.leave_out) == 1 and known and row.leave_out[0] not in SELDOM:
            wrong.append(f"{row.leave_out}: has a reason, and is shown to be needed by {row.caught_by}")
        result.append(replace(row, reason=None if row.caught_by else " ".join(dict.fromkeys(known))))
    if wrong:
        raise MatrixError("\n".join(wrong))
    return result


# -- in the process that has the shim loaded ----------------------------------------------------------------------


def preloaded(options: argparse.Namespace) -> Iterator[State]:
    scenes = list(recorded(options))
    names = sorted({name_of(scene, n) for scene in scenes for n in range(len(scene.history.syncs))} - {workloads.SETTLE})
    chosen = [n for n in names if n in options.only] if options.only else names
    missing = set(options.only or ()) - set(names)
    if missing:
        raise MatrixError(f"no sync has the name {sorted(missing)}")
    singles = []
    for row in _spread([[name] for name in chosen], scenes, options):
        singles.append(row)
        yield _line(row)
    if options.pairs:
        caught = {row.leave_out[0]: row for row in singles if row.caught_by}
        pairs = [list(pair) for pair in combinations(chosen, 2)]
        for one, two in pairs:     # what one of them allows, both allow
            shown = caught.get(one) or caught.get(two)
            if shown:
                yield _line(Row([one, two], f"as {shown.leave_out[0]} alone: {shown.caught_by}"))
        yield from map(_line, _spread([p for p in pairs if not caught.keys() & set(p)], scenes, options))


def recorded(options: argparse.Namespace) -> Iterator[Scene]:
    """A scene of the making of a store, of each workload, and of some recoveries."""
    images = Images(os.path.join(options.work, "images"))
    rebuilding = lost.telling(lost.build(images)) | lost.deleted(images)
    made = workloads.build(images) | repairing.build() | rebuilding | beside.build(images, options.work)
    creating = Workload("create", lambda _root, _ledger: None, made["pull"].prepare, lambda _store: None)
    for workload in (creating, *made.values()):
        if workload.name in SKIPPED:
            continue
        scene = scene_of(
            workload.name, lambda root, rec, w=workload: _do(w, root, rec), workload.again, options.work,
            mend=workload.mend, look=workload.look,
        )
        yield scene
        yield from islice(_recoveries(scene, options), RECOVERIES)


def _recoveries(scene: Scene, options: argparse.Namespace) -> Iterator[Scene]:
    """Of crash states of *scene* whose recovery has something to do."""
    for _, choice in order([scene], options.seed, draw=False):
        with suppress(NothingRecordedError):
            recovery = recovery_scene(scene, choice, options.work)
            recovery.ledger = lambda _inner, c=choice: scene.ledger(c)  # type: ignore[method-assign,misc]
            recovery.name = f"recovery of {scene.name} {choice}"
            yield recovery


def _do(workload: Workload, root: str, recorder: Recorder) -> None:
    workload.prepare(root, recorder.ledger)
    recorder.mark("run")
    workload.run(root, recorder.ledger)


def name_of(scene: Scene, number: int) -> str:
    """The barrier's name: its fault point; two kinds of sync have none."""
    sync = scene.history.syncs[number]
    return sync.point or (PROBING if sync.op == "syncfs" else CREATING)


def _spread(sets: Sequence[list[str]], scenes: Sequence[Scene], options: argparse.Namespace) -> Iterator[Row]:
    def share(index: int, workers: int) -> Iterator[State]:
        own = tempfile.mkdtemp(dir=options.work)
        for names in sets[index::workers]:
            yield _line(without(names, scenes, options, own))

    for state in spread(share, options.workers):
        yield Row(**state.details)


def without(names: Sequence[str], scenes: Sequence[Scene], options: argparse.Namespace, work: str) -> Row:
    """Leave these barriers out, until a state is found that breaks a promise, or there are no more."""
    row = Row(list(names))
    weaker = [each for each in (_weaken(scene, names) for scene in scenes) if each is not None]
    if not weaker:
        raise MatrixError(f"leaving out {names} changes nothing in any recording")
    weaker = [scene for scene in weaker if scene.chooser.cuts]     # else another barrier keeps all of it
    wanted = {scene.name: scene.history.durable() for scene in weaker}
    for scene, choice in order(weaker, options.seed, draw=True, wanted=lambda s, c: _new(s, c, wanted[s.name])):
        row.states += 1
        verdict = judge(scene, scene.image(choice), scene.ledger(choice), work)
        if verdict.violations:
            found = re.sub(rf"{re.escape(work)}/[^/]+/", "", verdict.violations[0])
            row.caught_by = f"{scene.name} {choice}: {found[:120]}"
            break
        if row.states == options.states:
            break
    return row


def _weaken(scene: Scene, names: Sequence[str]) -> Scene | None:
    """The scene without these barriers, cut where that makes a difference; None if none of them is in it."""
    ignored = {s for n, s in enumerate(scene.history.syncs) if name_of(scene, n) in names}
    if not ignored:
        return None
    weaker = replace(scene, ignore=lambda sync: sync in ignored)
    weaker.ledger = scene.ledger  # type: ignore[method-assign]
    lost = set()
    for usual, later in zip(scene.history.durable(), scene.history.durable(weaker.ignore), strict=True):
        lost.update(range(usual + 1, min(later, len(scene.history.calls)) + 1) if usual < NEVER else ())
    weaker.chooser.cuts = [cut for cut in weaker.chooser.cuts if cut in lost]    # where it makes a difference
    return weaker


def _new(scene: Scene, choice: Choice, usual: Sequence[int]) -> bool:
    """Whether something is lost, or torn, that the barriers would have kept."""
    persisted, torn = scene.chooser.persisted(choice)
    return any(
        at < choice.cut and (number not in persisted or number in torn)
        for number, at in enumerate(usual) if at < NEVER
    )


def _line(row: Row) -> State:
    details: dict[str, Any] = asdict(row)
    return State("barriers", "all", f"without {' and '.join(row.leave_out)}", "error", details=details)


__all__ = ["MatrixError", "Row", "name_of", "preloaded", "reasoned", "rows", "without"]
