"""The disk: a program that answers the kernel on raw /dev/fuse. ``python daemon.py DIRECTORY LOG MEGABYTES``

In DIRECTORY it serves two files. ``disk`` is a disk in memory; a loop device stands on it. What is written to
``mark`` is put into LOG between the writes and flushes of the disk, in the one order in which they came: so there is
no doubt whether an acknowledgement came before or after a flush. A mark that begins with ``!`` is an order::

    !fail write|flush K [sticky]   answer the K-th write or flush from now on with EIO; sticky: and all after it
    !lie                           acknowledge flushes and do nothing
    !heal                          none of this any more

Reading ``mark`` gives ``{"writes": n, "flushes": n, "lies": n, "failed": n}``. LOG holds frames (``HEAD``): W offset
length data · F · D offset length (discarded or zeroed) · M length data. Standard library only; no module of ours.

One thread: a write that has been received is in the image, so one that the kernel sent before a flush that overtook it
counts as flushed.
"""

from __future__ import annotations

import ctypes
import errno
import json
import mmap
import os
import stat
import struct
import sys
from typing import BinaryIO

HEAD = struct.Struct("<cQQ")   # kind, offset, length
_IN, _OUT = struct.Struct("<IIQQIIIHH"), struct.Struct("<IiQ")
_MAX_WRITE = 1 << 20
_ROOT, _MARK, _DISK = 1, 2, 3
_NAMES = {b"mark": _MARK, b"disk": _DISK}
_DIRECT_IO = 1
(_LOOKUP, _FORGET, _GETATTR, _SETATTR, _OPEN, _READ, _WRITE, _STATFS, _RELEASE, _FSYNC, _FLUSH, _INIT, _OPENDIR,
 _RELEASEDIR, _INTERRUPT, _DESTROY, _BATCH_FORGET, _FALLOCATE) = (
    1, 2, 3, 4, 14, 15, 16, 17, 18, 20, 25, 26, 27, 29, 36, 38, 42, 43)


class Disk:
    """The image, its log, and what it was told to do wrong."""

    def __init__(self, size: int, log: BinaryIO) -> None:
        self.size, self.log = size, log
        self.image = mmap.mmap(-1, size)
        self.failing, self.left, self.sticky, self.lying = "", 0, False, False
        self.counts = {"writes": 0, "flushes": 0, "lies": 0, "failed": 0}

    def _note(self, kind: bytes, offset: int = 0, length: int = 0, data: bytes | memoryview = b"") -> None:
        self.log.write(HEAD.pack(kind, offset, length))
        self.log.write(data)

    def _fails(self, what: str) -> bool:
        if self.failing != what:
            return False
        self.left -= 1
        if self.left > 0 or (self.left < 0 and not self.sticky):
            return False
        self.counts["failed"] += 1
        return True

    def write(self, offset: int, data: memoryview) -> int:
        if self._fails("write"):
            return errno.EIO
        self.counts["writes"] += 1
        self.image[offset:offset + len(data)] = data
        self._note(b"W", offset, len(data), data)
        return 0

    def discard(self, offset: int, length: int) -> int:
        self.image[offset:offset + length] = bytes(length)
        self._note(b"D", offset, length)
        return 0

    def flush(self) -> int:
        if self._fails("flush"):
            return errno.EIO
        if self.lying:
            self.counts["lies"] += 1
            return 0
        self.counts["flushes"] += 1
        self._note(b"F")
        return 0

    def mark(self, data: bytes) -> None:
        if not data.startswith(b"!"):
            self._note(b"M", 0, len(data), data)
            return
        order, *words = data[1:].decode().split()
        self.failing, self.left, self.sticky, self.lying = "", 0, False, order == "lie"
        if order == "fail":
            self.failing, self.left, self.sticky = words[0], int(words[1]), words[2:] == ["sticky"]


