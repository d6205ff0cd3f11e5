"""Workloads that write beside the store: views, pushed images, a snapshot, a quota; and who reads them.

The ledger's subjects are ``beside:<what>``, which the store's own oracle does not know (``apart``). ``look`` reads what a
crash left as another tool would, before anybody opens the store. In ``-killed`` a process is killed in the middle, and
the next one finds what the first had not yet made durable: it must not build on it.
"""

from __future__ import annotations

import os

from crash import workloads as w
from crash.beside import pushes, settings, views
from crash.beside.common import apart
from crash.content import picture
from crash.workloads import Images, Workload

__all__ = ["apart", "build"]


def build(images: Images, directory: str) -> dict[str, Workload]:
    """All of them, by name; a third image is written to *directory*."""
    third = picture(os.path.join(directory, "third"), [w.ONE, w.FOUR])
    one, two = images.first, images.second
    return {each.name: each for each in (*views.build(one, two, third), *pushes.build(one, two), *settings.build())}
