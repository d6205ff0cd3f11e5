"""A tree of nodes in memory: built from the effects that persisted, compared by digest, written to a directory.

A node is reached by the entries that persisted; what nothing leads to is lost. A node that an entry leads to and of
which nothing else persisted is an empty file or directory, with the mode it was made with.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from crash.persistence.history import Effect, History

ROOT = 0


@dataclass
class Node:
    """``mtime`` None: whenever it was. ``applied``: the numbers of the effects on a file's content, in order."""

    kind: str
    mode: int
    uid: int
    gid: int
    mtime: int | None = None
    data: bytes = b""
    target: str = ""
    device: int = 0
    inode: int = 0
    xattrs: dict[str, bytes] = field(default_factory=dict)
    entries: dict[str, int] = field(default_factory=dict)
    applied: tuple[tuple[int, bool], ...] = ()


class Image:
    """What is on the disk if of a history's first *cut* calls just these effects persisted."""

    def __init__(self, history: History, cut: int, persisted: Collection[int], torn: Collection[int] = ()) -> None:
        self._history = history
        self._nodes: dict[int, Node] = {}
        for effect in history.effects:
            if effect.at >= cut:
                break
            if effect.number in persisted:
                self._apply(effect, effect.number in torn)

    def _node(self, number: int) -> Node:
        if number not in self._nodes:
            node = self._history.born.get(number) or self._history.base[number]
            self._nodes[number] = replace(node, xattrs=dict(node.xattrs), entries=dict(node.entries))
        return self._nodes[number]

    def _apply(self, effect: Effect, torn: bool) -> None:
        kind, what = effect.kind, effect.what
        if effect.place:
            for directory in effect.place:
                self._node(directory).mtime = None
            if kind in ("rename", "exchange"):
                self._rename(effect)
            else:
                self._entry(effect)
            return
        node = self._node(effect.node)
        if kind in ("data", "size", "cut"):
            node.applied += ((effect.number, torn),)
            node.mtime = None
        elif kind == "chmod":
            node.mode = what[0]
        elif kind == "chown":
            node.uid, node.gid = (_unless_kept(new, old) for new, old in zip(what, (node.uid, node.gid), strict=True))
        elif kind == "utimens":
            node.mtime = what[0]
        elif kind == "setxattr":
            node.xattrs[what[0]] = what[1]
        elif kind == "removexattr":
            node.xattrs.pop(what[0], None)

    def _entry(self, effect: Effect) -> None:
        entries = self._node(effect.place[0]).entries
        if effect.kind in ("unlink", "rmdir"):
            entries.pop(effect.what[0], None)
        else:
            entries[effect.what[0]] = effect.node

    def _rename(self, effect: Effect) -> None:
        """The old name goes and the new one is there, or nothing. A directory has one place, so it leaves any other."""
        parent, name, other, target, *second = effect.what
        entries = self._node(parent).entries
        if entries.get(name) == effect.node:
            del entries[name]
        for moved in (effect.node, *second):
            if self._node(moved).kind == "dir":
                for node in self._nodes.values():
                    for each in [n for n, child in node.entries.items() if child == moved]:
                        del node.entries[each]
        self._node(other).entries[target] = effect.node
        if second:
            entries[name] = second[0]

    # -- content -------------------------------------------------------------------------------------------------

    def _content(self, node: Node) -> bytes:
        return self._rendered(node)[0] if node.applied else node.data

    def _rendered(self, node: Node) -> tuple[bytes, bytes]:
        known = self._history.rendered
        if node.applied not in known:
            if len(known) > 100:    # a journal's data file is among them, and there are many histories
                known.clear()
            known[node.applied] = _render(node, self._history)
        return known[node.applied]

    def _content_digest(self, node: Node) -> bytes:
        return self._rendered(node)[1] if node.applied else hashlib.sha256(node.data).digest()

    def digest(self) -> bytes:
        """Equal digests, equal trees."""
        running = hashlib.blake2b(digest_size=16)
        seen: dict[int, int] = {}

        def walk(number: int) -> None:
            node = self._node(number)
            running.update(repr((
                seen.setdefault(number, len(seen)), node.kind, node.mode, node.uid, node.gid, node.mtime, node.target,
                node.device, sorted(node.xattrs.items()), self._content_digest(node) if node.kind == "file" else b"",
            )).encode())
            for name, child in sorted(node.entries.items()):
                running.update(f"/{name}".encode())
                walk(child)
            running.update(b".")

        walk(ROOT)
        return running.digest()

    def write(self, directory: str) -> None:
        """Make the tree in *directory*, which is empty."""
        made: dict[int, str] = {}

        def walk(number: int, path: str) -> None:
            node = self._node(number)
            if number in made and node.kind != "dir":
                os.link(made[number], path, follow_symlinks=False)
                return
            made[number] = path
            if number != ROOT:
                self._make(node, path)
            for name, child in sorted(node.entries.items()):
                walk(child, f"{path}/{name}")
            if number != ROOT:
                _dress(node, path)

        walk(ROOT, directory)

    def _make(self, node: Node, path: str) -> None:
        if node.kind == "dir":
            os.mkdir(path, 0o700)
        elif node.kind == "symlink":
            os.symlink(node.target, path)
        elif node.kind == "special":
            os.mknod(path, node.mode, node.device)
        else:
            fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            try:
                data = self._content(node)
                if data:
                    os.write(fd, data)
            finally:
                os.close(fd)


