"""Who has to mount again what a repair changed: to change a mounted lower tree is undefined for overlayfs. Reads only.

Three lists, for none of them has all: this store's own mounts, also of other mount namespaces; the leases of views, whose
containers another program mounts; and what the kernel says is mounted, by whomever, such as a store above this one.
"""

from __future__ import annotations

import os
from collections.abc import Collection

from layerstore.lifecycle import catalog
from layerstore.opening.beneath import diff_path
from layerstore.opening.handle import Handle
from layerstore.trees import mounted

__all__ = ["of"]


def of(handle: Handle, changed: Collection[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Where layers *changed* are mounted, and the leases of views that show one of them."""
    if not changed:
        return (), ()
    with handle.read() as view:
        own = {each.target for each in catalog.mounts(view) if each.mounted and not set(each.layers).isdisjoint(changed)}
        views = [each.name for each in catalog.leases(view)
                 if each.name.startswith("view:") and not set(each.layers).isdisjoint(changed)]
    others = mounted.overlays_over([os.path.abspath(diff_path(handle, each)) for each in sorted(changed)])
    return tuple(sorted({*own, *others})), tuple(sorted(views))
