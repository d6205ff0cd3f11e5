"""The one oracle: what must hold of a store after any crash, once it has been opened again."""

from __future__ import annotations

import os
import sys

import layerjournal
import layerstore
from layerstore.recover import dry_run
from layerstore.store import Store


def violations(root: str, *, content: bool = True) -> list[str]:
    """Open the store at *root* (which recovers it) and list everything that is wrong with it.

    Opens without error · journal gapless, chain intact, catalog = fold(log) · every committed layer whole, every
    image's layers there · nothing in ``staging/``, ``trash/``, ``images/``, ``layers/`` or ``uppers/`` that the
    journal does not know · a second recovery does nothing and leaves the same canonical dump.
    """
    try:
        with layerstore.open(root) as store:
            found = [f"{f.code} {f.subject}: {f.message}" for f in store.check(content=content).findings]
            found += _strangers(store)
            first = dump(store)
        with layerstore.open(root) as store:
            if not store.recovery.clean:
                found.append(f"a second recovery did something: {store.recovery.actions}")
            if dump(store) != first:
                found.append("a second recovery changed the catalog")
            if not dry_run(store._handle).clean:  # noqa: SLF001 - the oracle may look inside
                found.append("recovery left something to do")
    except Exception as error:  # noqa: BLE001 - whatever it is, it is a violation
        print(f"oracle: {error!r}", file=sys.stderr)  # noqa: T201
        return [f"the store does not open: {error!r}"]
    return found


def dump(store: Store) -> bytes:
    """The canonical dump of the catalog: equal bytes, equal catalog."""
    return layerjournal.canonical_dump(store._handle.journal.fold())  # noqa: SLF001


def _strangers(store: Store) -> list[str]:
    """What lies in the store's directories without a row."""
    with store._handle.read() as view:  # noqa: SLF001
        rows = dict(view.scan("layers"))
        images = {key for key, _ in view.scan("images")}
        mounts = {key for key, _ in view.scan("mounts")}
    expected = {
        "staging": {t for t, r in rows.items() if r["state"] in ("staging", "staged", "creating", "incomplete")},
        "trash": {t for t, r in rows.items() if r["state"] == "gone"},
        "layers": {r["layer_id"] for r in rows.values() if r["state"] in ("committed", "quarantined", "deleting")},
        "images": images, "uppers": mounts,
    }
    found = []
    for directory, known in expected.items():
        there = set(os.listdir(os.path.join(store.root, directory)))
        found += [f"{directory}/{name} is there, and no row knows it" for name in sorted(there - known)]
        if directory in ("layers", "staging"):
            found += [f"{directory}/{name} has a row, and is not there" for name in sorted(known - there)]
    return found
