"""A sandbox runner: python sandbox.py [--keep NAME] STORE IMAGE COMMAND…      (root)

Runs a command in a writable copy of an image, in namespaces of its own, and throws away what it wrote, or keeps it as an
image. The copy costs a mount, not a copy. If this program is killed, so is the command, and the next one clears up.
For programs that one trusts (builds, tests): what runs in it is root, with all that root may do.
"""

import argparse
import fcntl
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import layerstore

RUNS = Path("/run/layerstore-sandboxes")


@contextmanager
def place() -> Iterator[Path]:
    """A directory to mount at, locked for as long as this process lives: so others know whose it is."""
    RUNS.mkdir(mode=0o700, parents=True, exist_ok=True)   # nobody else may enter: the images have set-uid programs
    target = Path(tempfile.mkdtemp(dir=RUNS))
    with open(f"{target}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            yield target
        finally:
            target.rmdir()
            os.unlink(lock.name)


def clear_up(store: layerstore.Store) -> None:
    """Unmount what sandboxes of this store left whose process is dead."""
    for mount in store.mounts():
        target = Path(mount.target)
        if target.parent != RUNS.resolve():
            continue
        # UnknownMountError, FileNotFoundError: another one was quicker to clear it up
        with (open(f"{target}.lock", "a") as lock,
              suppress(BlockingIOError, layerstore.errors.UnknownMountError, FileNotFoundError)):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            try:
                store.unmount(target)
                target.rmdir()
            finally:
                os.unlink(lock.name)


def run(target: Path, command: list[str]) -> int:
    """In namespaces of its own: no network, its own processes, which die with this one; and the image as its root."""
    own = ["setpriv", "--pdeathsig", "KILL"]
    own += ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--uts", "--ipc", "--net"]
    if (target / "proc").is_dir():
        own.append(f"--mount-proc={target}/proc")
    return subprocess.run([*own, "chroot", str(target), *command], check=False).returncode


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("store")
    parser.add_argument("image")
    parser.add_argument("--keep", metavar="NAME")
    parser.add_argument("command", nargs=argparse.REMAINDER)
    options = parser.parse_args()
    with layerstore.open(options.store, create=False) as store, place() as target:
        clear_up(store)
        store.mount(options.image, target, writable=True)
        try:
            status = run(target, options.command)
            if options.keep is not None and status == 0:
                print(store.commit(target, names=[options.keep]).id)
        finally:
            store.unmount(target)
    return status


if __name__ == "__main__":
    sys.exit(main())
