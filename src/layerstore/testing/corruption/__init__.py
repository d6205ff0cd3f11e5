"""Corruption on purpose: seeded damage of every kind to a store at rest, and whether check and repair do what they promise.

::

    campaign = Campaign(root, sources=["oci:./image"])
    for result in campaign.run(range(2000)):
        assert not result.violations, result

Each seed draws one damage: what (a bit, a length, a name, a mode …) and where (content, manifest, side file, segment,
database …). It is done to a copy of the store, looked for at each depth, repaired or rebuilt, compared with what was there
before, byte for byte, and undone: so a seed means the same damage, whichever others are tried. For the command line:
``python -m layerstore.testing.corruption ROOT --seeds 2000 [--source SOURCE]``.

* ``places``    what the files of a store are for, and which is drawn
* ``damages``   what is done to files, links and directories; ``bytewise``: to the bytes of the journal's
* ``keeping``   what is another than it was, and how it becomes that again
* ``judging``   what must be true afterwards, of layers and images; ``journaling``: of the journal; ``limits``: of the quota
"""

from __future__ import annotations

import os
import random
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial

import layerstore
from layerstore.testing.children import ChildDiedError, in_workers, telling
from layerstore.testing.copies import copy_store
from layerstore.testing.corruption import limits
from layerstore.testing.corruption.bytewise import damage
from layerstore.testing.corruption.damages import KINDS, suits
from layerstore.testing.corruption.journaling import Catalog, catalog_of, judge_journal
from layerstore.testing.corruption.judging import Judge, Result, compare, is_advice
from layerstore.testing.corruption.keeping import Changes, Kept
from layerstore.testing.corruption.places import JOURNAL, Places, owner_of

__all__ = ["KINDS", "Campaign", "Result"]

WHOLE_EVERY = 20
"""Of so many seeds one has every layer looked at, at every depth; see ``Judge``."""


@dataclass(frozen=True, slots=True)
class _Sound:
    """What was found of the whole store: the first finding, if any; its catalog; which source has which layer or image."""

    finding: str
    catalog: Catalog
    sources: dict[str, str]


class Campaign:
    """A store whose copy is damaged and mended, over and over.

    Args:
        root: a store that nobody uses meanwhile. It is only read.
        sources: references, as for ``Store.pull``, of images that the store has. What cannot be had in the store is tried
            from there; what no source has must be quarantined.
        workers: processes, each with a copy of its own.

    Durability: the copies are in a directory beside *root*, which is removed again; nothing is synced.

    """

    def __init__(self, root: str, *, sources: Sequence[str] = (), workers: int = 1) -> None:
        self.root, self._sources, self._workers = os.path.abspath(root), tuple(sources), workers
        self.tally: Counter[tuple[str, str, str, str]] = Counter()

    def run(self, seeds: Iterable[int]) -> Iterator[Result]:
        """Damage and mend the copy once for each seed.

        Args:
            seeds: what is drawn; the same seed over the same store does the same damage.

        Returns:
            An iterator over the results, in the seeds' order.

        Raises:
            AssertionError: the store was not sound to begin with, or has no image of a source.

        Durability: as for the class.

        """
        work = tempfile.mkdtemp(prefix=f"{os.path.basename(self.root)}.campaign-", dir=os.path.dirname(self.root))
        try:
            whole, numbers = os.path.join(work, "whole"), list(seeds)
            copy_store(self.root, whole)
            sound = telling(partial(_prepare, whole, self._sources))
            assert not sound.finding, f"the store is not sound: {sound.finding}"
            shares = [
                partial(_share, sound, whole, os.path.join(work, f"damaged-{n}"), numbers[n::self._workers])
                for n in range(self._workers)
            ]
            for result in in_workers(shares):
                self.tally[result.purpose, result.kind, result.depth, result.outcome] += 1
                yield result
        finally:
            shutil.rmtree(work, ignore_errors=True)


