"""Files made by a process beside: the layer is the one that threads make, and whoever dies, nothing is left behind."""

import array
import errno
import fcntl
import hashlib
import marshal
import os
import pathlib
import subprocess
import sys
import threading
from _socket import AF_UNIX, MSG_CTRUNC, SOCK_SEQPACKET, socketpair

import pytest
from tarmaker import file, pax
from test_unpack_threads import A, CLASHES, MANY, look, threads, trees  # noqa: F401 - a fixture

from fuzz import nasties
from layerstore.dedup import reading
from layerstore.errors import ArchiveError, IoError, LimitExceededError
from layerstore.formats.manifest import TIME, final_entries
from layerstore.formats.tar import Entry
from layerstore.system import beside, kernel
from layerstore.system.descriptors import Descriptor
from layerstore.trees.dress import Dresser
from layerstore.trees.unpack import creating, files, making, process

OURS = (0o644, os.geteuid(), os.getegid())
STARTED = "import sys\nfrom _socket import socket\npeer = socket(fileno=int(sys.argv[1]))\npeer.send(b'ready')\n"


@pytest.fixture
def at_once(monkeypatch):
    """The process has the first file, and no thread has any that it could make."""
    monkeypatch.setattr(making, "_ITSELF", 0)
    monkeypatch.setattr(beside, "MSG_DONTWAIT", 0)
    monkeypatch.setattr(beside, "_never_start", set())


def no_process_is_left():
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)
    return True


def replaced(tmp_path, monkeypatch, program):
    script = tmp_path / "program.py"
    script.write_text(program)
    monkeypatch.setattr(creating, "__file__", str(script))


def both(trees, data):  # noqa: F811
    one, other = trees(10**9), trees(0)
    for tree in (one, other):
        tree.unpack(data, chunk=3000)
    assert look(one) == look(other)
    assert one.result == other.result
    other.sound()
    return other


@pytest.mark.root
@pytest.mark.parametrize("case", ["a file by a file at once", "a hard link to what is being made", "what is large among what is small"])
def test_whatever_takes_the_place_of_a_file_the_layer_is_the_same(trees, at_once, case):  # noqa: F811
    both(trees, CLASHES[case])
    assert no_process_is_left()
    assert threads() == []


@pytest.mark.root
def test_of_every_hand_made_nasty_the_process_makes_what_threads_make_or_it_is_refused_alike(trees, at_once):  # noqa: F811
    refused = 0
    for data in nasties.seeds("unpack"):
        outcomes = []
        for alone in (10**9, 0):
            tree = trees(alone)
            try:
                tree.unpack(data, chunk=700)
                outcomes.append((tree.result, look(tree)))
            except (ArchiveError, LimitExceededError) as error:
                outcomes.append(str(error))
                refused += 1
        assert outcomes[0] == outcomes[1]
    assert 20 < refused < 2 * len(nasties.seeds("unpack")) - 20      # some of each
    assert no_process_is_left()


@pytest.mark.root
def test_owners_modes_and_attributes_are_those_that_threads_give(trees, at_once):  # noqa: F811
    modes = [0o644, 0o755, 0o4755, 0o2711, 0o400, 0o1777, 0]
    data = b"".join(file(b"f%d" % n, A * (n % 3), mode=modes[n % 7], uid=n % 2, gid=n % 3) for n in range(200))
    tree = both(trees, data + pax((b"SCHILY.xattr.user.note", b"hello")) + file(b"x", A, mode=0o444))
    assert os.getxattr(tree.diff / "x", "user.note") == b"hello"


@pytest.mark.root
def test_times_that_the_file_system_does_not_hold_are_told_as_threads_tell_them(trees, at_once):  # noqa: F811
    times = {b"late": 1 << 33, b"early": -(1 << 33)}   # ext4 has no time before 1901
    tree = both(trees, MANY + b"".join(pax((b"mtime", b"%d" % time)) + file(name, A) for name, time in times.items()))
    with Descriptor(tree.path / "manifest", os.O_RDONLY) as fd:
        told = {entry.path: not entry.unset & TIME for entry in final_entries(fd)}
    assert all(told[name] == ((tree.diff / name.decode()).stat().st_mtime == time) for name, time in times.items())


@pytest.mark.root
def test_no_thread_makes_what_the_process_can(trees, at_once, monkeypatch):  # noqa: F811
    monkeypatch.setattr(files, "_write", None)   # calling it would fail
    trees(0).unpack(MANY)


