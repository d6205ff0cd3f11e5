"""The one oracle: what must hold of a store after any crash, once it has been opened again.

It opens the store through the public API and compares what it serves with the ledger; it reads trees from the disk
with code that knows nothing of layerstore (``trees``); only the canonical dump, and what lies in the store's own
directories, are looked at from inside.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import layerjournal
import layerstore
from layerstore.recovery.recover import dry_run
from layerstore.store import Store
from layerstore.testing.ledger import Expectation, Value
from layerstore.testing.trees import Tree, differences, read_tree
from layerstore.verbs.check import Finding


@dataclass(slots=True)
class Verdict:
    """What the oracle saw. ``redo``: what the first recovery had to do; ``dump``: the catalog after it, canonical."""

    violations: list[str] = field(default_factory=list)
    redo: list[str] = field(default_factory=list)
    dump: bytes = b""
    happened: bool | None = None   # whether the last thing that was asked for, and not answered, came about


def examine(
    root: str, *, content: bool = True, expect: Expectation | None = None, trees: Mapping[str, Tree] | None = None,
    again: Callable[[Store], object] | None = None, clock: Callable[[], int] = time.time_ns,
) -> Verdict:
    """Open the store at *root* (which recovers it) and look for everything that is wrong with it.

    Opens without error · journal gapless, chain intact, catalog = fold(log) · every committed layer whole, every
    image's layers there, no layer without its parent · nothing in ``staging/``, ``trash/``, ``images/``, ``layers/``
    or ``uppers/`` that the journal does not know · a second recovery does nothing and leaves the same canonical dump.

    Args:
        root: the store's directory.
        content: compare every file's digest, not only the structure.
        expect: from a ledger: what was told must be so, what was left open wholly so or not, nothing else there.
        trees: by diffID, the tree of every layer that may be there, compared with the disk.
        again: the program once more, on the open store, at the end: it must succeed, and all must hold still.
        clock: what the recovery writes down as the time, so that the dumps of two recoveries can be compared.

    Returns:
        What was seen. Nothing is raised for a damaged store: whatever goes wrong is a violation in it. (A database
        that is damaged badly enough kills its reader: see ``telling``.)

    Durability: opening recovers the store; apart from that, and from what *again* does, nothing is changed.

    """
    verdict = Verdict()
    try:
        _examine(root, verdict, content, expect, trees, again, clock)
    except Exception as error:  # noqa: BLE001 - whatever it is, it is a violation
        print(f"oracle: {error!r}", file=sys.stderr)  # noqa: T201
        verdict.violations.append(f"the store does not open, or cannot be used: {error!r}")
    return verdict


def violations(root: str, *, content: bool = True) -> list[str]:
    """Look for everything that is wrong with a store, without a ledger.

    Args:
        root: the store's directory.
        content: compare every file's digest, not only the structure.

    Returns:
        What ``examine`` finds, a line each; empty for a sound store.

    Durability: opening recovers the store.

    """
    return examine(root, content=content).violations


def dump(store: Store) -> bytes:
    """Dump the catalog canonically: equal bytes, equal catalog.

    Args:
        store: an open store.

    Returns:
        The bytes.

    Durability: reads only.

    """
    return layerjournal.canonical_dump(store._handle.journal.fold())  # noqa: SLF001


def _examine(
    root: str, verdict: Verdict, content: bool, expect: Expectation | None, trees: Mapping[str, Tree] | None,
    again: Callable[[Store], object] | None, clock: Callable[[], int],
) -> None:
    found = verdict.violations
    with layerstore.open(root, clock=clock) as store:
        verdict.redo = [f"{a.do.value} {a.key}" for a in store.recovery.actions]
        facts = served(store)
        if expect is not None and any(each.startswith("damage:") for each in expect.allowed):
            facts |= damages(store, content=content)
        found += _look(store, content=content, trees=trees, expect=expect)
        if expect is not None:
            found += compare(facts, expect)
            verdict.happened = _happened(facts, expect)
        verdict.dump = dump(store)
    with layerstore.open(root, clock=clock) as store:
        if not store.recovery.clean:
            found.append(f"a second recovery did something: {store.recovery.actions}")
        if dump(store) != verdict.dump:
            found.append("a second recovery changed the catalog")
        if not dry_run(store._handle).clean:  # noqa: SLF001 - the oracle may look inside
            found.append("recovery left something to do")
        if again is not None and not found:
            again(store)
            found += [f"after doing it again: {each}" for each in _look(store, content=content, trees=trees, expect=None)]


def _look(
    store: Store, *, content: bool, trees: Mapping[str, Tree] | None, expect: Expectation | None,
) -> list[str]:
    allowed = expect or Expectation()
    findings = store.check(content=content, workers=1).findings
    found = [f"{f.code} {f.subject}: {f.message}" for f in findings if not _is_told_of(f, allowed)]
    damaged = {f.subject for f in findings if _is_told_of(f, allowed)}
    found += _strangers(store, allowed)
    layers = {each.id: each for each in store.layers()}
    for each in layers.values():
        if each.parent is not None and each.parent not in layers:
            found.append(f"layer {each.id[:12]} is visible without its parent {each.parent[:12]}")
        if trees is not None and each.id not in damaged and each.store is None:
            found += _tree_problems(store.root, each.id, each.diff_id, trees)
    for image in store.images():
        found += [f"image {image.id[:12]} lacks its layer {x[:12]}" for x in image.layers if x not in layers]
    return found


def _tree_problems(root: str, layer_id: str, diff_id: str, trees: Mapping[str, Tree]) -> list[str]:
    if diff_id not in trees:
        return [f"layer {layer_id[:12]} has the diffID {diff_id}, which nobody made"]
    try:
        tree = read_tree(os.path.join(root, "layers", layer_id, "diff"))
    except FileNotFoundError:
        return [f"layer {layer_id[:12]} has no tree"]
    lines = differences(trees[diff_id], tree)
    return [f"layer {layer_id[:12]}: {line}" for line in lines[:3]]


def served(store: Store) -> dict[str, Value]:
    """What the store serves of its own, in a ledger's words."""
    facts: dict[str, Value] = {}
    for layer in (each for each in store.layers() if each.store is None):
        facts[f"layer:{layer.id}"] = layer.diff_id if layer.state == "committed" else layer.state
        facts |= {f"name:{text}": f"layer:{layer.id}" for text in layer.names}
    for image in (each for each in store.images() if each.store is None):
        facts[f"image:{image.id}"] = "present"
        facts |= {f"name:{text}": f"image:{image.id}" for text in image.names}
    return facts


