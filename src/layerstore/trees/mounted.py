"""What is mounted: the table of a mount namespace, what is at a path, which overlays have a given directory for a layer.

Of other mount namespaces only those are seen of which a process may be looked at (ptrace(2), "access mode": root, and
who runs it); each is looked at once. Reads only: mounting is ``overlay``'s.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass

from layerstore.system.fs import host_error

__all__ = ["Mounted", "is_overlay_mounted", "mounts_at", "overlay_targets", "overlays_over", "table", "topmost"]

_LOWERS = (b"lowerdir", b"lowerdir+", b"datadir+")
_PLAIN = re.compile(rb"[^\s\\#,]+")        # of a path: what stands in the table as it is
_PART = re.compile(rb"((?:[^:\\]|\\.)+)", re.DOTALL)   # of a lowerdir: what is between colons that are not escaped


@dataclass(frozen=True, slots=True)
class Mounted:
    """One line of the table (proc_pid_mountinfo(5)). ``device``: the file system; ``options``: its own, as they stand."""

    id: int
    parent: int
    device: bytes
    target: bytes
    fstype: str
    options: bytes


def table(process: str = "self", *, around: bytes = b"") -> Iterator[Mounted]:
    """The mounts that *process* sees; those at the path *around*, and maybe some others, if it is given. OSError."""
    with open(f"/proc/{process}/mountinfo", "rb") as file:
        lines = file.read().splitlines()
    plain = max(_PLAIN.findall(around), key=len, default=b"")   # to understand every line of thousands takes long
    for line in lines:
        if plain not in line:
            continue
        fields, _, rest = line.partition(b" - ")  # a field cannot hold a space: it is \040 there
        parts, own = fields.split(b" "), rest.split(b" ")
        yield Mounted(int(parts[0]), int(parts[1]), parts[2], _decoded(parts[4]), own[0].decode(), own[-1])


def _decoded(field: bytes) -> bytes:
    """Undo mountinfo's escapes: space, tab, newline, backslash, comma and # are three octal digits there."""
    return re.sub(rb"\\([0-3][0-7]{2})", lambda m: bytes([int(m[1], 8)]), field)


def is_overlay_mounted(target: str) -> bool:
    """Whether an overlay is mounted at *target* in this mount namespace, even if another mount covers it."""
    return any(each.fstype == "overlay" for each in mounts_at(target))


def overlay_targets() -> frozenset[str]:
    """Where overlays are mounted in this mount namespace, as absolute paths without symbolic links; covered ones, too."""
    return frozenset(os.fsdecode(each.target) for each in _here() if each.fstype == "overlay")


def mounts_at(target: str) -> list[Mounted]:
    """What is mounted at *target* in this mount namespace. HostError without /proc."""
    path = os.fsencode(os.path.realpath(target))
    return [each for each in _here(path) if each.target == path]


def topmost(mounts: Sequence[Mounted]) -> Mounted:
    """Of mounts at one place, the one on which no other sits: the table's order does not tell."""
    parents = {each.parent for each in mounts}
    return next((each for each in reversed(mounts) if each.id not in parents), mounts[-1])


def _here(around: bytes = b"") -> list[Mounted]:
    try:
        return list(table(around=around))
    except OSError as error:
        raise host_error(error, "reading /proc/self/mountinfo") from error


def overlays_over(directories: Collection[str]) -> list[str]:
    """Where overlays are mounted that have one of *directories* for a layer. HostError without /proc.

    Of another mount namespace the path is by way of a process in it, ``/proc/<pid>/root/…``, and only told of overlays
    that are not mounted here. A layer that the kernel names by a path that leads nowhere from here is not found.
    """
    if not directories:
        return []
    wanted, found = _Wanted(directories), []
    told = set()
    for each in _here():
        if each.fstype == "overlay" and wanted.has(each, ""):
            told.add(each.device)
            found.append(os.fsdecode(each.target))
    for process in _of_other_namespaces():
        with suppress(OSError):          # it ended
            for each in table(process):
                if each.fstype == "overlay" and each.device not in told and wanted.has(each, f"/proc/{process}/root"):
                    told.add(each.device)
                    found.append(f"/proc/{process}/root{os.fsdecode(each.target)}")
    return found


class _Wanted:
    """Directories, by their paths and by what they are: a layer may be named by a link or another mount of it."""

    def __init__(self, directories: Collection[str]) -> None:
        self._paths = {os.path.realpath(each) for each in directories}
        self._are: set[tuple[int, int]] = set()
        for each in self._paths:
            with suppress(OSError):
                status = os.stat(each)
                self._are.add((status.st_dev, status.st_ino))

    def has(self, mounted: Mounted, root: str) -> bool:
        """Whether an overlay has one of them, going by paths from *root*, or from here."""
        # containers/storage names layers relative to its directory when they are many: two above where it mounts
        home = os.path.dirname(os.path.dirname(os.fsdecode(mounted.target)))
        for lower in _lowers(mounted.options):
            path = os.path.join(home, os.fsdecode(lower))
            if any(self._is_one(each) for each in dict.fromkeys((root + path, path))):
                return True
        return False

    def _is_one(self, path: str) -> bool:
        if os.path.realpath(path) in self._paths:
            return True
        try:
            status = os.stat(path)
        except OSError:
            return False
        return (status.st_dev, status.st_ino) in self._are


def _lowers(options: bytes) -> Iterator[bytes]:
    for option in options.split(b","):   # one within a path is escaped
        key, _, value = option.partition(b"=")
        if key == b"lowerdir":
            yield from (re.sub(rb"\\(.)", rb"\1", each) for each in _PART.findall(_decoded(value)))
        elif key in _LOWERS:
            yield _decoded(value)


def _of_other_namespaces() -> Iterator[str]:
    """A process of each other mount namespace."""
    seen = set()
    with suppress(OSError):
        seen.add(_namespace("self"))
    for name in os.listdir("/proc"):
        if name.isdigit():
            with suppress(OSError):      # it ended, or is nobody's that we may look at
                namespace = _namespace(name)
                if namespace not in seen:
                    seen.add(namespace)
                    yield name


def _namespace(process: str) -> int:
    return os.stat(f"/proc/{process}/ns/mnt").st_ino
