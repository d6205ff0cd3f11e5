"""The file systems under test: how each is made, mounted and checked, and what it must be seen to have.

Every mkfs line is whole, and what it was to bring about is read back from the device and from /proc/mounts: small
images get other defaults than large ones, and a journal that is not there makes a table of green.
"""

from __future__ import annotations

import os
import re
import subprocess
from dataclasses import dataclass

_EXT4 = ("mkfs.ext4", "-q", "-F", "-b", "4096", "-E", "nodiscard,lazy_itable_init=0,lazy_journal_init=0")


class WrongFilesystemError(AssertionError):
    """The device or the mount lacks what was asked for."""


@dataclass(frozen=True)
class Filesystem:
    """One row. ``inspect`` prints the device's features; each of ``device`` must match there, none of ``absent``;
    each of ``mounted`` must be among the options in /proc/mounts. ``fast_commits``: a run must be seen to make some.
    ``fsck_apart``: why its checker's complaints are told apart and are no violations; the control without layerstore
    must draw them as well. ``one_writer``: why workloads of several processes are run on it only when asked for by name.
    """

    name: str
    kernel_name: str
    megabytes: int
    mkfs: tuple[str, ...]
    fsck: tuple[str, ...]
    inspect: tuple[str, ...]
    device: tuple[str, ...]
    absent: tuple[str, ...] = ()
    options: str = ""
    mounted: tuple[str, ...] = ()
    fsck_apart: str = ""
    fast_commits: bool = False
    one_writer: str = ""


_ALL = (
    Filesystem(
        "ext4", "ext4", 64, (*_EXT4, "-O", "^fast_commit", "-J", "size=4"), ("e2fsck", "-fn"), ("dumpe2fs", "-h"),
        (r"Block size: +4096", r"features:.*\bhas_journal\b"), (r"features:.*\bfast_commit\b",),
        "data=ordered", ("data=ordered",),
    ),
    Filesystem(
        "ext4-fc", "ext4", 64, (*_EXT4, "-O", "fast_commit", "-J", "size=4,fast_commit_size=1024"), ("e2fsck", "-fn"),
        ("dumpe2fs", "-h"), (r"Block size: +4096", r"features:.*\bhas_journal\b", r"features:.*\bfast_commit\b"), (),
        "data=ordered", ("data=ordered",),
        "the kernel's replay of fast commits leaves wrong link counts and i_blocks of directories (seen with Linux 6.18)",
        fast_commits=True, one_writer="another process's fsync between an allocation and fdatasync makes the kernel leave "
        "the written extent out of the fast commit: what fdatasync was told is durable reads back as zeros (Linux 6.18)",
    ),
    Filesystem(
        "xfs", "xfs", 300, ("mkfs.xfs", "-q", "-f", "-K"), ("xfs_repair", "-n"), ("xfs_db", "-r", "-c", "version"),
        (r"\bV5\b",), (), "nouuid",
    ),
    Filesystem(
        "btrfs", "btrfs", 128, ("mkfs.btrfs", "-q", "-f", "-K"), ("btrfs", "check", "--readonly"),
        ("btrfs", "inspect-internal", "dump-super"), (r"magic\s+_BHRfS_M \[match\]", r"num_devices\s+1\b"),
    ),
)
FILESYSTEMS = {each.name: each for each in _ALL}


def make(fs: Filesystem, device: str) -> None:
    subprocess.run([*fs.mkfs, device], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def assert_device(fs: Filesystem, device: str) -> None:
    """WrongFilesystemError unless the device says of itself that it has what was asked for."""
    run = subprocess.run([*fs.inspect, device], check=True, capture_output=True, text=True)
    for wanted in fs.device:
        if not re.search(wanted, run.stdout):
            raise WrongFilesystemError(f"{fs.name}: {device} does not show {wanted!r}:\n{run.stdout}")
    for unwanted in fs.absent:
        if re.search(unwanted, run.stdout):
            raise WrongFilesystemError(f"{fs.name}: {device} shows {unwanted!r}:\n{run.stdout}")


def assert_mounted(fs: Filesystem, target: str) -> None:
    """WrongFilesystemError unless the kernel says that *fs* is mounted at *target*, with its options."""
    with open("/proc/mounts", encoding="utf-8") as file:
        rows = [line.split() for line in file if line.split()[1] == target]
    if not rows or rows[-1][2] != fs.kernel_name:
        raise WrongFilesystemError(f"{target} is {rows}, not {fs.kernel_name}")
    options = rows[-1][3].split(",")
    for wanted in (*fs.mounted, "rw"):
        if wanted not in options:
            raise WrongFilesystemError(f"{target} is mounted with {options}, without {wanted}")


def fast_commits(device: str) -> int:
    """How many fast commits the ext4 on *device* has made, from its own statistics; 0 where there are none."""
    path = f"/proc/fs/ext4/{os.path.basename(device)}/fc_info"
    try:
        with open(path, encoding="ascii") as file:
            text = file.read()
    except FileNotFoundError:
        return 0
    found = re.search(r"(\d+) commits", text)
    return int(found[1]) if found else 0


def fsck(fs: Filesystem, path: str) -> str | None:
    """What the file system's own checker has against the unmounted image at *path*; None if it is clean."""
    run = subprocess.run([*fs.fsck, path], check=False, capture_output=True, text=True)
    return None if run.returncode == 0 else f"{fs.fsck[0]} ended with {run.returncode}: {(run.stdout + run.stderr)[-300:]}"