@pytest.mark.root
def test_a_process_that_ends_by_itself_is_an_error_and_the_layer_is_not_finished(trees, at_once, monkeypatch, tmp_path):  # noqa: F811
    replaced(tmp_path, monkeypatch, STARTED + "peer.recv(1 << 17)\n")
    with pytest.raises(IoError, match="ended by itself"):
        trees(0).unpack(MANY)
    assert no_process_is_left()
    assert threads() == []


@pytest.mark.root
def test_what_stops_a_process_is_in_the_error_and_nothing_goes_to_the_programs_standard_error(  # noqa: D103
    trees, at_once, monkeypatch, tmp_path, capfd,  # noqa: F811
):
    program = pathlib.Path(creating.__file__).read_text().replace("os.open(name", "1 / 0, os.open(name")
    replaced(tmp_path, monkeypatch, program)
    with pytest.raises(IoError, match=r"ended by itself: ZeroDivisionError\(.*\)"):
        trees(0).unpack(MANY)
    assert capfd.readouterr() == ("", "")


def test_a_process_that_ended_between_two_requests_leaves_the_files_to_the_thread_and_is_not_asked_again():
    ours, theirs = socketpair(AF_UNIX, SOCK_SEQPACKET)
    asking = beside.Beside.__new__(beside.Beside)
    asking._peer, asking._ready = ours, True
    theirs.close()
    assert process.Maker(asking)._ask([(0, b"a", 0o600, 3, 5, OURS)], []) == [None]
    assert not asking.is_ready()
    ours.close()


@pytest.mark.root
def test_directories_that_cannot_be_passed_leave_the_files_to_the_threads(trees, at_once, monkeypatch):  # noqa: F811
    monkeypatch.setattr(beside, "SCM_RIGHTS", 99)   # refused, as with too many descriptors on their way (ETOOMANYREFS)
    both(trees, MANY)
    assert no_process_is_left()


@pytest.mark.root
def test_where_the_program_cannot_run_threads_make_the_files_and_it_is_not_tried_again(trees, at_once, monkeypatch, tmp_path, capfd):  # noqa: F811
    replaced(tmp_path, monkeypatch, "raise ValueError\n")
    both(trees, MANY)
    assert capfd.readouterr().err == ""
    monkeypatch.setattr(beside, "Beside", None)   # calling it would fail
    both(trees, MANY)


@pytest.mark.root
def test_where_there_is_no_python_to_run_threads_make_the_files(trees, at_once, monkeypatch, tmp_path):  # noqa: F811
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python-that-is-not-there"))
    both(trees, MANY)
    assert no_process_is_left()


@pytest.mark.parametrize("unlike", ["frozen", "another program", "an ordinary user", "in an archive", "without memfd_create"])
def test_what_is_no_python_of_roots_is_not_run(monkeypatch, unlike):
    monkeypatch.setattr(beside, "Beside", None)   # calling it would fail
    if unlike == "frozen":
        monkeypatch.setattr(sys, "frozen", True, raising=False)
    elif unlike == "another program":
        monkeypatch.setattr(sys, "executable", "/usr/bin/program")
    elif unlike == "in an archive":
        monkeypatch.setattr(creating, "__file__", "/archive.zip/layerstore/trees/unpack/creating.py")
    elif unlike == "without memfd_create":
        monkeypatch.delattr(os, "memfd_create")
        kernel.has_trusted_xattrs()      # does without, too
    else:
        monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with process.beside(0, Dresser()) as made:
        assert made is None


@pytest.fixture
def here(tmp_path):
    with Descriptor(tmp_path, os.O_RDONLY | os.O_DIRECTORY) as fd:
        yield array.array("i", [fd])


def test_what_is_there_already_is_left_and_the_next_file_has_its_own_content(here, tmp_path):
    (tmp_path / "a").write_bytes(b"old")
    rows = [(0, b"a", 0o644, 3, 5, OURS), (0, b"b", 0o644, 4, 5, OURS)]
    assert creating.make(rows, here, memoryview(b"new" b"more"), {}) == [None, hashlib.sha256(b"more").digest()]
    assert ((tmp_path / "a").read_bytes(), (tmp_path / "b").read_bytes()) == (b"old", b"more")


