"""Replay: the log tells the catalog, for every prefix of it, wherever, whenever and by whomever it is read.

Every workload of the rigs is run once, and the journal's directory copied after each of its transactions: what a store
that stopped there would have. The log of the whole run must tell what each of those copies holds.
"""

import itertools
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

import layerstore
from crash.workloads import Images, build
from layerjournal import Journal, Replay, canonical_dump
from layerjournal.folding import fold
from layerjournal.record import genesis
from layerstore.lifecycle.projection import CatalogProjector
from layerstore.testing import Passing, kill_at, passings
from layerstore.testing.children import run_child, telling
from layerstore.testing.ledger import Ledger

sys.path.insert(0, str(Path(__file__).parent.parent / "golden"))

from make_store import unpack  # noqa: E402

NAMES = ("pull", "apply", "batch", "delete", "image-delete", "checkpoint", "gc", "adopt", "everything")
ORACLE = Path(__file__).parent / "show_plan.py"


@pytest.fixture(scope="module")
def directory():
    """In memory where that is possible: this is about what is written, not about the disk."""
    with tempfile.TemporaryDirectory(dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None) as made:
        yield Path(made)


@pytest.fixture(scope="module", params=NAMES)
def run(request, directory):
    """One run of a workload: the store, and a copy of its journal after every transaction."""
    where = directory / request.param
    where.mkdir()
    workload = build(Images(str(directory / "images")))[request.param]
    root, ledger, number = str(where / "store"), Ledger(lambda line: None), itertools.count()

    def copy(name, when):
        if name.startswith("txn.") and when == "after":
            shutil.copytree(os.path.join(root, "journal"), where / f"stopped-{next(number)}")

    assert run_child(lambda: workload.prepare(root, ledger)) == 0
    assert run_child(lambda: workload.run(root, ledger), hook=copy) == 0
    return root, sorted(where.glob("stopped-*"), key=lambda path: int(path.name.split("-")[1]))


def copy_store(source, target):
    """With times, attributes and device nodes."""
    subprocess.run(["cp", "-a", source, target], check=True)


def replayed(path):
    return Replay.open([path], CatalogProjector())


def tables(path):
    """What the tables hold, as it was stored: nothing is folded."""
    with Journal.open(path, CatalogProjector(), readonly=True) as journal, journal.read() as view:
        return view.head(), {
            name: {key.decode(): stored[8:] for key, stored in view.stored_rows(name)}
            for name in journal._whole.tables
        }


def test_the_log_of_the_whole_run_tells_what_a_store_stopped_at_any_transaction_has(run, record_property):
    root, stopped = run
    assert len(stopped) >= 3
    with replayed(root) as whole:
        for path in stopped:
            (seq, link), rows = tables(path)
            folded = whole.fold(seq)
            assert (folded.seq, folded.link) == (seq, link)
            assert folded.bodies == rows, f"after record {seq}"
    record_property("states", len(stopped))


def test_every_prefix_and_the_records_after_it_make_the_whole(run, record_property):
    root, _ = run
    projector = CatalogProjector()
    with replayed(root) as whole:
        records, last = list(whole.records()), whole.fold()
        for k in range(len(records) + 1):
            first = fold(projector, records[:k], link=genesis(whole.uuid))
            assert canonical_dump(first) == canonical_dump(whole.fold(k))
            both = fold(projector, records[k:], tables=first.bodies, seq=first.seq, link=first.link)
            assert (both.bodies, both.seq, both.link) == (last.bodies, last.seq, last.link)
    assert [record.seq for record in records] == list(range(1, len(records) + 1))
    record_property("states", len(records) + 1)


def test_what_a_replay_makes_replays_to_the_same(run, directory):
    """replay(J) = replay(replay(J)): the journal that is restored from a replay's segments tells the same, and its own too."""
    root, _ = run
    copies = directory / f"{Path(root).parent.name}-restored"
    source = copies / "0"
    shutil.copytree(os.path.join(root, "journal"), source)
    archive_all(source)
    dumps = [dumped(source)]
    for generation in (1, 2):
        segments = sorted((source / "segments").iterdir())
        source = copies / str(generation)
        Journal.restore(source, CatalogProjector(), segments).close()
        dumps.append(dumped(source))
        archive_all(source)
    assert dumps[0] == dumps[1] == dumps[2]


