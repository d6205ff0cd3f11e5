"""Every sequence of at most three operations over at most three layers with one parent; none twice up to renaming.

The layers A, B and C are interchangeable: two sequences that differ only in their names are one, written with the
names in the order of their first use. An operation stands where it has something to work on: a deletion
needs its layer, a batch needs two that are absent. ``put`` of a layer that is there is a duplicate apply; ``put`` after
``drop`` creates the ID again, with other content.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import permutations

import layerstore
from crash.content import Picture, content
from crash.persistence.recording import Recorder
from crash.workloads import BASE, BASE_ID, drop, pull, put, stage
from layerstore import LayerSpec
from layerstore.store import Store
from layerstore.testing.ledger import layer

LETTERS = "ABC"
LONGEST = 3
IDS = {letter: letter.lower() * 63 + "0" for letter in LETTERS}
VERSIONS = {letter: [content(f"seq-{letter}{n}", size=600) for n in range(LONGEST)] for letter in LETTERS}
Sequence_ = tuple[str, ...]


@dataclass(frozen=True)
class Known:
    """What a sequence has come to: which layers are there, how often each was deleted, how many names are used."""

    present: frozenset[str] = frozenset()
    deleted: tuple[int, ...] = (0, 0, 0)
    used: int = 0

    def version(self, letter: str) -> int:
        return self.deleted[LETTERS.index(letter)]

    def after(self, operation: str) -> Known:
        verb, *letters = operation.split()
        used = max([self.used, *(LETTERS.index(each) + 1 for each in letters)])
        if verb in ("put", "both"):
            return Known(self.present | set(letters), self.deleted, used)
        if verb == "drop":
            return self._without(set(letters), used)
        if verb == "collect":
            return self._without(self.present, used)
        return Known(self.present, self.deleted, used)

    def _without(self, gone: set[str] | frozenset[str], used: int) -> Known:
        counts = tuple(n + (letter in gone) for n, letter in zip(self.deleted, LETTERS, strict=True))
        return Known(self.present - gone, counts, used)

    def operations(self) -> Iterator[str]:
        """What may come next."""
        known = LETTERS[:self.used + 1]     # those in use, and the next new one
        for letter in known:
            yield f"put {letter}"
            if letter in self.present:
                yield f"drop {letter}"
            else:
                yield f"stage {letter}"
        for n, one in enumerate(known):
            for two in LETTERS[n + 1:max(self.used, n + 1) + 1]:
                if not {one, two} & self.present:
                    yield f"both {one} {two}"
        yield from ("checkpoint", "collect", "pull")


def sequences(longest: int = LONGEST) -> list[Sequence_]:
    """All of them, the shorter ones first."""
    level: list[tuple[Sequence_, Known]] = [((), Known())]
    found: list[Sequence_] = []
    for _ in range(longest):
        longer = {}
        for done, known in level:
            for each in known.operations():
                longer.setdefault(canonical((*done, each)), ((*done, each), known.after(each)))
        level = list(longer.values())
        found += [done for done, _ in level]
    return found


def canonical(sequence: Sequence_) -> Sequence_:
    """The same for every renaming of the layers."""
    return min(renamed(sequence, dict(zip(LETTERS, order, strict=True))) for order in permutations(LETTERS))


def renamed(sequence: Sequence_, names: dict[str, str]) -> Sequence_:
    """The sequence with its layers renamed; a batch's are named in order."""
    words = [[names.get(word, word) for word in each.split()] for each in sequence]
    return tuple(" ".join([verb, *sorted(letters)]) for verb, *letters in words)


def states_before(sequence: Sequence_) -> list[Known]:
    """What is known before each operation, and at the end."""
    known = [Known()]
    for each in sequence:
        known.append(known[-1].after(each))
    return known


def perform(sequence: Sequence_, root: str, recorder: Recorder, picture: Picture) -> None:
    """Do it, on a store that has the parent. The mark ``run`` stands before the last operation.

    The crash states before that are those of the shorter sequence.
    """
    with layerstore.open(root) as store:
        put(store, recorder.ledger, BASE, BASE_ID, names=("base",))
        for number, (operation, known) in enumerate(zip(sequence, states_before(sequence), strict=False), 1):
            if number == len(sequence):
                recorder.mark("run")
            _perform(operation, known, store, recorder, picture)


def _perform(operation: str, known: Known, store: Store, recorder: Recorder, picture: Picture) -> None:
    verb, *letters = operation.split()
    ledger = recorder.ledger
    if verb == "put":
        put(store, ledger, VERSIONS[letters[0]][known.version(letters[0])], IDS[letters[0]], parent=BASE_ID)
    elif verb == "stage":
        stage(store, VERSIONS[letters[0]][known.version(letters[0])]).release()
    elif verb == "drop":
        drop(store, ledger, IDS[letters[0]])
    elif verb == "both":
        made = [VERSIONS[each][known.version(each)] for each in letters]
        staged = [stage(store, each) for each in made]
        with ledger.asking(*(layer(IDS[n], each.diff_id) for n, each in zip(letters, made, strict=True))):
            store.apply_batch([LayerSpec(s, id=IDS[n], parent=BASE_ID) for n, s in zip(letters, staged, strict=True)])
    elif verb == "checkpoint":
        store.checkpoint(archive=True)
    elif verb == "collect":
        with ledger.asking(*(layer(IDS[each], None) for each in sorted(known.present))):
            store.collect_garbage(retention=0, grace=0)
    else:
        pull(store, ledger, picture, "app")


def again(sequence: Sequence_, picture: Picture) -> Callable[[Store], object]:
    """What a user does afterwards: see that every layer is there that should be, and the image, if it was pulled."""
    known = states_before(sequence)[-1]

    def do(store: Store) -> None:
        here = {each.id for each in store.layers()}
        for letter in sorted(known.present):
            if IDS[letter] not in here:
                with stage(store, VERSIONS[letter][known.version(letter)]) as staged:
                    store.apply_staged_layer(staged, id=IDS[letter], parent=BASE_ID)
        if "pull" in sequence:
            store.pull(picture.reference, names=["app"])

    return do


__all__ = ["IDS", "LETTERS", "LONGEST", "Known", "again", "canonical", "perform", "renamed", "sequences", "states_before"]
