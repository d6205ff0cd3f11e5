"""What each kind of entry costs in system calls: counted by strace, and held to the table of ``layerstore.trees.unpack``.

Each kind is unpacked twice, with a few entries and with more, in one traced process: the difference is what they cost. For
files also where threads make them, and by the program of the process that makes them (ADR 0027), called as it calls itself.
"""

import array
import os
import re
import sys
from collections import Counter
from pathlib import Path

import pytest
from tarmaker import directory, file, hardlink, header, pax, symlink
from test_unpack import Tree

from crash import strace
from layerstore.trees import unpack
from layerstore.trees.unpack import creating

pytestmark = pytest.mark.root

TIME = 1_700_000_000
FEW, MORE = 1, 11        # few enough for threads to need no help by a process, whose start is not counted here
CALLS = strace.MUTATING | {
    "newfstatat", "fstat", "statx", "fcntl", "dup", "close", "lseek", "readlinkat", "getxattr", "fgetxattr", "lgetxattr",
    "listxattr", "flistxattr", "access", "faccessat", "faccessat2",
}
LARGE = (2 << 20) - 512  # with its header two chunks; the first entry puts it out of step, so that it lies in three
PLAIN = lambda name, **more: file(name, b"x", mtime=TIME, **more)
KINDS = {
    "file": lambda n: PLAIN(b"f%d" % n),
    "empty file": lambda n: file(b"f%d" % n, mtime=TIME),
    "file of another's": lambda n: PLAIN(b"f%d" % n, uid=5),
    "file, an attribute": lambda n: pax((b"SCHILY.xattr.user.a", b"1")) + PLAIN(b"f%d" % n),
    "file of 2 MiB": lambda n: file(b"f%d" % n, b"x" * LARGE, mtime=TIME),
    "file of 2 MiB, zeros": lambda n: file(b"f%d" % n, bytes(LARGE), mtime=TIME),
    "directory": lambda n: directory(b"d%d" % n, mtime=TIME),
    "implied, and a file": lambda n: PLAIN(b"d%d/f" % n),
    "opaque directory": lambda n: directory(b"d%d" % n, mtime=TIME) + file(b"d%d/.wh..wh..opq" % n),
    "symbolic link": lambda n: symlink(b"l%d" % n, b"target", mtime=TIME),
    "hard link": lambda n: hardlink(b"h%d" % n, b"before"),
    "fifo": lambda n: header(b"p%d" % n, b"6", mtime=TIME),
    "device": lambda n: header(b"c%d" % n, b"3", major=1, minor=3, mtime=TIME),
    "whiteout": lambda n: file(b".wh.w%d" % n),
}
FILES = ("file", "empty file", "file of another's")


def mark(*words):
    os.access("/mark/" + "/".join(map(str, words)), os.F_OK)


def work(scratch):
    """In the traced process: all kinds, between marks."""
    for kind, make in KINDS.items():
        for how, alone in (("alone", None), *([("threads", 0)] if kind in FILES else [])):
            for count in (FEW, MORE):
                tree = Tree(Path(scratch) / f"{kind}-{how}-{count}", alone=alone)
                data = PLAIN(b"before") + b"".join(map(make, range(count)))
                mark("begin", kind, how, count)
                tree.unpack(data)
                mark("end")
    rows = {"file": (b"x", 0), "empty file": (b"", 0), "file of another's": (b"x", 5)}
    for kind, (data, uid) in rows.items():
        for count in (FEW, MORE):
            made = os.open(scratch, os.O_RDONLY)
            names = [b"%s%d-%d" % (kind.encode(), count, n) for n in range(count)]
            asked = [(0, name, 0o644, len(data), TIME * 10**9, (0o644, uid, 0)) for name in names]
            mark("begin", kind, "process", count)
            creating.make(asked, array.array("i", [made]), memoryview(data * count), {})
            mark("end")


def table():
    """What ``layerstore.trees.unpack`` says: kind -> calls."""
    text = unpack.__doc__.partition("test_system_calls.py counts them")[2].partition("\n\n* ")[0]
    found = {}
    for line in text.splitlines()[2:]:
        kinds, calls = re.fullmatch(r"    (\S.*?) {2,}(.*)", line).groups()
        counts = Counter()
        for call in calls.split():
            name, _, times = call.partition("*")
            counts[name] += int(times or 1)
        for kind in ("fifo", "device") if kinds == "fifo, device" else (kinds,):
            found[kind] = counts
    return found


def counted(calls):
    """(kind, by whom) -> calls for each entry."""
    found, current = {}, None
    for call in calls:
        if call.name in ("access", "faccessat", "faccessat2"):
            words = re.search(r'"/mark/([^"]*)"', call.text)
            if words:
                current = found.setdefault(tuple(words[1].split("/")[1:]), Counter()) if words[1] != "end" else None
        elif current is not None:
            current[call.name] += 1
    each = {}
    for kind, how, count in found:
        if count == str(FEW):
            more = Counter(found[kind, how, str(MORE)])
            more.subtract(found[kind, how, count])
            each[kind, how] = {name: n / (MORE - FEW) for name, n in more.items() if n}
    return each


def test_every_kind_of_entry_costs_the_system_calls_of_the_table(tmp_path):
    program = f"import sys; sys.path[:0] = {sys.path!r}; import test_system_calls as t; t.work({str(tmp_path)!r})"
    traced = strace.trace([sys.executable, "-c", program], str(tmp_path / "strace.log"), names=CALLS)
    assert traced.status == 0, traced.stderr
    found, said = counted(traced.calls), table()
    assert {kind for kind, _ in found} == said.keys() == KINDS.keys()
    assert {how for kind, how in found if kind == "file"} == {"alone", "threads", "process"}
    assert found == {(kind, how): said[kind] for kind, how in found}
