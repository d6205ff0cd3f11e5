"""Any program, its threads and child processes too, stopped before its n-th change to the disk and killed whole.

strace counts calls per thread; a program in Go moves between threads, and unpacks in a child process. Here the kernel
asks a supervisor before each mutating call (seccomp user notification), so one count runs over the whole tree of
processes, and the kill takes all of it at once: the program is the first process of a pid namespace of its own, with
private mounts. Nothing of it is changed but for that. Needs root, and x86-64 for the numbers below.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import platform
import select
import signal
import socket
import stat
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

_CALLS = {   # name: (x86-64 number, argument that is a path or -1, argument that is a descriptor or -1)
    "write": (1, -1, 0), "open": (2, 0, -1), "pwrite64": (18, -1, 0), "writev": (20, -1, 0), "sendfile": (40, -1, 0),
    "fsync": (74, -1, 0), "fdatasync": (75, -1, 0), "truncate": (76, 0, -1), "ftruncate": (77, -1, 0),
    "rename": (82, 1, -1), "mkdir": (83, 0, -1), "rmdir": (84, 0, -1), "creat": (85, 0, -1), "link": (86, 1, -1),
    "unlink": (87, 0, -1), "symlink": (88, 1, -1), "chmod": (90, 0, -1), "fchmod": (91, -1, 0), "chown": (92, 0, -1),
    "fchown": (93, -1, 0), "lchown": (94, 0, -1), "mknod": (133, 0, -1), "pivot_root": (155, 1, -1),
    "mount": (165, 1, -1), "umount2": (166, 0, -1), "setxattr": (188, 0, -1), "lsetxattr": (189, 0, -1),
    "fsetxattr": (190, -1, 0), "openat": (257, 1, -1), "mkdirat": (258, 1, -1), "mknodat": (259, 1, -1),
    "fchownat": (260, 1, -1), "unlinkat": (263, 1, -1), "renameat": (264, 3, -1), "linkat": (265, 3, -1),
    "symlinkat": (266, 2, -1), "fchmodat": (268, 1, -1), "utimensat": (280, 1, 0), "fallocate": (285, -1, 0),
    "pwritev": (296, -1, 0), "syncfs": (306, -1, 0), "renameat2": (316, 3, -1), "copy_file_range": (326, -1, 2),
    "pwritev2": (328, -1, 0), "openat2": (437, 1, -1),
}
_BY_NUMBER = {number: (name, path, descriptor) for name, (number, path, descriptor) in _CALLS.items()}
_FLAGS_AT = {"open": 1, "openat": 2}   # these only if they create or truncate
_CHANGING = os.O_CREAT | os.O_TRUNC | (os.O_TMPFILE & ~os.O_DIRECTORY)
_NOTIFICATION = struct.Struct("=QIIiIQ6Q")
_RECEIVE, _SEND, _CONTINUE = 0xC0502100, 0xC0182101, 1
_CLONE_NEWNS, _CLONE_NEWPID, _MS_PRIVATE_ALL = 0x20000, 0x20000000, 0x44000
_SECCOMP, _SET_MODE_FILTER, _NEW_LISTENER = 317, 1, 8
_libc = ctypes.CDLL(None, use_errno=True)


@dataclass
class Ended:
    """How a supervised program ended, and the changes that it made or was about to make, in order."""

    status: int = 0
    changes: list[str] = field(default_factory=list)
    stdout: bytes = b""
    stderr: bytes = b""


def run(
    command: Sequence[str], scratch: str, *, kill_before: int | None = None, env: Mapping[str, str] | None = None,
) -> Ended:
    """Run *command*; with *kill_before*, kill all of it before its n-th change (from 1) to the file system of *scratch*.

    AssertionError if it was to be killed and got to its end.
    """
    if platform.machine() != "x86_64":
        raise RuntimeError("the numbers of system calls here are those of x86-64")
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    out, err = (os.memfd_create(name) for name in ("stdout", "stderr"))
    keeper = os.fork()
    if keeper == 0:
        _keep(command, theirs, out, err, env)
    theirs.close()
    listener, init = _hear(ours)
    ended = Ended()
    try:
        _listen(listener, ended, os.stat(scratch).st_dev, init, kill_before)
    finally:
        os.close(listener)
        ours.close()
    ended.status = os.waitstatus_to_exitcode(os.waitpid(keeper, 0)[1])
    ended.stdout, ended.stderr = _contents(out), _contents(err)
    if kill_before is not None and ended.status != 128 + signal.SIGKILL:
        raise AssertionError(f"not killed before change {kill_before}: it ended with {ended.status}: {ended.stderr!r}")
    return ended


def _hear(ours: socket.socket) -> tuple[int, int]:
    """The listener's descriptor, from the program's process before its exec, and that process's id, from its parent."""
    listener = init = -1
    while listener < 0 or init < 0:
        text, fds, _, _ = socket.recv_fds(ours, 32, 1)
        if not text:
            raise RuntimeError("the supervised program could not be started (root is needed)")
        if fds:
            listener = fds[0]
        else:
            init = int(text)
    return listener, init


