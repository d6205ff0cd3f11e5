"""One pid namespace at a time: LMDB's reader table is keyed by pid, and two namespaces may use the same pids.

Two processes that look alike to LMDB would clear each other's reader slots, and a reader whose slot was cleared may
see its pages reused: silently wrong reads. So the file ``pidns`` is locked shared by every opener and names the
namespace of the first; an opener from another one is refused. The lock dies with its holders; an opener that gets
it exclusively is the first, and writes its own.
"""

from __future__ import annotations

import fcntl
import os
import time
import weakref

from layerjournal.effects import Descriptor
from layerjournal.errors import BusyError, PidNamespaceError

PATIENCE_SECONDS = 5.0
_MAX_BYTES = 256


class Membership(Descriptor):
    """The shared lock, held until ``close``. A forked child gives its inherited copy up at once."""

    def __init__(self, path: str) -> None:
        super().__init__(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW)
        _members.add(self)


_members: weakref.WeakSet[Membership] = weakref.WeakSet()


def _after_fork_in_child() -> None:
    for member in list(_members):
        member.close()   # closing a copy does not unlock; keeping it would outlive the parent


os.register_at_fork(after_in_child=_after_fork_in_child)


def current() -> str:
    """This boot and pid namespace."""
    with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
        boot = file.read().strip()
    return f"{boot} {os.stat('/proc/self/ns/pid').st_ino}"


def enter(path: str) -> Membership:
    """Lock the file at *path*. PidNamespaceError if another namespace is in; BusyError if it stays locked."""
    member = Membership(path)
    fd = member.fd
    me = current().encode()
    deadline = time.monotonic() + PATIENCE_SECONDS
    try:
        while True:
            if _try(fd, fcntl.LOCK_EX):
                if os.pread(fd, _MAX_BYTES, 0) != me:
                    os.pwrite(fd, me, 0)
                    os.ftruncate(fd, len(me))
                fcntl.flock(fd, fcntl.LOCK_SH)   # not atomic: another may write between; so look again
            elif not _try(fd, fcntl.LOCK_SH):
                _wait(deadline)
                continue
            found = os.pread(fd, _MAX_BYTES, 0)
            if found == me:
                return member
            if found:
                raise PidNamespaceError(
                    f"a process of another pid namespace has the journal open ({found.decode(errors='replace')}; "
                    f"this one is {me.decode()})",
                )
            fcntl.flock(fd, fcntl.LOCK_UN)
            _wait(deadline)
    except BaseException:
        member.close()
        raise


def _try(fd: int, mode: int) -> bool:
    try:
        fcntl.flock(fd, mode | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _wait(deadline: float) -> None:
    if time.monotonic() > deadline:
        raise BusyError("the journal's namespace file stays locked", hint="find out who holds the file 'pidns'")
    time.sleep(0.005)
