"""Which ids on disk stand for which ids of an archive. Pure: maps, their composition and their inverse.

A map is a list of ranges ``(container, host, size)``, as in user_namespaces(7) and /etc/subuid: ids ``container`` …
``container + size - 1`` are ``host`` …. What a store records are host ids of the initial user namespace; a process in
another namespace sees them by way of its own map. Nothing else belongs here.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from layerstore.values import dataclass

__all__ = ["IDENTITY", "WHOLE", "IdMap", "Range", "checked", "seen_from", "shown_outside"]

Range = tuple[int, int, int]
_END = 1 << 32                           # ids are 32 bits; the last one means "none" (chown(2))
WHOLE: tuple[Range, ...] = ((0, 0, _END - 1),)
_MAX_RANGES = 340                        # as many as the kernel takes (user_namespaces(7))


def checked(ranges: Sequence[Sequence[int]]) -> tuple[Range, ...]:
    """*ranges*, sorted by container ID. ValueError if they overlap, are out of range, or are no ranges at all."""
    found: list[Range] = []
    for each in ranges:
        if len(each) != 3 or not all(type(n) is int for n in each):
            raise ValueError(f"{each!r} is not (container, host, size)")
        container, host, size = each
        if size < 1 or min(container, host) < 0 or max(container, host) + size >= _END:
            raise ValueError(f"the range {container}:{host}:{size} is empty or leaves the ids that there are")
        found.append((container, host, size))
    if not 0 < len(found) <= _MAX_RANGES:
        raise ValueError(f"{len(found)} ranges: there must be between 1 and {_MAX_RANGES}")
    for side in (0, 1):
        inorder = sorted(found, key=lambda r: r[side])
        for one, other in pairwise(inorder):
            if one[side] + one[2] > other[side]:
                raise ValueError(f"the ranges {one} and {other} overlap")
    return tuple(sorted(found))


def seen_from(ranges: Sequence[Range], own: Sequence[Range]) -> tuple[Range, ...]:
    """*ranges*, whose host ids are the initial namespace's, as a process whose namespace has the map *own* sees them."""
    found = []
    for container, host, size in ranges:
        for inside, outside, length in own:
            start, end = max(host, outside), min(host + size, outside + length)
            if start < end:
                found.append((container + start - host, inside + start - outside, end - start))
    return tuple(sorted(found))


def shown_outside(ranges: Sequence[Range], own: Sequence[Range]) -> tuple[Range, ...]:
    """*ranges*, whose host ids are those of a namespace with the map *own*, with the ids outside of it.

    ValueError if the namespace does not have one of them.
    """
    found: list[Range] = []
    for container, host, size in ranges:
        parts = [
            (container + start - host, outside + start - inside, end - start)
            for inside, outside, length in own
            if (start := max(host, inside)) < (end := min(host + size, inside + length))
        ]
        if sum(part[2] for part in parts) != size:
            raise ValueError(f"this process's user namespace does not have all of the ids {host} … {host + size - 1}")
        found += parts
    return tuple(sorted(found))


@dataclass(frozen=True, slots=True)
class IdMap:
    """Container ids to the ids that this process sees on disk. None: they are the same."""

    uids: tuple[Range, ...] | None = None
    gids: tuple[Range, ...] | None = None

    def uid(self, container: int) -> int | None:
        """The user ID on disk; None if there is none, or none that this process's namespace has."""
        return container if self.uids is None else _look_up(self.uids, container, 0)

    def gid(self, container: int) -> int | None:
        return container if self.gids is None else _look_up(self.gids, container, 0)

    def container_uid(self, host: int) -> int | None:
        """The other way round."""
        return host if self.uids is None else _look_up(self.uids, host, 1)

    def container_gid(self, host: int) -> int | None:
        return host if self.gids is None else _look_up(self.gids, host, 1)

    @property
    def same(self) -> bool:
        """Whether all ids that this process sees on disk are the archive's own: inside the map's namespace."""
        seen = [*(self.uids or WHOLE), *(self.gids or WHOLE)] if () not in (self.uids, self.gids) else []
        return bool(seen) and all(container == host for container, host, _size in seen)


IDENTITY = IdMap()


def _look_up(ranges: tuple[Range, ...], number: int, side: int) -> int | None:
    for each in ranges:
        if each[side] <= number < each[side] + each[2]:
            return number - each[side] + each[1 - side]
    return None