def _prepare(whole: str, sources: Sequence[str]) -> _Sound:
    """Nothing is left to recover, each layer is noted as sound, and the archive is not empty."""
    has: dict[str, str] = {}
    with layerstore.open(whole) as store:
        for each in sources:
            image = store.pull(each, names=())
            assert not image.created, f"the store does not have the image of {each}"
            has |= dict.fromkeys((*image.layers, image.id), each)
        if not os.listdir(os.path.join(whole, "journal", "segments")):
            store.checkpoint(archive=True)
        store.checkpoint()
        findings = store.check(content=True, workers=1, note=True).findings
        return _Sound(str(findings[0]) if findings else "", catalog_of(store), has)


def _share(sound: _Sound, whole: str, root: str, seeds: Sequence[int]) -> Iterator[Result]:
    """The results of *seeds*, done to a copy of *whole* at *root*."""
    kept = Kept(whole, root)
    bench = _Bench(kept, sound, Places.of(kept.paths()), Judge(kept, sound.sources))
    for seed in seeds:
        yield bench.one(seed)


@dataclass(frozen=True, slots=True)
class _Bench:
    kept: Kept
    sound: _Sound
    places: Places
    judge: Judge

    def one(self, seed: int) -> Result:
        """Do the damage of *seed*, have it judged in a child, and undo everything."""
        draw = random.Random(seed)  # noqa: S311 - a draw that can be made again
        purpose = self.places.purpose(draw)
        try:
            if purpose in JOURNAL:
                return self._hit_journal(seed, purpose, draw)
            if purpose == "quota":
                result = Result(seed, purpose, limits.hit(self.kept.root, draw), limits.NAME)
                return self._told(result, partial(limits.judge_quota, result, self.kept.whole, self.kept.root), {})
            return self._hit_tree(seed, purpose, draw)
        finally:
            self.kept.restore()

    def _hit_journal(self, seed: int, purpose: str, draw: random.Random) -> Result:
        path = draw.choice(self.places.some(purpose, draw))
        with open(f"{self.kept.root}/{path}", "rb") as file:
            done = damage(file.read(), seed, 0)
        done.apply(f"{self.kept.root}/{path}")
        result = Result(seed, purpose, done.kind, path)
        judge = partial(judge_journal, result, self.kept, self.sound.catalog, whole=_is_whole(seed))
        return self._told(result, judge, {})

    def _hit_tree(self, seed: int, purpose: str, draw: random.Random) -> Result:
        kind, path = self._draw(purpose, draw)
        if not is_advice(path):   # so that the check does not go by what it found before
            with suppress(OSError):
                os.unlink(f"{self.kept.root}/layers/{owner_of(path)}/checked")
        result = Result(seed, purpose, kind, path)
        done = KINDS[kind](f"{self.kept.root}/{path}", draw)
        top = f"layers/{owner_of(path)}" if path.startswith("layers/") else path.split("/")[0]
        hit = {each: what for each, what in self.kept.changed(top).items() if not each.endswith("/checked")}
        if not done or not hit or all(is_advice(each) for each in hit):
            result.outcome = "no effect"
            result.why = ("nothing was changed: there is no other file to swap it with" if not done
                          else "it is advice: nothing rests on it that is promised" if purpose == "advice"
                          else "nothing that counts: attributes of a whiteout")
        return self._told(result, partial(self.judge.judge, result, hit, whole=_is_whole(seed)), hit)

    def _draw(self, purpose: str, draw: random.Random) -> tuple[str, str]:
        while True:
            kind, some = draw.choice(sorted(KINDS)), self.places.some(purpose, draw)
            suited = [each for each in some if suits(kind, each, os.lstat(f"{self.kept.whole}/{each}"))]
            if suited:
                return kind, draw.choice(suited)

    def _told(self, result: Result, judge: partial[Result], hit: Changes) -> Result:
        """What *judge* says, in a child, and what is on the disk then."""
        try:
            result = telling(judge)
        except ChildDiedError as error:
            result.violations.append(f"the process died: {error}")
        compare(result, hit, self.kept.changed())
        return result


def _is_whole(seed: int) -> bool:
    return seed % WHOLE_EVERY == 0
