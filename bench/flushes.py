"""How often a command asks for durability, as strace sees it in the kernel: no library can hide a call from that."""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Mapping

from bench import machine

_CALLS = "fsync,fdatasync,syncfs,sync,msync,sync_file_range"
_CALL = re.compile(rb"^\d+ +(\w+)\((.*)", re.MULTILINE)


def flushes(command: str, environment: Mapping[str, str]) -> dict[str, int] | None:
    """Calls by name, and ``O_SYNC opens``: each write to such a file is a flush. Empty: none. None without strace.

    *environment* is the command's, not strace's.
    """
    strace = machine.which("strace")
    if strace is None:
        return None
    with tempfile.NamedTemporaryFile() as log:
        set_ = [word for item in environment.items() for word in ("-E", "=".join(item))]
        subprocess.run([strace, "-f", "-qq", "-e", "signal=none", "-e", f"trace={_CALLS},open,openat,openat2", "-o", log.name,
                        *set_, "/bin/sh", "-c", command], check=True, capture_output=True, stdin=subprocess.DEVNULL)
        return count(log.read())


def count(log: bytes) -> dict[str, int]:
    found: Counter[str] = Counter()
    for name, rest in _CALL.findall(log):
        if not name.startswith(b"open"):
            found[name.decode()] += 1
        elif re.search(rb"\bO_D?SYNC\b", rest):
            found["O_SYNC opens"] += 1
    return dict(sorted(found.items()))
