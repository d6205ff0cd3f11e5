"""One pid namespace at a time: LMDB's reader table is keyed by pid, and two namespaces may use the same pids.

Two processes that look alike to LMDB would clear each other's reader slots, and a reader whose slot was cleared may
see its pages reused: silently wrong reads. So the file ``pidns`` is locked shared by every opener and names the
namespace of the first; an opener from another one is refused. The lock dies with its holders; an opener that gets
it exclusively is the first, and writes its own. Below the name stands a note about the data file (``note``), which is
read on entering, and written while one is in and by the last who leaves.
"""

from __future__ import annotations

import fcntl
import os
import time
import weakref
from contextlib import suppress

from layerjournal import note
from layerjournal.effects import Descriptor
from layerjournal.errors import BusyError, PidNamespaceError

PATIENCE_SECONDS = 5.0
_BYTES = 256   # of the file, padded: so it never needs to be cut


class Membership(Descriptor):
    """The shared lock, held until ``close``. A forked child gives its inherited copy up at once.

    ``vouched``: the note says that the data file need not be looked at.
    """

    vouched = False

    def __init__(self, path: str, data: str, flags: int = 0) -> None:
        super().__init__(path, os.O_RDWR | os.O_NOFOLLOW | flags)
        self._path, self._data = path, data
        _members.add(self)

    def using(self) -> None:
        """The data file is sound, and in use from now on. What cannot be noted is looked at again, no more."""
        with suppress(OSError):
            name, text = _read(self.fd)
            if text != (wanted := note.in_use(self._data)):
                _write(self.fd, name, wanted)

    def leave(self) -> None:
        """Close; the last says how the data file was left.

        By a descriptor that does not outlive an interrupt: an exclusive lock that is left behind would keep others out.
        """
        self.close()
        with suppress(OSError), Membership(self._path, self._data) as fd:
            if _try(fd, fcntl.LOCK_EX):
                name, text = _read(fd)
                if text == note.in_use(self._data):
                    _write(fd, name, note.left(self._data))


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


def enter(path: str, data: str) -> Membership:
    """Lock the file at *path*, beside the data file *data*.

    PidNamespaceError if another namespace is in; BusyError if it stays locked.
    """
    member = Membership(path, data, os.O_CREAT)
    fd = member.fd
    me = current()
    deadline = time.monotonic() + PATIENCE_SECONDS
    try:
        while True:
            if _try(fd, fcntl.LOCK_EX):
                name, text = _read(fd)
                if name != me:
                    _write(fd, me, text if _boot(name) == _boot(me) else "")
                fcntl.flock(fd, fcntl.LOCK_SH)   # not atomic: another may write between; so look again
            elif not _try(fd, fcntl.LOCK_SH):
                _wait(deadline)
                continue
            found, text = _read(fd)
            if found == me:
                member.vouched = note.vouches(text, data)
                return member
            if found:
                raise PidNamespaceError(
                    f"a process of another pid namespace has the journal open ({found}; this one is {me})",
                )
            fcntl.flock(fd, fcntl.LOCK_UN)
            _wait(deadline)
    except BaseException:
        member.close()
        raise


def vouched_for(path: str, data: str) -> bool:
    """What ``Membership.vouched`` says, for who may not write *path*, and so is no member."""
    try:
        with Descriptor(path, os.O_RDONLY | os.O_NOFOLLOW) as fd:
            name, text = _read(fd)
    except OSError:
        return False
    return _boot(name) == _boot(current()) and note.vouches(text, data)


def _read(fd: int) -> tuple[str, str]:
    """Name and note."""
    name, _, text = os.pread(fd, _BYTES, 0).decode(errors="replace").partition("\n")
    return name.strip(), text.strip()


def _write(fd: int, name: str, text: str) -> None:
    os.pwrite(fd, f"{name}\n{text}".ljust(_BYTES - 1).encode() + b"\n", 0)


def _boot(name: str) -> str:
    return name.partition(" ")[0]


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
