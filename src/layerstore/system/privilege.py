"""What this process may do to files that are not its own: asked of the kernel, never guessed from the user ID.

In a user namespace everybody who made it is user 0, with privileges over the ids that the namespace maps, and those only;
a container's root may lack some of root's. Reading /proc belongs here, and what it means; no effects.
"""

from __future__ import annotations

import os

from layerstore.system import kernel
from layerstore.system.idmap import WHOLE, Range
from layerstore.values import dataclass

__all__ = ["Powers", "own_map"]

_CHOWN, _DAC_OVERRIDE, _DAC_READ_SEARCH, _MKNOD = 0, 1, 2, 27  # bits of CapEff (linux/capability.h)


@dataclass(frozen=True, slots=True)
class Powers:
    """``chowns``: may give files away, to ids of its user namespace. ``reads_all``: no mode keeps it from reading.

    ``makes_devices``: may make device nodes. ``is_root``: root of the initial user namespace, or as good.
    """

    uid: int
    chowns: bool
    reads_all: bool
    makes_devices: bool
    is_root: bool

    @classmethod
    def of_this_process(cls) -> Powers:
        """As the calling thread has them now."""
        uid, initial_root = os.geteuid(), kernel.has_trusted_xattrs()
        caps = _effective()
        if caps is None:                 # no /proc
            caps = ~0 if uid == 0 else 0
        return cls(
            uid, chowns=bool(caps >> _CHOWN & 1), reads_all=bool((caps >> _DAC_OVERRIDE | caps >> _DAC_READ_SEARCH) & 1),
            makes_devices=initial_root and bool(caps >> _MKNOD & 1), is_root=initial_root,
        )

    def may_chown(self, uid: int) -> bool:
        """Whether chown(2) is worth trying: without privilege an owner may only change its own files' group."""
        return self.chowns or uid == self.uid


def _effective() -> int | None:
    """The effective capabilities, as a bit set; None if they cannot be had."""
    try:
        with open("/proc/thread-self/status", "rb") as file:
            for line in file:
                if line.startswith(b"CapEff:"):
                    return int(line.split()[1], 16)
    except (OSError, ValueError):
        return None
    return None


def own_map(kind: str) -> tuple[Range, ...]:
    """The map of this process's user namespace, as (inside, outside, size); *kind* is ``uid`` or ``gid``."""
    try:
        with open(f"/proc/thread-self/{kind}_map", encoding="ascii") as file:
            return tuple((int(a), int(b), int(c)) for a, b, c in (line.split() for line in file))
    except FileNotFoundError:            # a kernel without user namespaces
        return WHOLE
