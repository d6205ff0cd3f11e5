"""Content by the manifests of other committed layers: what no index has, as it is small, or as the index is damaged.

Read once for each layer that is repaired, and only if it must be: it walks every manifest on the path. Reads only.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field

from layerstore.errors import DamagedError
from layerstore.formats.manifest import NAME as MANIFEST
from layerstore.formats.manifest import ManifestEntry, final_entries
from layerstore.formats.packed import open_regular
from layerstore.lifecycle import catalog
from layerstore.lifecycle.states import State
from layerstore.opening.beneath import looking, open_tree
from layerstore.opening.handle import Handle

__all__ = ["Listed"]

_MOST = 8                                # places that are kept for one digest: any of them may be rotten, too


@dataclass
class Listed:
    """Where the digests are said to be that were asked for, in all layers but *without*."""

    handle: Handle
    without: str
    _asked: set[bytes] = field(default_factory=set)
    _found: dict[bytes, list[tuple[str, ManifestEntry]]] = field(default_factory=dict)

    def look_for(self, digests: Collection[bytes]) -> None:
        """Walk the manifests for those that were not asked for before."""
        wanted = set(digests) - self._asked
        if not wanted:
            return
        self._asked |= wanted
        with looking(self.handle) as view:
            layers = [each.id for each in catalog.layers(view) if each.state == State.COMMITTED and each.id != self.without]
        for layer_id in layers:
            try:
                with open_tree(self.handle, layer_id) as tree_fd, open_regular(MANIFEST, tree_fd) as fd:
                    self._take(layer_id, fd, wanted)
            except (OSError, DamagedError):
                continue                 # deleted meanwhile, or damaged itself

    def _take(self, layer_id: str, fd: int, wanted: Collection[bytes]) -> None:
        for entry in final_entries(fd):
            if entry.sha256 in wanted and entry.type == "file":
                assert entry.sha256 is not None
                places = self._found.setdefault(entry.sha256, [])
                if len(places) < _MOST:
                    places.append((layer_id, entry))

    def places(self, digest: bytes) -> list[tuple[str, ManifestEntry]]:
        """IDs of layers, and the entry of the file there, as far as ``look_for`` found any."""
        return self._found.get(digest, [])
