"""How a new store's trees are to be: what is decided once, when it is made, and recorded in ``store.json``.

Reads nothing but this process's own maps of ids; writing it down is ``handle``'s.
"""

from __future__ import annotations

from collections.abc import Sequence

from layerstore.errors import InvalidArgumentError
from layerstore.system import idmap, privilege
from layerstore.values import dataclass

__all__ = ["Form"]


@dataclass(frozen=True, slots=True)
class Form:
    """How a new store's trees are to be. None: as this process's privileges and user namespace suggest."""

    overlay: str | None = None
    uid_map: Sequence[Sequence[int]] | None = None
    gid_map: Sequence[Sequence[int]] | None = None

    def id_map(self) -> dict[str, list[list[int]]] | None:
        """Container ids to ids of the initial user namespace, to be recorded; None: they are the same.

        InvalidArgumentError for a map that cannot be. Without one, it is that of the user namespace: what is made in it
        is then known for what it is from outside, too.
        """
        own = {kind: privilege.own_map(kind) for kind in ("uid", "gid")}
        if self.uid_map is None and self.gid_map is None:
            inside = any(each != idmap.WHOLE for each in own.values())
            return {kind: [list(r) for r in each] for kind, each in own.items()} if inside else None
        uids = self.uid_map if self.uid_map is not None else self.gid_map
        gids = self.gid_map if self.gid_map is not None else self.uid_map
        given = {"uid": uids or (), "gid": gids or ()}
        try:
            made = {kind: idmap.shown_outside(idmap.checked(each), own[kind]) for kind, each in given.items()}
        except ValueError as error:
            raise InvalidArgumentError(f"the map of ids will not do: {error}") from error
        return {kind: [list(r) for r in each] for kind, each in made.items()}
