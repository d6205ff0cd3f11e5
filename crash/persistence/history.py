"""Recorded calls as *effects* on nodes (inodes) and directory entries, and which sync made each of them durable.

An effect is what persists whole or not at all: one directory entry, one rename, one block of a write, one change of
size, one attribute. ``DATA`` may also be torn. Nothing is read from a disk here but the tree that a recording began
with (``image.read``).
"""

from __future__ import annotations

import os
import struct
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from crash.persistence.image import Node
from crash.shim import Call

BLOCK = 4096
NEVER = 1 << 60
ROOT = 0
NAMES = ("create", "mkdir", "mknod", "symlink", "link", "unlink", "rmdir", "rename", "exchange")
_EXCHANGE = 2    # linux/fs.h, RENAME_EXCHANGE
CONTENT = ("data", "size", "cut")
ATTRIBUTES = ("chmod", "chown", "utimens", "setxattr", "removexattr")
_TIMES = struct.Struct("=qqqq")
_OMIT, _NOW = (1 << 30) - 2, (1 << 30) - 1


class Effect(NamedTuple):
    """``node`` is what it happens to (for an entry: what the entry leads to); ``place``: parents and names."""

    number: int
    at: int          # the call's index
    kind: str
    node: int
    point: str       # the fault point inside which it was called
    place: tuple[int, ...] = ()   # the directories whose entries it changes
    what: tuple[Any, ...] = ()


class Sync(NamedTuple):
    """One call that makes something durable: ``node`` None for syncfs; ``write``: the one call that O_DSYNC covers."""

    at: int
    op: str
    point: str
    node: int | None
    write: int | None = None


class UnknownPathError(RuntimeError):
    """A recorded path leads nowhere in the model: the model has missed a call."""


@dataclass
class History:
    """All that happened, in order. ``born``: what each node is when it comes into being."""

    calls: Sequence[Call]
    base: Mapping[int, Node]
    effects: list[Effect] = field(default_factory=list)
    syncs: list[Sync] = field(default_factory=list)
    born: dict[int, Node] = field(default_factory=dict)
    marks: list[tuple[int, str]] = field(default_factory=list)
    points: list[str] = field(default_factory=list)      # for each call, the innermost fault point around it
    rendered: dict[tuple[tuple[int, bool], ...], tuple[bytes, bytes]] = field(default_factory=dict)   # image's own

    def ledger(self, cut: int) -> list[bytes]:
        """The ledger's lines that had been written when *cut* calls had been made."""
        return [text[7:].encode() for at, text in self.marks if at < cut and text.startswith("ledger ")]

    def after_mark(self, text: str) -> int:
        """How many calls had been made right after the mark *text*."""
        return next(at for at, each in self.marks if each == text) + 1

    def durable(self, ignore: Callable[[Sync], bool] = lambda _sync: False) -> list[int]:
        """For each effect, the index of the call that made it durable; NEVER. *ignore*: syncs that do nothing."""
        result = [NEVER] * len(self.effects)
        pending: dict[int, set[int]] = {}      # effect number -> directories still to be synced
        issued = 0
        for sync in self.syncs:
            while issued < len(self.effects) and self.effects[issued].at < sync.at:
                pending[issued] = set(self.effects[issued].place)
                issued += 1
            if ignore(sync):
                continue
            for number in [n for n in pending if self._covers(sync, self.effects[n], pending[n])]:
                result[number] = sync.at
                del pending[number]
        return result

    @staticmethod
    def _covers(sync: Sync, effect: Effect, missing: set[int]) -> bool:
        if sync.node is None:
            return True
        if sync.write is not None:
            return effect.at == sync.write
        if effect.kind in NAMES:
            if sync.op == "fsync":
                missing.discard(sync.node)
            return not missing
        return effect.node == sync.node and (sync.op == "fsync" or effect.kind in CONTENT)


def read_calls_as(calls: Sequence[Call], watched: str, base: Mapping[int, Node], *, umask: int = 0o022) -> History:
    """The history of *calls* beneath *watched*, which held *base* when recording began (``image.read``)."""
    return _Reader(calls, watched, base, umask).history


