"""Removing something as the owner of this user's subordinate ids: in a user namespace that maps them.

What a container engine unpacked in its user namespace belongs to ids of /etc/subuid and /etc/subgid, and outside of
that namespace an ordinary user may not even remove it. newuidmap and newgidmap (package uidmap) make such a namespace for
whoever has ranges there. It is rm(1) that removes, not a child forked from here: the program that embeds this may have
threads, and fork handlers that start threads (OpenTelemetry's do), and a process with threads gets no user namespace.
"""

from __future__ import annotations

import os
import pwd
from contextlib import suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import subprocess

__all__ = ["SubidsError", "ranges", "remove_as_subids"]

_MOST_RANGES = 339                       # the kernel takes 340 (user_namespaces(7)); one is the user itself
_MOST_SAID = 500                         # characters: rm has a line for each file
_WHEN_MAPPED = 'echo ready && read -r go && exec "$@"'   # only what is begun under user 0 has the namespace's privileges


class SubidsError(Exception):
    """There is no such namespace to be had; the text says why."""


def ranges(path: str) -> list[tuple[int, int]]:
    """This user's (first ID, count) in */etc/subuid* or */etc/subgid* (subuid(5)); none if the file is not there."""
    uid = os.getuid()
    names = {str(uid)}
    with suppress(KeyError):
        names.add(pwd.getpwuid(uid).pw_name)
    found = []
    with suppress(FileNotFoundError), open(path, encoding="utf-8", errors="replace") as file:
        for line in file:
            name, _, rest = line.strip().partition(":")
            start, _, count = rest.partition(":")
            if name in names and start.isdecimal() and count.isdecimal() and int(count):
                found.append((int(start), int(count)))
    return found[:_MOST_RANGES]


def remove_as_subids(dir_fd: int, name: str) -> str:
    """Remove the tree *name* of a directory as user 0 of a user namespace of this user and its subordinate ids.

    Returns what rm(1) could not do, in its words; "" if it did all. SubidsError if there can be no such namespace.
    A rm whose parent is killed goes on: the tree is garbage, and whoever else removes it does not mind.
    """
    import subprocess  # noqa: PLC0415 - slow to import, and commands that read need it not

    mappers = [_mapper(kind) for kind in ("uid", "gid")]
    unshare, shell, remove = (_program(each) for each in ("unshare", "sh", "rm"))
    child = subprocess.Popen(  # noqa: S603
        [unshare, "--user", "--", shell, "-c", _WHEN_MAPPED, shell, remove, "-rf", "--one-file-system", "--", name],
        cwd=f"/proc/self/fd/{dir_fd}", env={**os.environ, "LC_ALL": "C"}, text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )
    with child:
        try:
            return _go(child, mappers)
        except BaseException:
            child.kill()
            raise


def _go(child: subprocess.Popen[str], mappers: list[list[str]]) -> str:
    assert child.stdout is not None
    if not child.stdout.readline():
        said = child.communicate()[1].strip()
        raise SubidsError(f"this system does not let an ordinary user make a user namespace ({said})")
    for command in mappers:
        _run(command, child.pid)
    said = child.communicate("go\n")[1]
    return said.strip()[:_MOST_SAID] or (f"rm ended with {child.returncode}" if child.returncode else "")


def _program(name: str) -> str:
    import shutil  # noqa: PLC0415 - as above

    found = shutil.which(name)
    if found is None:
        raise SubidsError(f"{name} is not installed")
    return found


def _mapper(kind: str) -> list[str]:
    """The command that writes a namespace's map, but for the pid. SubidsError if it or the ids are missing."""
    try:
        program = _program(f"new{kind}map")
    except SubidsError as error:
        raise SubidsError(f"{error} (package uidmap)") from None
    found = ranges(f"/etc/sub{kind}")
    if not found:
        raise SubidsError(f"this user has no range in /etc/sub{kind}")
    command, inside = [program, "", "0", str(os.getuid() if kind == "uid" else os.getgid()), "1"], 1
    for start, count in found:
        command += [str(inside), str(start), str(count)]
        inside += count
    return command


def _run(command: list[str], pid: int) -> None:
    import subprocess  # noqa: PLC0415 - as above

    command[1] = str(pid)
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)  # noqa: S603
    if done.returncode:
        raise SubidsError(f"{os.path.basename(command[0])} failed: {done.stderr.strip()}")
