"""The program of a process that reads and hashes content of committed layers for a pull. Imports nothing of ours.

It is told in which open trees, at which paths and offsets, and with which digests, and puts what it reads into memory that
both have. It answers which of it is right. The rest it leaves to who asked, who finds out what is wrong with it: it judges
nothing, and changes nothing. It ends when nobody is at the other end any more.
"""

from __future__ import annotations

import array
import marshal
import mmap
import os
import stat
import sys
from _socket import CMSG_SPACE, MSG_CMSG_CLOEXEC, MSG_CTRUNC
from _socket import socket as Socket  # noqa: N812 - ``socket`` and ``hashlib`` are these, and cost half of the start

try:
    from _hashlib import openssl_sha256 as sha256
except ImportError:                      # a Python without OpenSSL has its own
    from hashlib import sha256

__all__ = ["MESSAGE", "MOST_TREES", "READY", "Row", "read", "serve"]

READY = b"ready"                         # this and the next equal those of ``system.beside``
MESSAGE = 1 << 17                        # bytes of a request at most
MOST_TREES = 64                          # of a request
_DEEPEST = 64                            # directories that are open at once
_DIRECTORY = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC

# which tree of the request; path in it, clean; offset and bytes; sha256
Row = tuple[int, bytes, int, int, bytes]


def serve(peer: Socket, memory: memoryview) -> None:
    """Answer until nobody asks any more."""
    room = CMSG_SPACE(MOST_TREES * array.array("i").itemsize)
    while True:
        request, passed, flags, _ = peer.recvmsg(MESSAGE, room, MSG_CMSG_CLOEXEC)
        trees = array.array("i")
        for _, _, numbers in passed:
            trees.frombytes(numbers)
        if not request:
            return
        at, rows = marshal.loads(request)  # noqa: S302 - from who started us
        # of trees that the kernel did not pass, for this process has its limits, too, nobody knows which they are
        right = bytes(len(rows)) if flags & MSG_CTRUNC else read(rows, trees, memory[at:])
        for tree in trees:
            os.close(tree)
        peer.send(right)


def read(rows: list[Row], trees: array.array[int], memory: memoryview) -> bytes:
    """Read content, one after another, into *memory*. A byte for each: 1 if it has its digest, and else 0."""
    right = bytearray(len(rows))
    way = _Way(trees)
    end = 0
    for number, (tree, path, offset, length, digest) in enumerate(rows):
        start, end = end, end + length
        part = memory[start:end]
        parent, _, name = path.rpartition(b"/")
        try:
            fd = os.open(name, _FILE, dir_fd=way.to(tree, parent))
        except OSError:
            continue
        try:
            if stat.S_ISREG(os.fstat(fd).st_mode) and os.preadv(fd, [part], offset) == length:
                right[number] = sha256(part).digest() == digest
        except OSError:
            pass
        os.close(fd)
    way.close()
    return bytes(right)


class _Way:
    """Directories, each opened in the other, over no symbolic link; those that the next path has in common stay open."""

    def __init__(self, trees: array.array[int]) -> None:
        self._trees = trees
        self._tree = -1
        self._path = b""
        self._names: list[bytes] = []
        self._fds: list[int] = []

    def to(self, tree: int, path: bytes) -> int:
        """The directory *path* of *tree*, open until the next call. OSError."""
        if (tree, path) == (self._tree, self._path):
            return self._fds[-1] if self._fds else self._trees[tree]
        names = path.split(b"/") if path else []
        if len(names) > _DEEPEST:
            raise OSError
        common = 0
        if tree == self._tree:
            for one, other in zip(names, self._names):  # noqa: B905 - as far as both go
                if one != other:
                    break
                common += 1
        self._tree, self._path = tree, b"\0"   # none, until all of it is open
        self.close(common)
        for name in names[common:]:
            self._fds.append(os.open(name, _DIRECTORY, dir_fd=self._fds[-1] if self._fds else self._trees[tree]))
            self._names.append(name)
        self._path = path
        return self._fds[-1] if self._fds else self._trees[tree]

    def close(self, keep: int = 0) -> None:
        """Close all but the first *keep*."""
        while len(self._fds) > keep:
            os.close(self._fds.pop())
        del self._names[keep:]


def _main(peer: int, shared: int) -> None:
    at = 3
    for fd in (*sorted((peer, shared)), 1 << 20):   # nothing else that was open there
        os.closerange(at, fd)
        at = fd + 1
    with mmap.mmap(shared, 0) as memory, memoryview(memory) as view:
        os.close(shared)
        socket = Socket(fileno=peer)
        try:
            socket.send(READY)
            serve(socket, view)
        except ConnectionError:          # who asked is gone
            pass


if __name__ == "__main__":
    _main(*map(int, sys.argv[1:]))