def _attributes(node: int, size: int) -> bytes:
    mode = stat.S_IFDIR | 0o755 if node == _ROOT else stat.S_IFREG | 0o600
    size = size if node == _DISK else 0
    return struct.pack("<QQQQQQIIIIIIIIII", node, size, (size + 511) // 512, 0, 0, 0, 0, 0, 0, mode, 1, 0, 0, 0, 4096, 0)


def _answer(disk: Disk, op: int, node: int, body: memoryview) -> tuple[int, bytes] | None:
    """An errno and what to say; None for what is not answered. Source: linux/fuse.h, protocol 7.31."""
    if op == _WRITE:
        _, offset, length = struct.unpack_from("<QQI", body)
        data, number = body[40:40 + length], 0
        if node == _DISK:
            number = disk.write(offset, data)
        else:
            disk.mark(bytes(data))
        return number, struct.pack("<II", length, 0)
    if op == _READ:
        _, offset, length = struct.unpack_from("<QQI", body)
        if node == _MARK:
            return 0, json.dumps(disk.counts).encode()[offset:offset + length]
        return 0, disk.image[offset:offset + length]
    if op == _FSYNC:
        return (disk.flush() if node == _DISK else 0), b""
    if op == _FALLOCATE:
        _, offset, length, _mode = struct.unpack_from("<QQQI", body)
        return disk.discard(offset, length), b""
    if op == _LOOKUP:
        found = _NAMES.get(bytes(body).rstrip(b"\0"))
        if found is None:
            return errno.ENOENT, b""
        return 0, struct.pack("<QQQQII", found, 0, 3600, 3600, 0, 0) + _attributes(found, disk.size)
    if op in (_GETATTR, _SETATTR):
        return 0, struct.pack("<QII", 3600, 0, 0) + _attributes(node, disk.size)
    if op in (_OPEN, _OPENDIR):
        return 0, struct.pack("<QII", 0, _DIRECT_IO, 0)
    if op == _INIT:
        flags = 1 | 1 << 5 | 1 << 22   # asynchronous reads, big writes, max_pages
        told = (7, 31, 1 << 20, flags, 16, 12, _MAX_WRITE, 1, _MAX_WRITE // 4096, 0)
        return 0, struct.pack("<IIIIHHIIHH", *told) + bytes(32)
    if op == _STATFS:
        return 0, struct.pack("<QQQQQIIII", 1 << 20, 1 << 20, 1 << 20, 9, 9, 4096, 255, 4096, 0) + bytes(24)
    if op in (_FORGET, _INTERRUPT, _BATCH_FORGET):
        return None
    if op in (_RELEASE, _FLUSH, _RELEASEDIR, _DESTROY):
        return 0, b""
    return errno.ENOSYS, b""


def serve(device: int, disk: Disk) -> None:
    """Answer until the kernel unmounts us."""
    buffer = bytearray(_MAX_WRITE + 65536)
    view = memoryview(buffer)
    while True:
        try:
            length = os.readv(device, [buffer])
        except OSError as error:
            if error.errno == errno.ENODEV:
                return
            if error.errno in (errno.EINTR, errno.EAGAIN, errno.ENOENT):
                continue
            raise
        _, op, unique, node, *_ = _IN.unpack_from(buffer)
        answer = _answer(disk, op, node, view[_IN.size:length])
        if answer is None:
            continue
        number, out = answer
        out = b"" if number else out
        try:
            os.writev(device, [_OUT.pack(_OUT.size + len(out), -number, unique), out])
        except OSError as error:
            if error.errno != errno.ENOENT:   # the asker was interrupted meanwhile
                raise


def main(directory: str, log: str, megabytes: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(1, 9, 0, 0, 0)   # PR_SET_PDEATHSIG, SIGKILL: never outlive the rig
    device = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    options = f"fd={device},rootmode=40000,user_id=0,group_id=0,allow_other,max_read={_MAX_WRITE}"
    if libc.mount(b"crashdisk", directory.encode(), b"fuse.crashdisk", 6, options.encode()) != 0:
        raise OSError(ctypes.get_errno(), "mount", directory)
    print("ready", flush=True)
    with open(log, "wb", buffering=1 << 20) as file:
        serve(device, Disk(megabytes << 20, file))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
