"""Doing something as the owner of this user's subordinate ids: in a child, in a user namespace that maps them.

What a container engine unpacked in its user namespace belongs to ids of /etc/subuid and /etc/subgid, and outside of
that namespace an ordinary user may not even remove it. newuidmap and newgidmap (package uidmap) make such a namespace for
whoever has ranges there. Forked, not spawned: the program that embeds this may not be a Python that can be started anew.
The child does system calls only. What is done in it is the caller's; nothing else belongs here.
"""

from __future__ import annotations

import errno
import os
import pwd
import signal
import warnings
from collections.abc import Callable
from contextlib import suppress
from typing import NoReturn

from layerstore import kernel
from layerstore.descriptors import Descriptor

__all__ = ["SubidsError", "as_subids", "ranges"]

_READY, _GO = b"r", b"g"
_MOST_RANGES = 339                       # the kernel takes 340 (user_namespaces(7)); one is the user itself


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


def as_subids(work: Callable[[], None]) -> None:
    """Run *work* in a child that is user 0 of a user namespace of this user and its subordinate ids.

    SubidsError if there can be none; OSError, of the same number, if *work* raises one.
    """
    commands = [_mapper(kind) for kind in ("uid", "gid")]
    with _Pipe() as up, _Pipe() as down:
        with warnings.catch_warnings():  # of Python 3.12 and newer: other threads may hold locks that the child could want
            warnings.simplefilter("ignore", DeprecationWarning)
            pid = os.fork()
        if not pid:
            _child(work, up, down)
        try:
            up.write.close()
            down.read.close()
            if os.read(up.read.fd, 1) != _READY:
                raise SubidsError("this system does not let an ordinary user make a user namespace")
            for command in commands:
                _run(command, pid)
            os.write(down.write.fd, _GO)
            failed = os.read(up.read.fd, 64)
        except BaseException:
            os.kill(pid, signal.SIGKILL)
            raise
        finally:
            status = os.waitpid(pid, 0)[1]
    if failed or status:
        number = int(failed or errno.ECHILD)
        raise OSError(number, os.strerror(number))


class _Pipe:
    def __init__(self) -> None:
        read, write = os.pipe()
        self.read, self.write = Descriptor.duplicate(read), Descriptor.duplicate(write)
        os.close(read)
        os.close(write)

    def __enter__(self) -> _Pipe:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.read.close()
        self.write.close()


def _child(work: Callable[[], None], up: _Pipe, down: _Pipe) -> NoReturn:
    status = 1
    try:
        up.read.close()
        down.write.close()
        kernel.unshare(kernel.CLONE_NEWUSER)
        os.write(up.write.fd, _READY)
        if os.read(down.read.fd, 1) == _GO:
            kernel.die_with_parent()
            try:
                work()
            except OSError as error:
                os.write(up.write.fd, str(error.errno).encode())
            else:
                status = 0
    except BaseException:  # noqa: S110, BLE001 - nobody may come back from here into the parent's code
        pass
    finally:
        os._exit(status)


def _mapper(kind: str) -> list[str]:
    """The command that writes a namespace's map, but for the pid. SubidsError if it or the ids are missing."""
    import shutil  # noqa: PLC0415 - slow to import, and commands that read need it not

    program = shutil.which(f"new{kind}map")
    if program is None:
        raise SubidsError(f"new{kind}map is not installed (package uidmap)")
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
