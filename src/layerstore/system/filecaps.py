"""``security.capability`` by way of a map of ids: whose root's privileges a file gives.

An archive has version 2 of it, which means the root of whoever unpacks. On disk, for the root of a user namespace, that is
version 3, with the host's ID of that root (capabilities(7), "Namespaced file capabilities"): the kernel makes it so for who
writes from inside the namespace, and only for them. Pure; the layout is struct vfs_ns_cap_data of linux/capability.h.
"""

from __future__ import annotations

from layerstore.system.idmap import IdMap

__all__ = ["NAME", "from_disk", "is_of_another_root", "is_whole", "portable", "to_disk"]

NAME = b"security.capability"
_V2, _V3, _REVISION = 0x0200_0000, 0x0300_0000, 0xFF00_0000
_V2_SIZE, _V3_SIZE = 20, 24
_EFFECTIVE = 1                           # the only flag


def is_whole(value: bytes) -> bool:
    """Whether Linux takes *value*, and gives it back: of another version, size or flags it does not (commoncap.c)."""
    magic = int.from_bytes(value[:4], "little") & ~_EFFECTIVE
    return (len(value), magic) in ((_V2_SIZE, _V2), (_V3_SIZE, _V3))


def is_of_another_root(value: bytes) -> bool:
    """Whether *value* of an archive names the ID of a root, which it had on the host where the archive was made."""
    return _revision(value) == _V3


def portable(value: bytes) -> bytes:
    """*value* as an archive shall have it: the ID of that root means nothing elsewhere (so do the field's writers)."""
    return _with_revision(value, _V2)[:_V2_SIZE] if _revision(value) == _V3 and len(value) == _V3_SIZE else value


def to_disk(value: bytes, ids: IdMap) -> bytes:
    """What this process is to write for *value* of an archive."""
    root = ids.uid(0)
    if not root or _revision(value) != _V2 or len(value) != _V2_SIZE:   # root's own namespace: the kernel does it
        return value
    return _with_revision(value, _V3) + root.to_bytes(4, "little")


def from_disk(value: bytes, ids: IdMap) -> bytes:
    """What an archive has for what this process reads as *value*."""
    if _revision(value) != _V3 or len(value) != _V3_SIZE or int.from_bytes(value[_V2_SIZE:], "little") != ids.uid(0):
        return value
    return _with_revision(value, _V2)[:_V2_SIZE]


def _revision(value: bytes) -> int:
    return int.from_bytes(value[:4], "little") & _REVISION


def _with_revision(value: bytes, revision: int) -> bytes:
    return (int.from_bytes(value[:4], "little") & ~_REVISION | revision).to_bytes(4, "little") + value[4:]
