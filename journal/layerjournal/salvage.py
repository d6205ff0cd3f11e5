"""What is left of a journal whose data file is damaged: its archived segments, and what the file itself still proves.

The chain proves a record, wherever it was read: each link is the digest of the link before and of the record. So a log
that is read by hand, page by page, is good as far as its chain holds, whatever else is wrong with the file. Reads only.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from layerjournal import pages, segment
from layerjournal.engine import LOG
from layerjournal.engine.datafile import DATA_FILE
from layerjournal.errors import DamagedError, RecordError
from layerjournal.record import LINK_BYTES, Record, genesis, unseal
from layerjournal.segment import Segment

_KEY_BYTES = 8


@dataclass(frozen=True, slots=True)
class Salvaged:
    """``segments`` that follow each other, then ``tail``: records of the log that follow them, each as it was stored.

    ``whole``: the tail ends where the log did, so nothing is missing. Else ``seen`` is the last record whose number
    was seen anywhere, if one was, and the tail ends with a whole group at or before it. ``bad`` are the segment files
    that are not good, with the reason. ``problems`` are those of the data file.
    """

    uuid: str
    segments: tuple[Segment, ...]
    tail: tuple[tuple[Record, bytes], ...]
    whole: bool
    seen: int | None
    bad: tuple[tuple[str, str], ...]
    problems: tuple[str, ...]

    @property
    def head(self) -> tuple[int, bytes]:
        """The last record that is proven, and its link; 0 and the first link's predecessor if there is none."""
        if self.tail:
            return self.tail[-1][0].seq, self.tail[-1][0].link
        if self.segments:
            return self.segments[-1].last, self.segments[-1].last_link
        return 0, genesis(self.uuid)


def salvage(directory: str, uuid: str, segments_dir: str, more: Sequence[str] = ()) -> Salvaged:
    """What can be proven of the journal *uuid* in *directory*; *more* are segment files from elsewhere (snapshots).

    Nothing is raised for damage. OSError for what may not be read.
    """
    good, bad = [], []
    for path in (*(os.path.join(segments_dir, name) for name in segment.list_names(segments_dir)), *more):
        try:
            loaded = segment.load(path)
            if loaded.uuid != uuid:
                raise DamagedError(f"it is of the journal {loaded.uuid}")
            good.append(loaded)
        except (DamagedError, IsADirectoryError) as error:
            bad.append((path, str(error)))
    chain = best_chain(good)
    last, link = (chain[-1].last, chain[-1].last_link) if chain else (0, genesis(uuid))
    tail, whole, seen, problems = _tail(os.path.join(directory, DATA_FILE), last, link)
    return Salvaged(uuid, chain, tail, whole, seen, tuple(bad), problems)


def best_chain(segments: Iterable[Segment]) -> tuple[Segment, ...]:
    """Of *segments*, in any order and overlapping, those that reach furthest; of these the most history."""
    best: dict[tuple[int, bytes], tuple[Segment, ...]] = {}
    for each in sorted(segments, key=lambda s: (s.last, -s.first)):
        chain = (*best.get((each.first - 1, each.prev_link), ()), each)
        end = (each.last, each.last_link)
        if end not in best or best[end][0].first > chain[0].first:
            best[end] = chain
    return max(best.values(), key=lambda chain: (chain[-1].last, -chain[0].first), default=())


_Tail = tuple[tuple[tuple[Record, bytes], ...], bool, int | None, tuple[str, ...]]


def _tail(path: str, last: int, link: bytes) -> _Tail:
    """What the log in *path* proves after record *last*: from whichever meta page gives more."""
    try:
        readings = pages.readings(path, LOG)
    except OSError as error:
        if error.errno not in pages.LOST:
            raise
        return (), False, None, (str(error),)
    best: list[tuple[Record, bytes]] = []
    seen: list[int] = []
    for reading in readings:
        records, unbroken, highest = _follow(reading, last, link)
        if unbroken and not reading.problems and reading is readings[0]:
            return tuple(records), True, highest, ()
        seen += [] if highest is None else [highest]
        best = max(best, _whole_groups(records), key=len)
    problems = readings[0].problems if readings else ["it has no meta page that can be read"]
    return tuple(best), False, max(seen, default=None), tuple(problems)


def _follow(reading: pages.Reading, last: int, link: bytes) -> tuple[list[tuple[Record, bytes]], bool, int | None]:
    """The records that chain on from *last*; whether those are all; the highest number that was seen."""
    records: list[tuple[Record, bytes]] = []
    seen, broken = None, False
    for key, stored in reading.entries():
        if len(key) != _KEY_BYTES:
            broken = True
            continue
        seq = int.from_bytes(key, "big")
        seen = seq
        if seq == last and stored[:LINK_BYTES] != link:
            broken = True
        if broken or seq <= last:
            continue
        try:
            if seq != last + len(records) + 1:
                raise RecordError(f"the log has no record {last + len(records) + 1}")
            record = unseal(stored, link, seq=seq)
        except RecordError as error:
            reading.problems.append(str(error))
            broken = True
            continue
        link = record.link
        records.append((record, stored))
    if seen is None or seen <= last:   # the log of an older copy: whoever archived something recorded it afterwards
        broken = True
        reading.problems.append(f"its log ends with record {seen}, and record {last} is known")
    return records, not broken, seen


def _whole_groups(records: list[tuple[Record, bytes]]) -> list[tuple[Record, bytes]]:
    """Without the last group: nothing shows that all of it was read."""
    return [each for each in records if each[0].group != records[-1][0].group]
