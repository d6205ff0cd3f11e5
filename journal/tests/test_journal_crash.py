"""Killed anywhere, failed anywhere: what was acknowledged is there, and what was begun is whole or absent."""

import errno
import os
import signal

import pytest

import parcels
from layerjournal import NoSpaceError, OutcomeUnknownError, PoisonedError, canonical_dump
from parcels import in_child, killer, mark, move, pack, state

STEPS = [
    lambda j: pack(j, "a", "b"),
    lambda j: j.update("send", lambda txn: move(txn, "a", "sent")),
    mark,
    lambda j: j.archive(),
    lambda j: pack(j, "c"),
    mark,
    lambda j: j.archive(),
    lambda j: j.drop_segments(keep=1),
    lambda j: j.update("send", lambda txn: move(txn, "c", "lost")),
]


def run(path, acknowledge, hook=None):
    """Create a journal and take all steps, acknowledging each (0: created) when it has returned."""
    journal = parcels.create(path, hook=hook)
    acknowledge(0)
    for number, step in enumerate(STEPS, 1):
        step(journal)
        acknowledge(number)


def passings(path):
    passed = []
    journal = parcels.create(path, hook=parcels.recorder(passed))
    for step in STEPS:
        step(journal)
    journal.close()
    counts = {}
    for point in passed:
        counts[point] = counts.get(point, 0) + 1
    return [(name, when, nth) for (name, when), count in counts.items() for nth in range(1, count + 1)]


def reference(path):
    """What a reader may see after each step: the projected tables, as they are dumped."""
    with parcels.create(path) as journal:
        seen = [canonical_dump(journal.fold())]
        for step in STEPS:
            step(journal)
            seen.append(canonical_dump(journal.fold()))
    return seen


def test_killed_at_every_fault_point_nothing_acknowledged_is_lost(tmp_path):
    points, legal = passings(tmp_path / "points"), reference(tmp_path / "reference")
    names = {name for name, _, _ in points}
    assert {"journal.create.commit", "journal.create.rename", "journal.create.parent.sync", "txn.pack", "txn.checkpoint",
            "archive.write", "archive.rename", "archive.sync", "txn.archive", "txn.drop", "archive.drop"} <= names
    for number, (name, when, nth) in enumerate(points):
        path, log = tmp_path / f"{number}", tmp_path / f"{number}.log"
        status, _ = in_child(lambda: run(
            path, lambda step: log.open("a").write(f"{step}\n"), killer(name, when, nth),
        ))
        assert status == -signal.SIGKILL, (name, when, nth, "the child was not killed there")
        done = int(log.read_text().split()[-1]) if log.exists() else -1
        survives(path, done, legal, (name, when, nth))


def survives(path, done, legal, where):
    if not path.exists():
        assert done == -1, where
        parcels.create(path).close()
        done = 0
    with parcels.reopen(path) as journal:
        report = journal.verify()
        assert report.sound, (where, report.findings)
        assert canonical_dump(journal.fold()) in legal[max(done, 0):done + 2], where
        pack(journal, "after")
        mark(journal)
        assert journal.archive() is not None, where
        journal.drop_segments(keep=1)
        assert journal.verify().sound, where
        assert len(os.listdir(path / "segments")) == 1, (where, "a crash left a file that nobody removes")


def test_killed_inside_an_update_its_writer_lock_is_free_and_nothing_was_written(path):
    parcels.create(path).close()

    def die():
        parcels.reopen(path).update("x", lambda txn: (move(txn, "a", "packed"), os.kill(os.getpid(), signal.SIGKILL)))

    with parcels.reopen(path) as journal:   # open all the while: nobody resets the lock file
        assert in_child(die)[0] == -signal.SIGKILL
        pack(journal, "b")
        assert state(journal) == {"b": "packed"}


def test_a_dead_reader_does_not_make_the_file_grow(path):
    parcels.create(path).close()

    def die():
        with parcels.reopen(path, readonly=True).read() as view:
            list(view.records())
            os.kill(os.getpid(), signal.SIGKILL)

    with parcels.reopen(path):   # keeps the reader table alive
        assert in_child(die)[0] == -signal.SIGKILL

        def work():
            with parcels.reopen(path) as second:   # looks after dead readers
                for n in range(200):
                    second.update("x", lambda txn: move(txn, "p", "lost" if n % 2 else "packed"))
            return (path / "data.mdb").stat().st_size // 4096

        status, pages = in_child(work)
    assert status == 0
    assert pages < 60   # some 600 if every commit had to take new ones


def raising(point, when, error):
    def hook(name, phase):
        if (name, phase) == (point, when):
            raise error
    return hook


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_at_commit_changes_nothing_and_the_journal_goes_on(path, number):
    full = [OSError(number, os.strerror(number))]

    def hook(name, when):
        if (name, when) == ("txn.pack", "before") and full:
            raise full.pop()

    with parcels.create(path, hook=hook) as journal:
        with pytest.raises(NoSpaceError):
            pack(journal, "a")
        assert state(journal) == {}
        pack(journal, "a")
        assert state(journal) == {"a": "packed"}