def archive_all(path):
    with Journal.open(path, CatalogProjector()) as journal:
        journal.checkpoint(lambda: None, lambda view: None)
        assert journal.archive() is not None


def dumped(path):
    with replayed(path) as replay:
        assert replay.verify().sound
        return canonical_dump(replay.fold())


# -- independent of who reads it, when, and where -----------------------------------------------------------------------


@pytest.fixture(scope="module")
def crashed(directory):
    """Stores with work left to redo: the golden one, and an image's deletion that was killed after half of its steps."""
    where = directory / "crashed"
    where.mkdir()
    workload = build(Images(str(directory / "images")))["image-delete"]
    root, trial, ledger = str(where / "killed"), str(where / "trial"), Ledger(lambda line: None)
    assert run_child(lambda: workload.prepare(root, ledger)) == 0
    copy_store(root, trial)
    points = [p for p in passings(lambda: workload.run(trial, ledger)) if p.point == "publish.rename"]
    kill_at(Passing(points[0].point, "after", 1), lambda: workload.run(root, ledger))
    return [str(unpack("redo", where)), root]


def told(root, *arguments, **environment):
    """What another process says of the store: the canonical dump, and what recovery would do."""
    done = subprocess.run(
        [sys.executable, str(ORACLE), root, *arguments], check=True, capture_output=True,
        env={**os.environ, **environment},
    )
    assert done.stdout
    return done.stdout


WORLDS = {
    "hash seed": {"PYTHONHASHSEED": "1"}, "another hash seed": {"PYTHONHASHSEED": "4711"},
    "locale": {"LC_ALL": "tr_TR.UTF-8", "LANG": "tr_TR.UTF-8"}, "C locale": {"LC_ALL": "C", "PYTHONUTF8": "0"},
    "time zone": {"TZ": "Pacific/Kiritimati"},
}


@pytest.mark.parametrize("world", WORLDS)
def test_dump_and_plan_do_not_depend_on_the_environment(crashed, world):
    for root in crashed:
        assert told(root, **WORLDS[world]) == told(root, PYTHONHASHSEED="0", LC_ALL="C.UTF-8", TZ="UTC")


@pytest.mark.parametrize("argument", ["--clock=0", "--clock=4000000000", "--backwards", "--chdir=/"])
def test_dump_and_plan_do_not_depend_on_clock_directory_order_or_working_directory(crashed, argument):
    for root in crashed:
        said = told(root)
        assert json.loads(said)["plan"]["actions"]
        assert told(root, argument) == said


@pytest.mark.root
def test_dump_and_plan_do_not_depend_on_the_user(crashed, directory):
    import show_plan

    for number, root in enumerate(crashed):
        copy = str(directory / f"nobody-{number}")
        copy_store(root, copy)
        mine = show_plan.show(copy)     # also imports what a user who may not read this interpreter could not
        for path in [copy, *map(str, Path(copy).rglob("*"))]:
            os.chown(path, 65534, 65534, follow_symlinks=False)
        os.chmod(directory, 0o755)

        def as_nobody(copy=copy):
            os.setgroups([])
            os.setgid(65534)
            os.setuid(65534)
            return show_plan.show(copy)

        assert telling(as_nobody) == mine


def test_recovering_twice_from_the_same_state_does_the_same(crashed, directory):
    """The plan is a function of journal and disk: two copies of a crashed store are brought to rest by the same actions."""
    for number, root in enumerate(crashed):
        said = []
        for copy in (directory / f"twin-{number}-a", directory / f"twin-{number}-b"):
            copy_store(root, str(copy))
            with layerstore.open(copy, clock=lambda: 1_750_000_000_000_000_000) as store:
                dump = canonical_dump(store._handle.journal.fold())
                said.append((store.recovery.as_json() | {"seconds": 0}, dump))
        assert said[0] == said[1]
        assert said[0][0]["actions"]
