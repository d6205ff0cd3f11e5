"""When an opening looks at every page, and when a note spares it that: the first of a boot, and after a stranger's hand."""

import os
import shutil
import signal

import pytest

import parcels
from layerjournal import DamagedError, namespace, note, pages
from parcels import in_child, pack

PAGE = 4096


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "journal"
    with parcels.create(path) as journal:
        pack(journal, "one", "two")
    return path


@pytest.fixture
def looks(monkeypatch):
    """The data files that were looked at."""
    found, real = [], pages.check

    def check(data):
        found.append(data)
        return real(data)

    monkeypatch.setattr(pages, "check", check)
    return found


def noted(path):
    return (path / "pidns").read_text().splitlines()[1].strip()


def test_what_was_closed_here_and_not_touched_since_is_not_looked_at(path, looks):
    for name in ("three", "four"):
        with parcels.reopen(path) as journal:
            pack(journal, name)
    assert looks == []


def test_the_first_opening_of_a_boot_looks(path, looks, monkeypatch):
    here = namespace.current()
    monkeypatch.setattr(namespace, "current", lambda: "another-boot 1")
    parcels.reopen(path).close()
    parcels.reopen(path).close()
    assert len(looks) == 1
    monkeypatch.setattr(namespace, "current", lambda: here)
    parcels.reopen(path).close()
    assert len(looks) == 2


def test_another_pid_namespace_of_this_boot_believes_the_note(path, looks, monkeypatch):
    monkeypatch.setattr(namespace, "current", lambda real=namespace.current(): real.split()[0] + " 1")
    parcels.reopen(path).close()
    assert looks == []


def rewritten(path):
    data = (path / "data.mdb").read_bytes()
    (path / "data.mdb").write_bytes(data)


def copied_back(path):
    shutil.copy2(path / "data.mdb", path / "copy")
    os.replace(path / "copy", path / "data.mdb")


@pytest.mark.parametrize("change", [rewritten, copied_back, lambda path: (path / "pidns").unlink(),
                                    lambda path: (path / "pidns").write_text("rubbish")],
                         ids=["written to", "copied back", "without a note", "with rubbish for a note"])
def test_what_a_stranger_changed_is_looked_at_once(path, looks, change):
    change(path)
    parcels.reopen(path).close()
    parcels.reopen(path).close()
    assert len(looks) == 1


@pytest.mark.parametrize("change", [rewritten, copied_back], ids=["written to", "copied back"])
def test_damage_is_looked_for_by_every_opening_until_it_is_gone(path, looks, change):
    data = bytearray((path / "data.mdb").read_bytes())
    sound = bytes(data)
    data[3 * PAGE:] = bytes(len(data) - 3 * PAGE)
    (path / "data.mdb").write_bytes(data)
    change(path)
    for _ in range(3):
        with pytest.raises(DamagedError):
            parcels.reopen(path)
    assert len(looks) == 3
    (path / "data.mdb").write_bytes(sound)
    parcels.reopen(path).close()


def test_after_a_kill_nothing_is_looked_at(path, looks):
    def work():
        journal = parcels.reopen(path)
        pack(journal, "three")
        os.kill(os.getpid(), signal.SIGKILL)

    assert in_child(work)[0] == -signal.SIGKILL
    assert noted(path) == note.in_use(str(path / "data.mdb"))
    with parcels.reopen(path) as journal:
        assert "three" in parcels.state(journal)
    assert looks == []


def test_a_copy_of_a_journal_in_use_is_looked_at(path, looks, tmp_path):
    with parcels.reopen(path):
        shutil.copytree(path, tmp_path / "copy")
    parcels.reopen(tmp_path / "copy").close()
    assert len(looks) == 1


def test_who_comes_while_others_are_in_does_not_look_and_only_the_last_says_how_it_was_left(path):
    def second():
        seen = []
        pages.check = seen.append
        with parcels.reopen(path) as journal:
            pack(journal, "theirs")
        return seen

    with parcels.reopen(path):
        assert in_child(second) == (0, [])
        assert noted(path) == note.in_use(str(path / "data.mdb"))
    assert noted(path) == note.left(str(path / "data.mdb"))


def test_two_who_come_at_once_both_look_before_one_has(path, looks):
    """A note is not given before the look is over."""
    rewritten(path)
    data = str(path / "data.mdb")
    one = namespace.enter(str(path / "pidns"), data)
    with pytest.raises(NotImplementedError):   # the second, in the middle of the first's look
        with parcels.reopen(path):
            assert len(looks) == 1
            raise NotImplementedError
    assert not one.vouched
    one.close()


def test_a_child_that_was_forked_leaves_no_note(path):
    with parcels.reopen(path) as journal:
        pid = os.fork()
        if pid == 0:
            journal._leave_namespace()
            os._exit(0)
        os.waitpid(pid, 0)
        assert noted(path).startswith("in use")


def test_who_may_only_read_believes_the_note_and_writes_none(path, looks, monkeypatch):
    monkeypatch.setattr("layerjournal.journal.is_writable", lambda _path: False)
    monkeypatch.setattr("layerjournal.engine.is_writable", lambda _path: False)
    before = (path / "pidns").read_bytes()
    parcels.reopen(path, readonly=True).close()
    assert looks == []
    rewritten(path)
    parcels.reopen(path, readonly=True).close()
    (path / "pidns").unlink()
    parcels.reopen(path, readonly=True).close()
    assert len(looks) == 2
    assert before and not (path / "pidns").exists()


def test_a_note_that_cannot_be_written_costs_another_look_and_nothing_else(path, looks, monkeypatch):
    rewritten(path)
    real = os.pwrite

    def full(fd, *rest):
        if os.readlink(f"/proc/self/fd/{fd}").endswith("pidns"):
            raise OSError(28, "No space left on device")
        return real(fd, *rest)

    monkeypatch.setattr(os, "pwrite", full)
    for _ in range(2):
        with parcels.reopen(path) as journal:
            pack(journal, f"n{len(looks)}")
    assert len(looks) == 2
