"""Two processes, forks, threads, pid namespaces, and a map that must grow."""

import errno
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time

import pytest

import parcels
from layerjournal import (
    BusyError, ForkedError, Journal, NoSpaceError, PidNamespaceError, ReadOnlyError, UsageError, lockfile, namespace,
)
from parcels import Parcels, in_child, move, pack, state

SMALL_MAP = 1 << 17


# -- growth ----------------------------------------------------------------------------------------------------------

def test_the_map_grows_by_itself(path):
    with parcels.create(path, map_size=SMALL_MAP) as journal:
        for n in range(40):
            pack(journal, f"p{n}", blob=b"x" * 20_000)
        assert len(state(journal)) == 40
        assert (path / "data.mdb").stat().st_size > SMALL_MAP * 4
        assert journal.verify().sound


def test_one_update_that_is_larger_than_the_map_is_run_again_until_it_fits(path):
    runs = []
    with parcels.create(path, map_size=SMALL_MAP) as journal:
        journal.update("big", lambda txn: runs.append(1) or [move(txn, f"p{n}", "packed", b=b"x" * 9000) for n in range(99)])
        assert len(state(journal)) == 99
        with journal.read() as view:
            assert view.head()[0] == 100
    assert len(runs) > 2


def test_two_processes_grow_the_map_in_turns(path):
    parcels.create(path, map_size=SMALL_MAP).close()

    def work(name):
        with parcels.reopen(path, map_size=SMALL_MAP) as journal:
            for n in range(60):
                pack(journal, f"{name}{n}", blob=b"x" * 5000)
                with journal.read() as view:
                    assert view.get("parcels", f"{name}{n}")
        return True

    results = []
    threads = [threading.Thread(target=lambda n=name: results.append(in_child(lambda: work(n)))) for name in "ab"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert results == [(0, True), (0, True)]
    with parcels.reopen(path) as journal:
        assert len(state(journal)) == 120
        assert journal.verify().sound


def test_threads_that_read_and_write_do_not_keep_the_map_from_growing(path):
    with parcels.create(path, map_size=SMALL_MAP) as journal:
        stop, failures = threading.Event(), []

        def read():
            while not stop.is_set():
                try:
                    with journal.read() as view:
                        assert len(list(view.scan("parcels"))) <= 120
                except BaseException as error:
                    failures.append(error)
                    return

        def write(name):
            try:
                for n in range(30):
                    pack(journal, f"{name}{n}", blob=b"x" * 8000)
            except BaseException as error:
                failures.append(error)

        readers = [threading.Thread(target=read) for _ in range(2)]
        writers = [threading.Thread(target=write, args=(name,)) for name in "abcd"]
        for thread in readers + writers:
            thread.start()
        for thread in writers:
            thread.join(60)
        stop.set()
        for thread in readers:
            thread.join(60)
        assert failures == []
        assert len(state(journal)) == 120


def test_the_map_does_not_grow_under_a_read_of_the_same_thread(path):
    with parcels.create(path, map_size=SMALL_MAP) as journal:
        with journal.read() as view:
            with pytest.raises(UsageError, match="inside a transaction"):
                pack(journal, "big", blob=b"x" * 500_000)
            assert list(view.scan("parcels")) == []
        pack(journal, "big", blob=b"x" * 500_000)


def test_the_map_waits_for_reads_of_other_threads(path):
    with parcels.create(path, map_size=SMALL_MAP) as journal:
        inside, leave, order = threading.Event(), threading.Event(), []

        def read():
            with journal.read() as view:
                inside.set()
                leave.wait(30)
                order.append(len(list(view.scan("parcels"))))

        reader = threading.Thread(target=read)
        reader.start()
        inside.wait(30)
        writer = threading.Thread(target=lambda: (pack(journal, "big", blob=b"x" * 500_000), order.append("grown")))
        writer.start()
        time.sleep(0.1)
        assert order == []
        leave.set()
        reader.join(30)
        writer.join(30)
        assert order == [0, "grown"]


def test_a_read_that_stays_open_makes_the_update_fail_and_not_hang(path):
    from layerjournal import BusyError
    with parcels.create(path, map_size=SMALL_MAP) as journal:
        journal._engine._gate.patience = 0.1
        inside, leave = threading.Event(), threading.Event()

        def read():
            with journal.read():
                inside.set()
                leave.wait(30)

        reader = threading.Thread(target=read)
        reader.start()
        inside.wait(30)
        with pytest.raises(BusyError, match="stay open"):
            pack(journal, "big", blob=b"x" * 500_000)
        leave.set()
        reader.join(30)
        pack(journal, "big", blob=b"x" * 500_000)


def test_closing_waits_for_other_threads_and_refuses_inside_its_own_read(path):
    journal = parcels.create(path)
    with journal.read():
        with pytest.raises(UsageError, match="closed"):
            journal.close()
    inside, done = threading.Event(), []

    def read():
        with journal.read() as view:
            inside.set()
            time.sleep(0.1)
            done.append(view.head()[0])

    reader = threading.Thread(target=read)
    reader.start()
    inside.wait(30)
    journal.close()
    assert done == [1]
    reader.join(30)


# -- fork ------------------------------------------------------------------------------------------------------------

def test_an_inherited_handle_is_refused_in_the_child(journal):
    def child():
        seen = []
        for use in (lambda: pack(journal, "x"), lambda: journal.read().__enter__(), journal.verify, journal.archive):
            try:
                use()
            except ForkedError:
                seen.append("refused")
        journal.close()   # harmless
        return seen

    assert in_child(child) == (0, ["refused"] * 4)
    pack(journal, "a")
    assert state(journal) == {"a": "packed"}


def test_a_child_can_open_the_journal_itself_while_the_parent_uses_it(journal, path):
    pack(journal, "a")

    def child():
        with parcels.reopen(path) as mine:
            pack(mine, "b")
            return state(mine)

    assert in_child(child) == (0, {"a": "packed", "b": "packed"})
    pack(journal, "c")
    assert set(state(journal)) == set("abc")


def test_a_child_forked_inside_a_read_can_neither_open_nor_disturb_it(journal, path):
    pack(journal, "a")
    with journal.read() as view:
        status, said = in_child(lambda: parcels.reopen(path))
        assert (status, said.split(":")[0]) == (70, "ForkedError")
        for n in range(50):   # would reuse the pages of the snapshot, if the child had given up the reader's slot
            in_thread(lambda n=n: journal.update("x", lambda txn: move(txn, "a", "lost" if n % 2 == 0 else "packed")))
        assert dict(view.scan("parcels")) == {"a": {"state": "packed"}}
        assert view.head()[0] == 2


def in_thread(action):
    thread = threading.Thread(target=action)
    thread.start()
    thread.join(30)


def test_a_child_that_leaves_an_inherited_read_does_not_end_it_in_the_parent(journal):
    pack(journal, "a")
    with journal.read() as view:
        context = journal.read()
        context.__enter__()
        assert in_child(lambda: context.__exit__(None, None, None))[0] in (0, 70)
        readers = journal._engine.env.readers()
        rows = [line.split() for line in readers.splitlines()[1:]]     # pid, thread, transaction
        assert [(pid, txn == "-") for pid, _thread, txn in rows] == [(str(os.getpid()), False)] * 2
        context.__exit__(None, None, None)
        assert view.head()[0] == 2


# -- pid namespaces --------------------------------------------------------------------------------------------------

def run_in_new_pid_namespace(path):
    script = textwrap.dedent("""
        import sys
        from layerjournal import Journal, PidNamespaceError
        from parcels import Parcels
        try:
            Journal.open(sys.argv[1], Parcels()).close()
            print("opened")
        except PidNamespaceError:
            print("refused")
    """)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.run(
        ["unshare", "--pid", "--fork", "--mount-proc", sys.executable, "-c", script, str(path)],
        capture_output=True, text=True, check=False, env=environment,
    )


@pytest.mark.root
def test_another_pid_namespace_is_refused_while_this_one_is_in_and_welcome_afterwards(path):
    journal = parcels.create(path)
    result = run_in_new_pid_namespace(path)
    if os.geteuid() != 0 or (result.returncode != 0 and "unshare" in result.stderr):
        journal.close()
        pytest.skip("needs root and unshare(1), to make a pid namespace")
    assert result.stdout.strip() == "refused", result.stderr
    journal.close()
    assert run_in_new_pid_namespace(path).stdout.strip() == "opened"
    parcels.reopen(path).close()


def test_several_processes_of_one_namespace_are_welcome(journal, path):
    assert in_child(lambda: parcels.reopen(path).close()) == (0, None)


def test_what_a_dead_namespace_left_is_taken_over(path):
    parcels.create(path).close()
    (path / "pidns").write_text("another-boot 4026531836")
    parcels.reopen(path).close()
    assert (path / "pidns").read_text().startswith(namespace.current() + "\n")


def test_a_child_does_not_keep_the_namespace_locked_for_its_dead_parent(path, monkeypatch):
    journal = parcels.create(path)
    go_read, go_write = os.pipe()
    here_read, here_write = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.write(here_write, b"x")
        os.read(go_read, 1)
        os._exit(0)
    os.read(here_read, 1)
    journal.close()
    monkeypatch.setattr(namespace, "current", lambda: "elsewhere 1")
    parcels.reopen(path).close()
    os.write(go_write, b"x")
    os.waitpid(pid, 0)
    for fd in (go_read, go_write, here_read, here_write):
        os.close(fd)


def test_the_lock_of_another_namespace_is_seen_by_its_content(journal, path, monkeypatch):
    def elsewhere():
        monkeypatch.setattr(namespace, "current", lambda: "elsewhere 1")
        parcels.reopen(path)

    status, said = in_child(elsewhere)
    assert (status, said.split(":")[0]) == (70, PidNamespaceError.__name__)


# -- read-only media -------------------------------------------------------------------------------------------------

@pytest.mark.root
def test_a_journal_on_a_readonly_mount_is_read_without_a_lock_or_a_write(path):
    with parcels.create(path) as journal:
        pack(journal, "a")
    if os.geteuid() != 0 or subprocess.run(["mount", "--bind", path, path], capture_output=True).returncode:
        pytest.skip("needs root, to mount")
    try:
        subprocess.run(["mount", "-o", "remount,bind,ro", path, path], check=True)
        with Journal.open(path, Parcels(), readonly=True) as journal:
            assert state(journal) == {"a": "packed"}
            assert journal.verify().sound
    finally:
        subprocess.run(["umount", path], check=True)


# -- the machine says no ---------------------------------------------------------------------------------------------

def test_the_lock_file_has_its_space_before_it_is_mapped(path):
    """LMDB makes it sparse; on a full disk a write through the mapping would then be SIGBUS."""
    lock = path / "lock.mdb"
    parcels.create(path).close()
    for spoil in (lambda: None, lambda: lock.unlink(), lambda: (os.truncate(lock, 0), os.truncate(lock, 65_536))):
        spoil()
        parcels.reopen(path).close()
        status = lock.stat()
        assert status.st_blocks * 512 >= status.st_size > 65_000


def test_the_lock_file_is_no_copy_on_write_where_there_is_such_a_thing(path, monkeypatch):
    asked = []
    monkeypatch.setattr(lockfile.fcntl, "ioctl", lambda fd, request, flags: asked.append((request, os.fstat(fd).st_size)))
    parcels.create(path).close()
    assert [request for request, _ in asked] == [0x80086601, 0x40086602]
    assert {size for _, size in asked} == {0}, "the flag is for an empty file"


def test_no_space_for_the_lock_file_is_a_typed_error(path, monkeypatch):
    parcels.create(path).close()
    (path / "lock.mdb").unlink()

    def full(fd, size):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(lockfile, "_allocate", full)
    with pytest.raises(NoSpaceError):
        parcels.reopen(path)


def test_too_many_open_files_are_a_typed_error_that_says_what_to_do(path):
    parcels.create(path).close()

    def starved():
        import resource

        said = set()
        for limit in range(3, 40):   # it fails at one open after the other
            resource.setrlimit(resource.RLIMIT_NOFILE, (limit, 64))
            try:
                parcels.reopen(path).close()
            except BusyError as error:
                said.add(error.hint)
        return sorted(said)

    assert in_child(starved) == (0, ["raise the limit on open files (ulimit -n)"])


def test_a_file_system_that_became_read_only_is_a_typed_error(path):
    def hook(point, when):
        if point == "archive.write":
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    with parcels.create(path, hook=hook) as journal:
        pack(journal, "a")
        journal.checkpoint(lambda: None, lambda _view: None)
        with pytest.raises(ReadOnlyError):
            journal.archive()


def test_a_reader_that_died_is_forgotten_while_the_journal_stays_open(path):
    def read_and_die():
        with parcels.reopen(path, readonly=True).read() as view:
            view.head()
            os.kill(os.getpid(), signal.SIGKILL)

    with parcels.create(path) as journal:
        pid = os.fork()
        if pid == 0:
            read_and_die()
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL
        sizes = []
        for n in range(300):
            pack(journal, f"p{n % 3}-{n}")
            sizes.append((path / "data.mdb").stat().st_size)
        assert sizes[-1] < sizes[40] * 3, "what it held is used again"