def _contents(fd: int) -> bytes:
    with os.fdopen(fd, "rb") as file:
        file.seek(0)
        return file.read()


def _listen(listener: int, ended: Ended, device: int, init: int, kill_before: int | None) -> None:
    poll = select.poll()
    poll.register(listener, select.POLLIN)
    while True:
        events = poll.poll()[0][1]
        if not events & select.POLLIN:
            return   # all processes are gone
        buffer = bytearray(_NOTIFICATION.size)
        try:
            fcntl.ioctl(listener, _RECEIVE, buffer)
        except OSError:
            continue   # the caller died meanwhile
        number, pid, _, call, _, _, *arguments = _NOTIFICATION.unpack(buffer)
        change = _change(pid, call, arguments, device)
        if change is not None:
            ended.changes.append(change)
            if len(ended.changes) == kill_before:
                os.kill(init, signal.SIGKILL)   # the first of its pid namespace: all others die with it
                kill_before = None
                continue
        try:
            fcntl.ioctl(listener, _SEND, struct.pack("=QqiI", number, 0, 0, _CONTINUE))
        except OSError:
            continue


def _change(pid: int, number: int, arguments: list[int], device: int) -> str | None:
    """What the call is about to change, in words; None if it does not concern the file system of the store."""
    name, path_at, descriptor_at = _BY_NUMBER[number]
    if name == "openat2" and not int.from_bytes(_memory(pid, arguments[2], 8), "little") & _CHANGING:
        return None   # its flags lie in memory, where the filter cannot look
    link = f"/proc/{pid}/fd/{ctypes.c_int(arguments[descriptor_at]).value}"
    try:
        if path_at >= 0 and arguments[path_at]:
            return f"{name} {_text(pid, arguments[path_at])}"
        status = os.stat(link)
        if status.st_dev != device or not (stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode)):
            return None
        return f"{name} {os.readlink(link)}"
    except OSError:   # it died meanwhile, or the path crosses a page that is not there: a change all the same
        return name if path_at >= 0 else None


def _text(pid: int, address: int) -> str:
    return os.fsdecode(_memory(pid, address, min(4096, 4096 - address % 4096)).split(b"\0")[0])


def _memory(pid: int, address: int, length: int) -> bytes:
    with open(f"/proc/{pid}/mem", "rb", buffering=0) as memory:
        memory.seek(address)
        return memory.read(length) or b""


def _keep(command: Sequence[str], up: socket.socket, out: int, err: int, env: Mapping[str, str] | None) -> None:
    """In a forked child: the program as the first process of its own pid namespace; exit as it did."""
    status = 1
    try:
        if _libc.unshare(_CLONE_NEWNS | _CLONE_NEWPID) != 0:
            raise OSError(ctypes.get_errno(), "unshare")
        if _libc.mount(b"none", b"/", None, ctypes.c_ulong(_MS_PRIVATE_ALL), None) != 0:
            raise OSError(ctypes.get_errno(), "mount")
        init = os.fork()
        if init == 0:
            os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
            os.dup2(out, 1)
            os.dup2(err, 2)
            socket.send_fds(up, [b"x"], [_filtered()])
            os.execvpe(command[0], list(command), dict(env) if env is not None else dict(os.environ))
        up.send(str(init).encode())
        status = os.waitstatus_to_exitcode(os.waitpid(init, 0)[1])
    except BaseException as error:
        os.write(err, repr(error).encode())
    finally:
        os._exit(status if status >= 0 else 128 - status)


def _filtered() -> int:
    """Install the filter on this process and what it becomes; the descriptor on which the kernel asks."""
    plain = [number for name, (number, _, _) in _CALLS.items() if name not in _FLAGS_AT]
    opens = [(_CALLS[name][0], 16 + 8 * at) for name, at in _FLAGS_AT.items()]
    code: list[tuple[int, int, int, int]] = [(0x20, 0, 0, 0)]   # load the call's number
    end = 1 + len(plain) + len(opens) + 1 + 2 * len(opens)      # where "ask" stands; "allow" is next
    code += [(0x15, end - (1 + i) - 1, 0, number) for i, number in enumerate(plain)]
    for i, (number, _) in enumerate(opens):
        at = 1 + len(plain) + i
        code.append((0x15, end - 2 * len(opens) + 2 * i - at - 1, 0, number))
    code.append((0x06, 0, 0, 0x7FFF0000))
    for i, (_, offset) in enumerate(opens):
        at = end - 2 * len(opens) + 2 * i + 1
        code += [(0x20, 0, 0, offset), (0x45, end - at - 1, end - at, _CHANGING)]
    code += [(0x06, 0, 0, 0x7FC00000), (0x06, 0, 0, 0x7FFF0000)]
    program = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *each) for each in code))
    header = ctypes.create_string_buffer(struct.pack("@HP", len(code), ctypes.addressof(program)))
    listener = _libc.syscall(_SECCOMP, _SET_MODE_FILTER, ctypes.c_ulong(_NEW_LISTENER), header)
    if listener < 0:
        raise OSError(ctypes.get_errno(), "seccomp")
    return int(listener)
