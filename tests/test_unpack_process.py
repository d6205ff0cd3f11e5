"""Files made by a process beside: the layer is the one that threads make, and whoever dies, nothing is left behind."""

import array
import fcntl
import hashlib
import os
import signal
import subprocess
import sys
import threading
from contextlib import closing
from _socket import AF_UNIX, SOCK_SEQPACKET, socketpair

import pytest
from tarmaker import file, pax
from test_unpack_threads import A, CLASHES, MANY, look, threads, trees  # noqa: F401 - a fixture

from layerstore.errors import IoError
from layerstore.formats.tar import Entry
from layerstore.system.descriptors import Descriptor
from layerstore.trees.dress import Dresser
from layerstore.trees.unpack import creating, files, making, process

STARTED = "import sys\nfrom _socket import socket\npeer = socket(fileno=int(sys.argv[1]))\npeer.send(b'ready')\n"


@pytest.fixture
def at_once(monkeypatch):
    """The process has the first file, and no thread has any that it could make."""
    monkeypatch.setattr(making, "_ITSELF", 0)
    monkeypatch.setattr(process, "MSG_DONTWAIT", 0)


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
def test_owners_modes_and_attributes_are_those_that_threads_give(trees, at_once):  # noqa: F811
    modes = [0o644, 0o755, 0o4755, 0o2711, 0o400, 0o1777, 0]
    data = b"".join(file(b"f%d" % n, A * (n % 3), mode=modes[n % 7], uid=n % 2, gid=n % 3) for n in range(200))
    tree = both(trees, data + pax((b"SCHILY.xattr.user.note", b"hello")) + file(b"x", A, mode=0o444))
    assert os.getxattr(tree.diff / "x", "user.note") == b"hello"


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
def test_where_the_program_cannot_run_threads_make_the_files(trees, at_once, monkeypatch, tmp_path):  # noqa: F811
    replaced(tmp_path, monkeypatch, "raise SystemExit(1)\n")
    both(trees, MANY)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python-that-is-not-there"))
    both(trees, MANY)
    assert no_process_is_left()


@pytest.mark.parametrize("unlike", ["frozen", "another program", "an ordinary user"])
def test_what_is_no_python_of_roots_is_not_run(monkeypatch, unlike):
    monkeypatch.setattr(process, "Beside", None)   # calling it would fail
    if unlike == "frozen":
        monkeypatch.setattr(sys, "frozen", True, raising=False)
    elif unlike == "another program":
        monkeypatch.setattr(sys, "executable", "/usr/bin/program")
    else:
        monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with process.beside(0, Dresser(), files.Births()) as made:
        assert made is None


@pytest.fixture
def here(tmp_path):
    with Descriptor(tmp_path, os.O_RDONLY | os.O_DIRECTORY) as fd:
        yield array.array("i", [fd])


def test_what_is_there_already_is_left_and_the_next_file_has_its_own_content(here, tmp_path):
    (tmp_path / "a").write_bytes(b"old")
    rows = [(0, b"a", 0o644, 3, 5, None), (0, b"b", 0o644, 4, 5, None)]
    assert creating.make(rows, here, memoryview(b"new" b"more")) == [None, hashlib.sha256(b"more").digest()]
    assert ((tmp_path / "a").read_bytes(), (tmp_path / "b").read_bytes()) == (b"old", b"more")


def test_what_could_not_be_finished_is_taken_away(here, tmp_path, monkeypatch):
    def refused(*_):
        raise PermissionError

    monkeypatch.setattr(os, "fchown", refused)
    assert creating.make([(0, b"a", 0o644, 3, 5, (0o644, 7, 7))], here, memoryview(b"new")) == [None]
    monkeypatch.setattr(os, "write", lambda _fd, data: len(data) - 1)
    assert creating.make([(0, b"b", 0o644, 3, 5, None)], here, memoryview(b"new")) == [None]
    assert os.listdir(tmp_path) == []


def test_requests_are_answered_until_nobody_asks(here, tmp_path):
    ours, theirs = socketpair(AF_UNIX, SOCK_SEQPACKET)
    thread = threading.Thread(target=creating.serve, args=(theirs, memoryview(b"new")))
    thread.start()
    asking = process.Beside.__new__(process.Beside)
    asking._peer = ours
    assert ours.recv(100) == creating.READY
    assert asking._ask([(0, b"a", 0o600, 3, 5, None)], here) == [hashlib.sha256(b"new").digest()]
    ours.close()
    thread.join()
    theirs.close()
    assert (tmp_path / "a").read_bytes() == b"new"


KILLED = """
import os, sys
from layerstore.formats.tar import Entry
from layerstore.system.descriptors import Descriptor
from layerstore.trees.unpack import files, process
import fcntl
lock = Descriptor(sys.argv[1], os.O_RDONLY)
fcntl.flock(lock.fd, fcntl.LOCK_EX)
beside = process.Beside(lock.fd, files.Births())
process.MSG_DONTWAIT = 0
assert beside.is_ready()
print("started", beside._pid, flush=True)
sys.stdin.read()
"""


@pytest.mark.timeout(60)
def test_a_process_whose_starter_is_killed_keeps_the_lock_until_it_ended_and_ends_by_itself(tmp_path):
    starter = subprocess.Popen([sys.executable, "-c", KILLED, tmp_path], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    pid = int(starter.stdout.readline().split()[1])
    os.kill(pid, signal.SIGSTOP)         # in the middle of something
    starter.kill()
    starter.wait()
    with Descriptor(tmp_path, os.O_RDONLY) as lock:
        with pytest.raises(BlockingIOError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.kill(pid, signal.SIGCONT)
        fcntl.flock(lock, fcntl.LOCK_EX)   # waits for the end
    starter.stdin.close()
    starter.stdout.close()


@pytest.mark.timeout(60)
@pytest.mark.root
def test_a_child_forked_meanwhile_does_not_keep_it_alive(tmp_path):
    with Descriptor(tmp_path, os.O_RDONLY) as lock, process.beside(lock, Dresser(), files.Births()) as made:
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


@pytest.mark.root
def test_what_is_too_much_for_one_request_is_left_to_the_thread(tmp_path, monkeypatch):
    monkeypatch.setattr(process, "_MEMORY", 4096)
    monkeypatch.setattr(process, "MSG_DONTWAIT", 0)
    entry = Entry(b"n", "file", 0o600, 0, 0, 0, 0, b"", 0, 0, {}, None, 0)
    with Descriptor(tmp_path, os.O_RDONLY) as lock, closing(process.Beside(lock, files.Births())) as beside:
        fits, large = (files.NewFile(lock, None, name, name, entry, memoryview(bytes(size)))
                       for name, size in ((b"fits", 4000), (b"large", 4097)))
        assert beside.is_ready()
        assert beside.make([large, fits]) == [large]
        assert (fits.done, large.done) == (True, False)
