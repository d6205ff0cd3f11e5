"""The program of a process that makes plain small files for the one that unpacks. Starts soon: it imports nothing of ours.

It is told in which open directories, by which names and with which attributes, and finds their content in memory that
both have. It answers with their digests. What it cannot make it takes away again and leaves to who asked: it judges
nothing. It ends when nobody is at the other end any more. Until then the lock of the tree is open here, too, so that
nobody removes a tree in which something may still be written.
"""

from __future__ import annotations

import array
import marshal
import mmap
import os
import sys
from _socket import CMSG_SPACE, MSG_CMSG_CLOEXEC, MSG_CTRUNC
from _socket import socket as Socket  # noqa: N812 - ``socket`` and ``hashlib`` are these, and cost half of the start

try:
    from _hashlib import openssl_sha256 as sha256
except ImportError:                      # a Python without OpenSSL has its own
    from hashlib import sha256

__all__ = ["MESSAGE", "MOST_DIRECTORIES", "READY", "Row", "make", "serve"]

READY = b"ready"                         # this and the next equal those of ``system.beside``
MESSAGE = 1 << 17                        # bytes of a request or an answer at most
MOST_DIRECTORIES = 200                   # of a request: the kernel passes 253 descriptors at once (SCM_MAX_FD)
_NEW_FILE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC

# which directory of the request; name; mode to be created with; bytes; time in ns; mode, uid and gid that it shall have
Row = tuple[int, bytes, int, int, int, tuple[int, int, int]]
Born = dict[int, tuple[int, int, int]]   # by the mode that a file is created with: mode, uid and gid that it has then


def serve(peer: Socket, memory: memoryview) -> None:
    """Answer until nobody asks any more."""
    room = CMSG_SPACE(MOST_DIRECTORIES * array.array("i").itemsize)
    born: Born = {}
    peer.send(READY)
    while True:
        request, passed, flags, _ = peer.recvmsg(MESSAGE, room, MSG_CMSG_CLOEXEC)
        directories = array.array("i")
        for _, _, numbers in passed:
            directories.frombytes(numbers)
        if not request:
            return
        rows = marshal.loads(request)  # noqa: S302 - from who started us
        # of directories that the kernel did not pass, for this process has its limits, too, nobody knows which they are
        digests = [None] * len(rows) if flags & MSG_CTRUNC else make(rows, directories, memory, born)
        for directory in directories:
            os.close(directory)
        peer.send(marshal.dumps(digests))


def make(rows: list[Row], directories: array.array[int], memory: memoryview, born: Born) -> list[bytes | None]:
    """Make files, whose contents follow one another in *memory*. The digest of each; None of one that is not made.

    *born* is kept from one request to the next: of each mode the first file is looked at, as in ``files.Births``.
    """
    digests: list[bytes | None] = []
    end = 0
    for number, name, mode, size, mtime_ns, attributes in rows:
        start, end = end, end + size
        digest = None
        try:
            fd = os.open(name, _NEW_FILE, mode, dir_fd=directories[number])
        except OSError:
            digests.append(None)
            continue
        try:
            data = memory[start:end]
            if not size or os.write(fd, data) == size:
                if mode not in born:
                    found = os.fstat(fd)
                    born[mode] = found.st_mode & 0o7777, found.st_uid, found.st_gid
                if born[mode] != attributes:
                    if born[mode][1:] != attributes[1:]:
                        os.fchown(fd, attributes[1], attributes[2])
                    if born[mode][0] != attributes[0]:   # as of all with a bit that chown clears: none is born so
                        os.fchmod(fd, attributes[0])
                os.utime(fd, ns=(mtime_ns, mtime_ns))
                digest = sha256(data).digest()
        except OSError:                  # as who asked will find out, too
            digest = None
        os.close(fd)
        if digest is None:
            os.unlink(name, dir_fd=directories[number])
        digests.append(digest)
    return digests


def _main(peer: int, shared: int, lock: int) -> None:
    at = 3
    for fd in (*sorted((peer, shared, lock)), 1 << 20):   # nothing else that was open there
        os.closerange(at, fd)
        at = fd + 1
    with mmap.mmap(shared, 0) as memory, memoryview(memory) as view:
        os.close(shared)
        socket = Socket(fileno=peer)
        try:
            serve(socket, view)
        except ConnectionError:          # who asked is gone
            pass
        except Exception as error:  # noqa: BLE001 - its standard error is nobody's: told to who asked
            socket.send(marshal.dumps(repr(error)))


if __name__ == "__main__":
    _main(*map(int, sys.argv[1:]))
