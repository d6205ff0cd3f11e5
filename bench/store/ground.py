"""The file systems that are measured on: private ones, on loop devices with direct I/O, in a mount namespace of our own.

Never measured on a file system that was deleted from: ext4 avoids inodes that were freed lately, and creating files
gets many times slower. Every measure gets a fresh one. An ordinary user gets a plain directory instead.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator

_INSIDE = "LAYERSTORE_BENCH_INSIDE"
_MAKE = {
    "ext4": ["mkfs.ext4", "-q", "-F", "-i", "4096", "-E", "lazy_itable_init=0,lazy_journal_init=0"],
    "xfs": ["mkfs.xfs", "-q", "-f"],
}


def enter_namespace() -> None:
    """Start this program again in a mount namespace of its own: what it mounts goes with it, however it ends."""
    if os.geteuid() == 0 and not os.environ.get(_INSIDE):
        module = sys.modules["__main__"].__spec__.name.removesuffix(".__main__")
        command = ["unshare", "--mount", sys.executable, "-m", module, *sys.argv[1:]]
        os.execvpe("unshare", command, {**os.environ, _INSIDE: "1"})


@contextlib.contextmanager
def ground(directory: str, kind: str = "ext4", gibibytes: int = 8) -> Iterator[str]:
    """An empty directory on a fresh file system of that *kind*, whose (sparse) image lies in *directory*."""
    with tempfile.TemporaryDirectory(prefix="layerstore-bench-", dir=directory) as scratch:
        if os.geteuid() != 0:
            yield scratch
            return
        image, target = os.path.join(scratch, "image"), os.path.join(scratch, "ground")
        os.mkdir(target)
        with open(image, "wb") as file:
            file.truncate(gibibytes << 30)
        _run([*_MAKE[kind], image])
        device = _run(["losetup", "--find", "--show", "--direct-io=on", image]).strip()
        try:
            _run(["mount", "-t", kind, device, target])
        finally:
            _run(["losetup", "--detach", device])   # at once; while it is mounted, as soon as it is not
        try:
            yield target
        finally:
            _run(["umount", "--recursive", target])   # the peer mounts its own directory once more


def _run(command: list[str]) -> str:
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
