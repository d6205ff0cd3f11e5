"""Hunting one mistake: plant it, try the ways until one notices, write down which and after how many states."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from typing import Any

from crash.sabotage.child import WRONG_COPY, WRONG_WAY
from crash.sabotage.table import HERE, ROOT, Sabotage, plant
from crash.sabotage.ways import Way

FOUND = os.path.join(HERE, "found.json")
SURVIVES, EQUIVALENT = "", "equivalent"
REMEMBERED_SECONDS = 300.0               # what is remembered takes seconds; more, where the mistake makes it hang


@dataclass(slots=True)
class Row:
    """What came of one mistake. ``caught_by`` is a rig, ``named test``, ``equivalent``, or empty: it survives.

    ``failed``: the ways that failed by themselves, before any that noticed. They have judged nothing.
    """

    name: str
    file: str
    was: str
    now: str
    caught_by: str = SURVIVES
    after_states: int = 0
    seconds: float = 0.0
    note: str = ""
    failed: list[str] = field(default_factory=list)


def remembered(path: str = FOUND) -> dict[str, dict[str, Any]]:
    """By name: what noticed it last time (``by``, ``again``: the child's arguments, ``after_states``, ``what``)."""
    if not os.path.exists(path):
        return {}
    with open(path, encoding="utf-8") as file:
        found: dict[str, dict[str, Any]] = json.load(file)
    return found


def hunt(
    sabotage: Sabotage, ways: Iterable[Way], *, first: dict[str, Any] | None = None,
) -> tuple[Row, dict[str, Any] | None]:
    """Try *first* (what is remembered), then *ways*; the row, and what to remember of it.

    Without *ways* it is tried twice, for a busy machine, and there is no hunt.
    """
    ways = tuple(ways)
    row = Row(sabotage.name, sabotage.file, sabotage.was, sabotage.now)
    begun = time.monotonic()
    notes: list[str] = []
    with tempfile.TemporaryDirectory(dir=scratch(), prefix="sabotage-") as directory:
        copy = os.path.join(directory, "product")
        path = plant(sabotage, copy)
        for way in _with_memory(first, ways):
            seen = attempt(way, copy, path, directory)
            if seen is None:
                notes.append(f"{way.name} did not end in {way.seconds:.0f} s")
            elif seen["failed"]:
                row.failed.append(way.name)
                notes.append(f"{way.name} failed by itself: {str(seen['failed'])[:300]}")
            elif seen["caught"]:
                row.caught_by, row.after_states = way.name, seen["states"]
                notes.append(str(seen["caught"]["what"])[:300])
                break
            elif first is not None and way.arguments == tuple(first["again"]):
                notes.append("no longer caught as remembered")
    if row.caught_by == SURVIVES and first is not None and not ways:
        notes.append(f"to hunt it anew: python -m crash.sabotage --learn --only {sabotage.name}")
    row.seconds, row.note = round(time.monotonic() - begun, 1), "; ".join(notes)
    if row.caught_by == SURVIVES:
        return row, None
    again = seen["caught"]["again"] or list(way.arguments) if seen else []
    what = str(seen["caught"]["what"])[:300] if seen else ""
    return row, {"by": row.caught_by, "after_states": row.after_states, "again": again, "what": what}


def _with_memory(first: dict[str, Any] | None, ways: tuple[Way, ...]) -> tuple[Way, ...]:
    if first is None:
        return ways
    memory = Way(first["by"], tuple(first["again"]), REMEMBERED_SECONDS)
    return (memory, *(ways or (memory,)))


def attempt(way: Way, copy: str, path: list[str], directory: str) -> dict[str, Any] | None:
    """Run one way against the copy. None if it did not end in time (which proves nothing on a busy machine)."""
    result, log = os.path.join(directory, "result.json"), os.path.join(directory, "log")
    if os.path.exists(result):
        os.unlink(result)
    work = os.path.join(directory, "work")
    os.makedirs(work, exist_ok=True)
    kind, *rest = way.arguments
    arguments = [kind, *rest, *(["--work", work] if kind == "rig" else ["--basetemp", os.path.join(work, "pytest")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path), "PYTHONDONTWRITEBYTECODE": "1"}
    with open(log, "wb") as out:
        child = subprocess.Popen(
            [sys.executable, "-m", "crash.sabotage.child", copy, result, *arguments],
            cwd=ROOT, env=environment, stdout=out, stderr=out, stdin=subprocess.DEVNULL,
        )
        ended = False
        try:
            ended = _wait(child, way.seconds)
        finally:
            if not ended:
                child.kill()
            status = child.wait()
            _end(directory)
    if not ended:
        return None
    if status == WRONG_COPY:
        raise AssertionError(f"the rigs would have run against the product itself, and not against {copy}")
    if status == WRONG_WAY:
        raise AssertionError(f"{way.name}: there is no such rig or test: {way.arguments}")
    if os.path.exists(result):
        with open(result, encoding="utf-8") as file:
            seen: dict[str, Any] = json.load(file)
            return seen
    with open(log, encoding="utf-8", errors="replace") as file:
        last = (file.read().strip().splitlines() or [f"status {status}"])[-1]
    return {"states": 0, "caught": None, "failed": f"it ended with {status}: {last}"}


def _wait(child: subprocess.Popen[bytes], seconds: float) -> bool:
    """Whether *child* has ended within *seconds*."""
    try:
        child.wait(seconds)
    except subprocess.TimeoutExpired:
        return False
    return True


def _end(directory: str) -> None:
    """What a way has started may outlive it, where the mistake makes processes hang. All of it has *directory*, which
    no other process knows, in its environment; and only what has it is ended.
    """
    mark = os.fsencode(directory) + b"/"
    for pid in filter(str.isdigit, os.listdir("/proc")):
        with suppress(OSError), open(f"/proc/{pid}/environ", "rb") as file:
            if mark in file.read():
                os.kill(int(pid), signal.SIGKILL)


def scratch() -> str | None:
    """Memory, where there is one to write to: most of the work is copying small trees."""
    return "/dev/shm" if os.access("/dev/shm", os.W_OK) else None


def as_json(rows: Iterable[Row]) -> dict[str, Any]:
    """The report's file."""
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True, check=False,
    )
    return {"commit": commit.stdout.strip(), "rows": [asdict(row) for row in rows]}