def test_what_could_not_be_finished_is_taken_away(here, tmp_path, monkeypatch):
    def refused(*_):
        raise PermissionError

    monkeypatch.setattr(os, "fchown", refused)
    assert creating.make([(0, b"a", 0o644, 3, 5, (0o644, 7, 7))], here, memoryview(b"new"), {}) == [None]
    monkeypatch.setattr(os, "write", lambda _fd, data: len(data) - 1)
    assert creating.make([(0, b"b", 0o644, 3, 5, OURS)], here, memoryview(b"new"), {}) == [None]
    assert os.listdir(tmp_path) == []


def test_requests_are_answered_until_nobody_asks(here, tmp_path):
    ours, theirs = socketpair(AF_UNIX, SOCK_SEQPACKET)
    thread = threading.Thread(target=creating.serve, args=(theirs, memoryview(b"new")))
    thread.start()
    asking = beside.Beside.__new__(beside.Beside)
    asking._peer = ours
    assert ours.recv(100) == creating.READY
    row = (0, b"a", 0o600, 3, 5, (0o600, os.geteuid(), os.getegid()))
    assert process.Maker(asking)._ask([row], here) == [hashlib.sha256(b"new").digest()]
    ours.close()
    thread.join()
    theirs.close()
    assert (tmp_path / "a").read_bytes() == b"new"


def test_of_directories_that_were_not_passed_nothing_is_made(monkeypatch):
    class Peer:
        def __init__(self):
            self.requests, self.answers = [marshal.dumps([(0, b"a", 0o600, 0, 5, OURS)] * 2), b""], []

        def recvmsg(self, *_):
            return self.requests.pop(0), [], MSG_CTRUNC, None

        def send(self, data):
            self.answers.append(data)

    peer = Peer()
    creating.serve(peer, memoryview(b""))
    assert marshal.loads(peer.answers[1]) == [None, None]


KILLED = """
import os, sys
from layerstore.formats.tar import Entry
from layerstore.system.descriptors import Descriptor
from layerstore.system import beside
from layerstore.trees.unpack import creating
import fcntl
creating.__file__ = sys.argv[2]
lock = Descriptor(sys.argv[1], os.O_RDONLY)
fcntl.flock(lock.fd, fcntl.LOCK_EX)
helper = beside.Beside(creating.__file__, lock.fd, memory=4096)
beside.MSG_DONTWAIT = 0
assert helper.is_ready()
print("started", flush=True)
sys.stdin.read()
"""


