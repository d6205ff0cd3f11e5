"""Make a golden journal: what the first release wrote, for every later one to read.

    python journal/tests/make_golden.py journal/golden/v1

Golden journals are never edited or made anew: a new format gets a new directory beside this one. The script is kept
so that today's code can be held to the same records and the same tables (the bytes of ``data.mdb`` depend on LMDB,
those of a segment's compression on libzstd, so these two are read and not compared).
"""

import json
import os
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parent))

import parcels  # noqa: E402
from layerjournal import canonical_dump  # noqa: E402
from parcels import mark, move, pack  # noqa: E402


def make(directory):
    """Fill *directory*: ``journal/``, ``records.json``, ``dump.msgpack`` and ``folds.json``."""
    os.makedirs(directory)
    with parcels.create(os.path.join(directory, "work"), schema="parcels 1") as journal:
        records = fill(journal)
        journal.copy_to(os.path.join(directory, "journal"))
        folds = {}
        for record in records:
            folds[record["seq"]] = canonical_dump(journal.fold(record["seq"])).hex()
        write(directory, "records.json", json.dumps(records, indent=1, sort_keys=True, ensure_ascii=True).encode() + b"\n")
        write(directory, "folds.json", json.dumps(folds, indent=1).encode() + b"\n")
        write(directory, "dump.msgpack", canonical_dump(journal.fold()))


def fill(journal):
    """Every kind of value, of group and of control record; the records, also those that were archived."""
    seen = {}
    pack(journal, "first")
    pack(journal, "ä", "\U0001f4e6 box", weight=-1, tags=["a", None, True], seal=b"\x00\xff", inside={"z": 1, "a": {}})
    journal.update("send", lambda txn: [move(txn, "first", "sent"), move(txn, "ä", "lost")])
    mark(journal)
    remember(journal, seen)
    journal.archive()
    pack(journal, "later", big=2**64 - 1, small=-(2**63), text="x" * 300)
    journal.update("lose", lambda txn: move(txn, "first", "lost"))
    mark(journal)
    remember(journal, seen)
    journal.archive()
    journal.update("send", lambda txn: move(txn, "later", "sent"))
    journal.update("again", lambda txn: [move(txn, "first", "packed"), move(txn, "first", "sent"), move(txn, "first", "here")])
    remember(journal, seen)
    return [seen[seq] for seq in sorted(seen)]


def remember(journal, seen):
    with journal.read() as view:
        seen.update({record.seq: record.as_json() for record in view.records()})


def write(directory, name, data):
    pathlib.Path(directory, name).write_bytes(data)


if __name__ == "__main__":
    import shutil
    make(sys.argv[1])
    shutil.rmtree(os.path.join(sys.argv[1], "work"))