class _Reader:
    """Follows the calls through a live name space; ``_inode`` leads from recorded inode numbers to nodes."""

    def __init__(self, calls: Sequence[Call], watched: str, base: Mapping[int, Node], umask: int) -> None:
        self.history = History(calls, base)
        self._prefix, self._umask = os.path.realpath(watched), umask
        self._entries: dict[int, dict[str, int]] = defaultdict(dict)
        self._size: dict[int, int] = {}
        self._inode: dict[int, int] = {}
        self._last_write: dict[tuple[int, int], int] = {}
        self._stack: dict[int, list[str]] = defaultdict(list)
        self._failed = _without_after(calls)
        self._next = max(base, default=ROOT) + 1
        for number, node in base.items():
            self._entries[number] = dict(node.entries)
            self._size[number] = len(node.data)
            if node.inode:
                self._inode[node.inode] = number
        for at, call in enumerate(calls):
            if call.op == "mark":
                self._mark(at, call)
            self._point = next(iter(self._stack[call.pid][-1:]), "").removeprefix("!")
            self.history.points.append(self._point)
            if call.op != "mark":
                self._call(at, call)

    def _mark(self, at: int, call: Call) -> None:
        self.history.marks.append((at, call.path))
        if call.path.startswith("point "):
            _, name, when = call.path.split(" ")
            stack = self._stack[call.pid]
            if stack and stack[-1].startswith("!"):     # it failed, and is over
                stack.pop()
            if when == "before":
                stack.append(f"!{name}" if at in self._failed else name)
            else:
                del stack[stack.index(name):]

    def _call(self, at: int, call: Call) -> None:
        if call.path.endswith(" (deleted)"):     # it has no name, and no power loss leaves it
            return
        if call.op in ("fsync", "fdatasync", "syncfs"):
            self._sync(at, call)
        elif call.op in NAMES:
            self._name(at, call)
        elif call.op == "write":
            self._write(at, call)
        elif call.op in ("truncate", "fallocate"):
            self._resize(at, call)
        elif call.op in ATTRIBUTES:
            self._attribute(at, call)
        elif call.op != "read":
            raise UnknownPathError(f"the model does not know the call {call.op}")

    def _add(self, at: int, kind: str, node: int, place: tuple[int, ...] = (), *what: Any) -> None:
        effects = self.history.effects
        effects.append(Effect(len(effects), at, kind, node, self._point, place, what))

    def _node(self, call: Call) -> int:
        if call.path == self._prefix:
            return ROOT
        if call.inode not in self._inode:
            raise UnknownPathError(f"{call.op} of {call.path}, which nobody made")
        return self._inode[call.inode]

    def _place(self, path: str) -> tuple[int, str]:
        """The directory's node, and the name in it."""
        relative = os.path.relpath(path, self._prefix)
        folder, name = os.path.split(relative)
        node = ROOT
        for part in filter(None, folder.split("/")):
            if part not in self._entries[node]:
                raise UnknownPathError(f"{path}: there is no {part}")
            node = self._entries[node][part]
        return node, name

    def _sync(self, at: int, call: Call) -> None:
        write = None
        if call.other == "O_DSYNC":
            write = self._last_write[call.pid, call.inode]
        node = None if call.op == "syncfs" else self._node(call)
        self.history.syncs.append(Sync(at, call.op, self._point, node, write))

    def _name(self, at: int, call: Call) -> None:
        parent, name = self._place(call.path)
        if call.op in ("unlink", "rmdir"):
            node = self._entries[parent].pop(name)
            self._add(at, call.op, node, (parent,), name)
        elif call.op == "rename":
            other, target = self._place(call.other)
            places = tuple({parent: 0, other: 0})
            if call.offset & _EXCHANGE:
                node, second = self._entries[parent][name], self._entries[other][target]
                self._entries[parent][name], self._entries[other][target] = second, node
                self._add(at, "exchange", node, places, parent, name, other, target, second)
                return
            node = self._entries[parent].pop(name)
            self._entries[other][target] = node
            self._add(at, "rename", node, places, parent, name, other, target)
        elif call.op == "link":
            other, target = self._place(call.other)
            node = self._entries[parent][name]
            self._entries[other][target] = node
            self._add(at, "link", node, (other,), target)
        else:
            node, self._next = self._next, self._next + 1
            self._inode[call.inode] = node
            self._entries[parent][name] = node
            self._size[node] = 0
            self.history.born[node] = _born(call, self._umask)
            self._add(at, call.op, node, (parent,), name)

    def _write(self, at: int, call: Call) -> None:
        node = self._node(call)
        self._last_write[call.pid, call.inode] = at
        end = call.offset + len(call.data)
        if end > self._size[node]:
            self._size[node] = end
            self._add(at, "size", node, (), end)
        done = 0
        while done < len(call.data):
            upto = min(len(call.data), done + BLOCK - (call.offset + done) % BLOCK)
            self._add(at, "data", node, (), call.offset + done, call.data[done:upto])
            done = upto

    def _resize(self, at: int, call: Call) -> None:
        node = self._node(call)
        if call.op == "fallocate" and call.offset <= self._size[node]:
            return
        self._size[node] = call.offset
        self._add(at, "size" if call.op == "fallocate" else "cut", node, (), call.offset)

    def _attribute(self, at: int, call: Call) -> None:
        node = self._node(call)
        if call.op == "chmod":
            self._add(at, "chmod", node, (), call.offset)
        elif call.op == "chown":
            self._add(at, "chown", node, (), call.offset & 0xFFFFFFFF, int.from_bytes(call.data, "little"))
        elif call.op == "utimens":
            seconds, nanos = _TIMES.unpack(call.data)[2:] if call.data else (0, _NOW)
            if nanos != _OMIT:
                self._add(at, "utimens", node, (), None if nanos == _NOW else seconds * 1_000_000_000 + nanos)
        else:
            self._add(at, call.op, node, (), call.other, call.data)


def _without_after(calls: Sequence[Call]) -> set[int]:
    """Where a fault point was passed before an effect that failed: no "after" belongs to it."""
    failed: set[int] = set()
    open_: dict[int, list[tuple[int, str]]] = defaultdict(list)
    for at, call in enumerate(calls):
        if call.op == "mark" and call.path.startswith("point "):
            _, name, when = call.path.split(" ")
            stack = open_[call.pid]
            if when == "before":
                stack.append((at, name))
                continue
            while stack[-1][1] != name:
                failed.add(stack.pop()[0])
            stack.pop()
    return failed | {at for stack in open_.values() for at, _ in stack}


def _born(call: Call, umask: int) -> Node:
    kind = {"create": "file", "mkdir": "dir", "mknod": "special", "symlink": "symlink"}[call.op]
    mode = 0o777 if kind == "symlink" else call.offset
    node = Node(kind, mode if kind == "symlink" else mode & ~umask, os.geteuid(), os.getegid())
    if kind == "symlink":
        node.target = call.other
    elif kind == "special":
        node.device = int.from_bytes(call.data, "little")
    return node


__all__ = ["ATTRIBUTES", "BLOCK", "CONTENT", "NAMES", "NEVER", "ROOT", "Effect", "History", "Sync", "UnknownPathError",
           "read_calls_as"]