@pytest.mark.parametrize("when, outcome", [("before", {}), ("after", {"a": "packed"})])
def test_an_error_at_commit_poisons_the_handle_and_a_reopen_tells(path, when, outcome):
    hook = raising("txn.pack", when, OSError(errno.EIO, "lost"))
    with parcels.create(path, hook=hook) as journal:
        with pytest.raises(OutcomeUnknownError):
            pack(journal, "a")
        with pytest.raises(PoisonedError):
            journal.update("other", lambda txn: move(txn, "b", "packed"))
        with pytest.raises(PoisonedError):
            journal.archive()
    with parcels.reopen(path) as journal:
        assert state(journal) == outcome


def test_a_commit_that_the_kernel_refuses_poisons_the_handle(path):
    """A real failure of the real write, by the limit on the size of files."""
    parcels.create(path).close()

    def child():
        import resource
        with parcels.reopen(path) as journal:
            pack(journal, "a")
            resource.setrlimit(resource.RLIMIT_FSIZE, ((path / "data.mdb").stat().st_size,) * 2)
            seen = []
            for _ in range(2):
                try:
                    pack(journal, *(f"p{n}" for n in range(3000)))
                except Exception as error:
                    seen.append(type(error).__name__)
        return seen

    assert in_child(child) == (0, ["OutcomeUnknownError", "PoisonedError"])
    with parcels.reopen(path) as journal:
        assert state(journal) == {"a": "packed"}
        assert journal.verify().sound


@pytest.mark.root
def test_a_disk_that_is_really_full_changes_nothing_and_the_journal_goes_on(tmp_path):
    import subprocess
    small = tmp_path / "small"
    small.mkdir()
    if os.geteuid() != 0 or subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", small], capture_output=True, check=False,
    ).returncode:
        pytest.skip("needs root, to mount a small tmpfs")
    try:
        with parcels.create(small / "journal") as journal:
            done = 0
            with pytest.raises(NoSpaceError):
                for done in range(1000):
                    pack(journal, f"p{done}", blob=b"x" * 10_000)
            assert len(state(journal)) == done
            assert journal.verify().sound
            mark(journal)   # a small transaction finds room
            with pytest.raises(NoSpaceError):
                journal.archive()
            subprocess.run(["mount", "-o", "remount,size=4m", small], check=True)
            assert journal.archive() is not None
            assert journal.verify().sound
    finally:
        subprocess.run(["umount", small], check=True)


@pytest.mark.parametrize("point", ["archive.write", "archive.rename", "archive.sync", "txn.archive"])
@pytest.mark.parametrize("error, expected", [
    (OSError(errno.ENOSPC, "full"), NoSpaceError), (OSError(errno.EIO, "lost"), OutcomeUnknownError),
    (KeyboardInterrupt(), KeyboardInterrupt), (MemoryError(), MemoryError),
], ids=["full", "EIO", "interrupt", "memory"])
@pytest.mark.parametrize("when", ["before", "after"])
def test_an_archive_that_fails_anywhere_loses_nothing_and_succeeds_later(path, point, error, expected, when):
    with parcels.create(path, hook=raising(point, when, error)) as journal:
        pack(journal, "a")
        mark(journal)
        before = canonical_dump(journal.fold())
        with pytest.raises(expected):
            journal.archive()
    with parcels.reopen(path) as journal:
        assert journal.verify().sound
        assert canonical_dump(journal.fold()) == before
        pack(journal, "b")
        mark(journal)
        journal.archive()
        assert journal.verify().sound


@pytest.mark.parametrize("nth", range(1, 12))
def test_a_create_that_fails_anywhere_leaves_a_whole_journal_or_none(path, nth):
    passed = 0

    def hook(name, when):
        nonlocal passed
        if when == "before":
            passed += 1
            if passed == nth:
                raise OSError(errno.ENOSPC, "full")

    try:
        parcels.create(path, hook=hook).close()
    except NoSpaceError:
        assert not os.path.exists(f"{path}.new")
    else:
        assert nth > passed, "the fault was swallowed"
    if not path.exists():
        parcels.create(path).close()
    with parcels.reopen(path) as journal:
        assert journal.verify().sound


def test_what_a_killed_create_left_is_cleared_and_what_a_live_one_makes_is_not(path):
    from layerjournal import BusyError
    assert in_child(lambda: parcels.create(path, hook=killer("journal.create.rename", "before")))[0] == -9
    assert os.path.exists(f"{path}.new")

    def meanwhile(name, when):
        if (name, when) == ("journal.create.rename", "before"):
            said.append(in_child(lambda: parcels.create(path))[1])

    said = []
    parcels.create(path, hook=meanwhile).close()
    assert said[0].startswith(BusyError.__name__)
    assert not os.path.exists(f"{path}.new")