@pytest.mark.timeout(60)
def test_a_process_whose_starter_is_killed_keeps_the_lock_until_it_ended_and_ends_by_itself(tmp_path):
    # at work still when it is left alone. Not stopped by a signal: the kernel wakes a stopped group that is left alone
    os.mkfifo(tmp_path / "work")
    program = pathlib.Path(creating.__file__).read_text()
    (tmp_path / "program.py").write_text(program.replace("if not request:", f"if not request:\n            open({str(tmp_path / 'work')!r}).read()"))
    starter = subprocess.Popen(
        [sys.executable, "-c", KILLED, tmp_path, tmp_path / "program.py"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert starter.stdout.readline() == b"started\n"
    starter.kill()
    starter.wait()
    with Descriptor(tmp_path, os.O_RDONLY) as lock:
        with pytest.raises(BlockingIOError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        (tmp_path / "work").write_text("done")
        fcntl.flock(lock, fcntl.LOCK_EX)   # waits for the end
    starter.stdin.close()
    starter.stdout.close()


@pytest.mark.timeout(60)
@pytest.mark.root
def test_a_child_forked_meanwhile_does_not_keep_it_alive(tmp_path):
    with Descriptor(tmp_path, os.O_RDONLY) as lock, process.beside(lock, Dresser()) as made:
        assert made is not None
        out, into = os.pipe()
        child = os.fork()
        if not child:
            os.close(into)
            os.read(out, 1)              # lives until we say so
            os._exit(0)
        os.close(out)
    os.close(into)                       # only now: the process had to end before
    assert os.waitpid(child, 0)[1] == 0
    assert no_process_is_left()


@pytest.mark.timeout(60)
@pytest.mark.root
def test_a_child_forked_while_it_starts_does_not_hide_its_end(tmp_path, monkeypatch):
    def started(*given, start=beside._start):
        children.append(os.fork())
        if not children[0]:
            os.close(into)
            os.read(out, 1)              # lives until we say so
            os._exit(0)
        return start(*given)

    children = []
    out, into = os.pipe()
    replaced(tmp_path, monkeypatch, "raise SystemExit\n")
    monkeypatch.setattr(beside, "_start", started)
    monkeypatch.setattr(beside, "MSG_DONTWAIT", 0)
    monkeypatch.setattr(beside, "_never_start", set())
    with Descriptor(tmp_path, os.O_RDONLY) as lock, process.beside(lock, Dresser()) as made:
        assert not made.is_ready()       # hears of its end
    os.close(into)
    os.close(out)
    assert os.waitpid(children[0], 0)[1] == 0


@pytest.mark.timeout(60)
@pytest.mark.root
def test_whoever_else_has_a_copy_of_the_socket_does_not_keep_it_alive(tmp_path):
    with Descriptor(tmp_path, os.O_RDONLY) as lock, process.beside(lock, Dresser()) as made:
        assert made is not None
        copy = os.dup(made._process._peer.fileno())   # as a child has that was started without Python's knowing
    os.close(copy)
    assert no_process_is_left()


@pytest.mark.root
def test_a_umask_that_changes_while_it_lives_cuts_no_mode(tmp_path, monkeypatch):
    monkeypatch.setattr(beside, "MSG_DONTWAIT", 0)
    old = os.umask(0o077)
    try:
        with Descriptor(tmp_path, os.O_RDONLY) as lock, process.beside(lock, Dresser()) as made:
            assert made.is_ready()
            os.umask(0o022)
            assert made.make([files.NewFile(lock, None, b"a", b"a", plain(0o644), memoryview(b"x"))]) == []
            assert (tmp_path / "a").stat().st_mode & 0o7777 == 0o644
    finally:
        os.umask(old)


def test_the_memory_that_both_have_is_there_before_it_is_written_to(monkeypatch):
    """Writing to what is not would kill the process, where no more is to be had."""
    def no_memory(fd, *_):
        os.fstat(fd)
        raise OSError(errno.ENOMEM, "no memory")

    monkeypatch.setattr(os, "posix_fallocate", no_memory)
    with pytest.raises(OSError, match="no memory"):
        beside.Beside(creating.__file__, 0, memory=4096)


@pytest.mark.root
def test_a_name_that_leaves_the_environment_meanwhile_is_no_error(monkeypatch):
    class Changing:
        def keys(self):
            return ["gone"]

        def __getitem__(self, key):
            raise KeyError(key)

    with monkeypatch.context() as patched:
        patched.setattr(os, "environ", Changing())
        with process.beside(0, Dresser()) as made:
            assert made is None


@pytest.mark.parametrize("program", [creating, reading])
def test_a_program_that_imports_nothing_of_ours_says_and_reads_what_who_starts_it_does(program):
    assert (program.READY, program.MESSAGE) == (beside.READY, beside.MESSAGE)


def test_no_descriptor_is_handed_over_by_duplicating_it_onto_itself(monkeypatch):
    """A glibc before 2.29 leaves it close-on-exec then: the program would not have it."""
    given = []
    monkeypatch.setattr(os, "posix_spawn", lambda *_, file_actions, **__: given.extend(file_actions))
    beside._start("program", 5, 3, 0)
    numbers = [(what[1], what[2]) for what in given if what[0] == os.POSIX_SPAWN_DUP2]
    assert numbers == [(5, 6), (3, 7), (0, 8)]


@pytest.mark.root
def test_the_program_is_started_where_every_low_descriptor_is_closed(tmp_path):
    """Its own may be 0 to 2 then."""
    program = "import os\nfor fd in range(3): os.close(fd)\n" + KILLED.split("print")[0] + "helper.close()\n"
    assert subprocess.run([sys.executable, "-c", program, tmp_path, creating.__file__], check=False).returncode == 0


def plain(mode):
    return Entry(b"n", "file", mode, 0, 0, 0, 0, b"", 0, 0, {}, None, 0)


@pytest.mark.root
def test_what_is_too_much_for_one_request_is_left_to_the_thread(tmp_path, monkeypatch):
    monkeypatch.setattr(process, "_MEMORY", 4096)
    monkeypatch.setattr(beside, "MSG_DONTWAIT", 0)
    with Descriptor(tmp_path, os.O_RDONLY) as lock, process.beside(lock, Dresser()) as made:
        fits, large = (files.NewFile(lock, None, name, name, plain(0o600), memoryview(bytes(size)))
                       for name, size in ((b"fits", 4000), (b"large", 4097)))
        assert made.is_ready()
        assert made.make([large, fits]) == [large]
        assert (fits.done, large.done) == (True, False)
