"""Real file systems for tests: made in a file, mounted in a mount namespace of the test's own, gone with its process."""

import os
import subprocess
import tempfile

from crash.disk.filesystems import FILESYSTEMS, make
from crash.disk.kernel_calls import own_mounts
from layerstore.testing.children import telling


def on_disk(name, fn):
    """What ``fn(directory)`` returns, called in a child in which the file system *name* is mounted there. Needs root."""
    def child(work):
        own_mounts()
        filesystem, file, directory = FILESYSTEMS[name], os.path.join(work, "file"), os.path.join(work, "mounted")
        os.mkdir(directory)
        with open(file, "wb") as image:
            image.truncate(filesystem.megabytes << 20)
        make(filesystem, file)
        subprocess.run(["mount", "-o", "loop", file, directory], check=True)
        try:
            return fn(directory)
        finally:
            subprocess.run(["umount", "--lazy", directory], check=True)   # the loop device goes with it

    with tempfile.TemporaryDirectory(dir="/dev/shm") as work:
        return telling(lambda: child(work))
