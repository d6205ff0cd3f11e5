"""The same command line, counted from inside by the interposed libc, to compare with what strace saw from outside.

    LD_PRELOAD=shim python -m crash.outside.counting ROOT LOG ARGUMENTS…     runs `layerstore ARGUMENTS…`

What the two must agree on is how often each call that changes the store was made, a raw ``syscall()`` included: what
the shim cannot see, the rigs that stand on it cannot kill.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable

from crash import shim
from crash.outside import Rig
from crash.strace import SIZES, SYNCS, WRITES, Trace
from layerstore.cli import main as command_line

# strace's name: the shim's
_NAMES = {
    "write": "write", "writev": "write", "pwrite64": "write", "pwritev": "write", "pwritev2": "write",
    "rename": "rename", "renameat": "rename", "renameat2": "rename", "link": "link", "linkat": "link",
    "symlink": "symlink", "symlinkat": "symlink", "mkdir": "mkdir", "mkdirat": "mkdir", "mknod": "mknod",
    "mknodat": "mknod", "unlink": "unlink", "rmdir": "rmdir", "chmod": "chmod", "fchmod": "chmod", "fchmodat": "chmod",
    "chown": "chown", "fchown": "chown", "lchown": "chown", "fchownat": "chown", "utimensat": "utimens",
    "setxattr": "setxattr", "lsetxattr": "setxattr", "fsetxattr": "setxattr", "fremovexattr": "setxattr",
    "removexattr": "setxattr", "lremovexattr": "setxattr", "truncate": "truncate", "ftruncate": "truncate",
    **{name: name for name in SYNCS | SIZES - {"truncate", "ftruncate"}},
}


def seen_by_strace(traced: Trace, root: str, there: Iterable[str]) -> Counter[str]:
    """The calls that succeeded, by the shim's names. *there*: the files before, so that a creation is known as one."""
    counts: Counter[str] = Counter()
    files, synced = set(there), set()
    for call in traced.calls:
        if "O_DSYNC" in call.text:
            synced.add(call.result.partition(">")[0])
        if call.failed or not call.mutates() or not call.touches(root):
            continue
        path = call.paths()[-1]
        descriptor = call.text.partition(">")[0]
        if call.name in WRITES and descriptor in synced:
            counts["fdatasync"] += 1   # a write through an O_DSYNC descriptor is a sync, too; the shim says so
        if call.name.startswith("open"):
            if "O_CREAT" in call.text and path not in files:
                counts["create"] += 1
            elif "O_TRUNC" in call.text:
                counts["truncate"] += 1
            files.add(path)
        elif call.name == "unlinkat":
            counts["rmdir" if "AT_REMOVEDIR" in call.text else "unlink"] += 1
            files.discard(path)
        else:
            counts[_NAMES[call.name]] += 1
        if call.name.startswith("rename"):
            old, new = call.paths()[0 if call.name == "rename" else 1], path
            files = {new + each[len(old):] if each == old or each.startswith(old + "/") else each for each in files}
        if call.name == "unlink":
            files.discard(path)
    return counts


def seen_by_shim(rig: Rig) -> Counter[str]:
    """The run beneath the shim: the mutating calls that it recorded."""
    root, log = rig.store("shim"), os.path.join(rig.work, "shim.log")
    python, _m, _layerstore, *rest = rig.run.command(sys.executable, root)
    done = subprocess.run(
        [python, "-m", "crash.outside.counting", root, log, *rest],
        env={**rig.environment(), "LD_PRELOAD": shim.build()}, stdin=subprocess.DEVNULL, capture_output=True, check=False,
    )
    if done.returncode != 0:
        raise AssertionError(f"the run failed beneath the shim: {done.stderr.decode()}")
    return Counter(call.op for call in shim.read_calls(log))


def both(rig: Rig) -> tuple[Counter[str], Counter[str]]:
    """The mutating calls of the run, as seen from outside and from inside."""
    traced, root = rig.baseline()
    prepared = rig.store("prepared")
    there = [os.path.join(at, name) for at, _, names in os.walk(prepared) for name in names]
    return seen_by_strace(traced, root, [root + path.removeprefix(prepared) for path in there]), seen_by_shim(rig)


def main(root: str, log: str, arguments: list[str]) -> int:
    """Run the command line in this process, with the shim counting."""
    inside = shim.Shim()
    inside.watch(root)
    inside.arm(shim.Calls.DURABLE)
    inside.record(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600))
    status = command_line(arguments)
    inside.record(-1)
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2], sys.argv[3:]))