def damages(store: Store, *, content: bool) -> dict[str, Value]:
    """What is damaged, in a ledger's words."""
    return {_subject(each): "bad" for each in store.check(content=content, workers=1).findings if _is_damage(each)}


def _subject(finding: Finding) -> str:
    """Of a path, or of a whole layer, that was taken away."""
    return f"damage:{finding.subject}" + (f"/{finding.path}" if finding.code != "layer-missing" else "")


def _is_damage(finding: Finding) -> bool:
    """Whether it is of what lies on the disk: what somebody may have damaged, and a repair put right."""
    return finding.code.startswith((
        "path-", "manifest-", "tar-split-", "kept-", "side-file-", "txid-", "part-missing", "image-", "ownerless",
        "layer-missing",
    ))


def _is_told_of(finding: Finding, expect: Expectation) -> bool:
    """Whether the ledger allows for it: somebody damaged it on purpose, or it may be quarantined for that by now."""
    if finding.code == "layer-quarantined":
        return "quarantined" in expect.value(f"layer:{finding.subject}")
    return _is_damage(finding) and "bad" in expect.value(_subject(finding))


def compare(facts: Mapping[str, Value], expect: Expectation) -> list[str]:
    found = [
        f"{subject} is {facts.get(subject)}, but must be {' or '.join(sorted(map(str, expect.value(subject))))}"
        for subject in sorted(facts.keys() | expect.allowed.keys())
        if facts.get(subject) not in expect.value(subject)
    ]
    for number, asked in expect.open.items():   # all or none of what one verb alone was to bring about
        others = {pair for n, each in expect.open.items() if n != number for pair in each.items()}
        whole = {s: v for s, v in asked.items() if not s.startswith("damage:")}   # each damage is mended by itself
        came = {facts.get(s) == v for s, v in whole.items() if len(expect.value(s)) > 1 and (s, v) not in others}
        if len(came) > 1:
            found.append(f"half of what was asked for came about: {sorted(asked)}")
    return found


def _happened(facts: Mapping[str, Value], expect: Expectation) -> bool | None:
    asked = [pair for facts_ in expect.open.values() for pair in facts_.items()]
    return all(facts.get(s) == v for s, v in asked) if asked else None


def _strangers(store: Store, allowed: Expectation) -> list[str]:
    """What is without a row, or not there for one; and was not put there, or taken away, on purpose."""
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
    found = [
        f"layers/{name} still has the blob that it was made from" for name in sorted(expected["layers"])
        if os.path.lexists(os.path.join(store.root, "layers", name, "blob"))
    ]
    for directory, known in expected.items():
        there = set(os.listdir(os.path.join(store.root, directory)))
        found += [f"{directory}/{name} is there, and no row knows it" for name in sorted(there - known)
                  if "bad" not in allowed.value(f"damage:{directory}/{name}/")]
        if directory in ("layers", "staging"):
            found += [
                f"{directory}/{name} has a row, and is not there" for name in sorted(known - there)
                if "bad" not in allowed.value(f"damage:{name}")
            ]
    return found


__all__ = ["Verdict", "compare", "damages", "dump", "examine", "served", "violations"]