def _render(node: Node, history: History) -> tuple[bytes, bytes]:
    data = bytearray(node.data)
    for number, torn in node.applied:
        effect = history.effects[number]
        if effect.kind == "cut":
            del data[effect.what[0]:]
        if effect.kind in ("cut", "size"):
            data.extend(bytes(max(0, effect.what[0] - len(data))))
            continue
        offset, piece = effect.what
        piece = half(piece) if torn else piece
        data.extend(bytes(max(0, offset - len(data))))
        data[offset:offset + len(piece)] = piece
    return bytes(data), hashlib.sha256(data).digest()


def _unless_kept(new: int, old: int) -> int:
    """chown(2): -1 keeps."""
    return old if new == 0xFFFFFFFF else new


def half(piece: bytes) -> bytes:
    """What a torn write leaves: the first half, in whole sectors if there are two."""
    return piece[:len(piece) // 2 // 512 * 512 or len(piece) // 2]


def _dress(node: Node, path: str) -> None:
    if (node.uid, node.gid) != (os.geteuid(), os.getegid()):
        os.chown(path, node.uid, node.gid, follow_symlinks=False)
    for name, value in node.xattrs.items():
        os.setxattr(path, name, value, follow_symlinks=False)
    if node.kind != "symlink":
        os.chmod(path, stat.S_IMODE(node.mode))
    if node.mtime is not None:
        os.utime(path, ns=(node.mtime, node.mtime), follow_symlinks=False)


def read(directory: str, *, ignored: Sequence[str] = ()) -> Mapping[int, Node]:
    """The tree in *directory* as nodes by number: 0 is the directory itself, the others as they come."""
    nodes: dict[int, Node] = {}
    known: dict[int, int] = {}

    def walk(path: str) -> int:
        status = os.lstat(path)
        if not stat.S_ISDIR(status.st_mode) and status.st_ino in known:
            return known[status.st_ino]
        number = known[status.st_ino] = len(nodes)
        node = nodes[number] = _read(path, status)
        if node.kind == "dir":
            for name in sorted(set(os.listdir(path)) - set(ignored)):
                node.entries[name] = walk(os.path.join(path, name))
        return number

    walk(directory)
    return nodes


def _read(path: str, status: os.stat_result) -> Node:
    kind = {stat.S_IFREG: "file", stat.S_IFDIR: "dir", stat.S_IFLNK: "symlink"}.get(stat.S_IFMT(status.st_mode), "special")
    mode = status.st_mode if kind == "special" else stat.S_IMODE(status.st_mode)
    node = Node(kind, mode, status.st_uid, status.st_gid, status.st_mtime_ns, inode=status.st_ino, device=status.st_rdev)
    names = os.listxattr(path, follow_symlinks=False)
    node.xattrs = {name: os.getxattr(path, name, follow_symlinks=False) for name in names}
    if kind == "symlink":
        node.target = os.readlink(path)
    elif kind == "file":
        with open(path, "rb") as file:
            node.data = file.read()
    return node


__all__ = ["ROOT", "Image", "Node", "half", "read"]
