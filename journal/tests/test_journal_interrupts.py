"""KeyboardInterrupt and MemoryError at every line of the journal's verbs: afterwards it is usable, and nobody hangs.

Each line is interrupted in a forked child of its own, which then uses the same handle, from another thread too, closes
it, and opens it again; a child of the child opens it meanwhile.
"""

import os
import pickle
import shutil
import signal
import sys
import threading
from contextlib import contextmanager

import pytest
from parcels import create, mark, pack, reopen

import layerjournal
from layerjournal import Journal
from layerjournal.gate import Gate

ROOT = os.path.dirname(layerjournal.__file__) + "/"
HANG_SECONDS = 120
WORKERS = 2
FLOORS = {"update": 150, "read": 60, "checkpoint": 150, "archive": 300, "drop": 300, "grow": 150, "close": 20}
KEPT = []


def update(journal):
    with journal.read() as view:
        number = view.head()[0]
    pack(journal, f"p{number}")


def read(journal):
    with journal.read() as view:
        list(view.records())
        list(view.scan("parcels"))


def archive(journal):
    mark(journal)
    journal.archive()


def drop(journal):
    archive(journal)
    update(journal)
    archive(journal)
    journal.drop_segments(1)


def grow(journal):
    pack(journal, *(f"g{n}" for n in range(30)), note="x" * 60_000)


VERBS = {
    "update": update, "read": read, "checkpoint": mark, "archive": archive, "drop": drop, "grow": grow,
    "close": Journal.close,
}
MAP_BYTES = 1 << 20     # of which "grow" needs more


@contextmanager
def traced(function):
    sys.settrace(function)
    try:
        yield
    finally:
        sys.settrace(None)


def forget_what_is_remembered():
    """Lines that run once a process are passed in each of ours."""
    for module in [each for name, each in sys.modules.items() if name.startswith("layerjournal.")]:
        for value in vars(module).values():
            if hasattr(value, "cache_clear"):
                value.cache_clear()


def passed(verb, path):
    """The instructions that begin a line, in the order in which *verb* comes to them first."""
    seen = {}

    def line(frame, event, _arg):
        if event == "line":
            seen.setdefault((frame.f_code, frame.f_lasti), frame.f_lineno)
        return line

    def call(frame, _event, _arg):
        return line if frame.f_code.co_filename.startswith(ROOT) else None

    with reopen(path, map_size=MAP_BYTES) as journal:
        forget_what_is_remembered()
        with traced(call):
            VERBS[verb](journal)
    return [(code.co_filename, code.co_qualname, code.co_firstlineno, at, number) for (code, at), number in seen.items()]


def raising(point, error):
    """A trace function that raises *error* there, once; and whether it did."""
    landed = []

    def line(frame, event, _arg):
        if event == "line" and frame.f_lasti == point[3] and not landed:
            landed.append(True)
            raise error("injected")
        return line

    def call(frame, _event, _arg):
        code = frame.f_code
        return line if (code.co_filename, code.co_qualname, code.co_firstlineno) == point[:3] else None

    return call, landed


def descriptors():
    return len(os.listdir("/proc/self/fd"))


def starting(fn):
    """Begin to run *fn* in a forked child."""
    read_fd, write_fd = os.pipe()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            os.close(read_fd)
            with os.fdopen(write_fd, "wb") as pipe:
                pickle.dump(fn(), pipe)
            code = 0
        finally:
            os._exit(code)
    os.close(write_fd)
    return pid, read_fd


def ending(pid, read_fd):
    """What it returned; a text, if it hung or died."""
    with os.fdopen(read_fd, "rb") as pipe:
        data = pipe.read()
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    return pickle.loads(data) if code == 0 else f"the child ended with {code}: it hung, or died"


def in_child(fn):
    """Run *fn* in a forked child that is killed when it hangs."""
    def watched():
        signal.alarm(HANG_SECONDS)
        return fn()

    return ending(*starting(watched))


def interrupted(verb, path, point, error):
    """What is wrong after *verb* was interrupted at *point*; empty if nothing is."""
    bare = descriptors()
    journal = reopen(path, map_size=MAP_BYTES)
    full = descriptors()
    call, landed = raising(point, error)
    told = []   # in a __del__, or a generator that is being let go of, Python only tells of what is raised
    forget_what_is_remembered()
    sys.unraisablehook = lambda raised: told.append(raised.exc_type.__name__)
    came = raised_by(lambda: VERBS[verb](journal), call)
    sys.unraisablehook = sys.__unraisablehook__
    if not landed:
        return "not reached"
    if came != error.__name__ and not told:
        return f"it came out as {came}"
    if journal._engine.is_open:
        if descriptors() > full:
            return "a descriptor is left open"
        if journal._engine.busy:
            return "somebody is inside still"
        update(journal)
        elsewhere = threading.Thread(target=update, args=(journal,), daemon=True)
        elsewhere.start()
        elsewhere.join(HANG_SECONDS / 2)
        if elsewhere.is_alive():
            return "another thread hangs"
    beside = in_child(lambda: used(path))
    if beside:
        return f"another process: {beside}"
    journal.close()
    if descriptors() > bare:
        return "a descriptor is left open after the close"
    return used(path)


def raised_by(fn, call):
    try:
        with traced(call):
            fn()
    except BaseException as error:
        return type(error).__name__
    return "nothing"


def used(path):
    with reopen(path, map_size=MAP_BYTES) as journal:
        update(journal)
        archive(journal)
        return "; ".join(f"{f.code}: {f.message}" for f in journal.verify().findings)


def explored(directory, verb, share):
    """How many points of *share* were tried, and what was wrong."""
    start, copy = os.path.join(directory, "start"), os.path.join(directory, f"copy-{share}")
    shutil.copytree(start, copy)
    points = passed(verb, copy)
    found, count = [], 0
    for number, point in list(enumerate(points))[share::WORKERS]:
        shutil.rmtree(copy)
        shutil.copytree(start, copy)
        error = (KeyboardInterrupt, MemoryError)[number // WORKERS % 2]
        count += 1
        wrong = in_child(lambda point=point, error=error: interrupted(verb, copy, point, error))
        if wrong:
            found.append(f"{error.__name__} at {os.path.basename(point[0])}:{point[4]} ({point[1]}): {wrong}")
    return count, found


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("verb", VERBS)
def test_a_journal_that_is_interrupted_at_any_line_stays_usable_and_nobody_hangs(tmp_path, record_property, verb):
    with create(str(tmp_path / "start"), map_size=MAP_BYTES) as journal:
        pack(journal, "first")
    started = [starting(lambda n=n: explored(str(tmp_path), verb, n)) for n in range(WORKERS)]
    told = [ending(*each) for each in started]
    record_property("states", sum(count for count, _ in told))
    assert [line for _, found in told for line in found] == []
    assert sum(count for count, _ in told) >= FLOORS[verb]


def test_a_transaction_that_is_not_ended_is_seen(tmp_path, monkeypatch):
    """A planted mistake: the rig must notice a journal that leaks what an interrupt leaves behind."""
    with create(str(tmp_path / "start"), map_size=MAP_BYTES) as journal:
        pack(journal, "first")

    @contextmanager
    def leaking(gate):
        ticket = gate._inside.draw()
        gate._inside.show(ticket)
        KEPT.append(ticket)
        yield
        gate._inside.give_back(ticket)

    monkeypatch.setattr(Gate, "inside", leaking)
    monkeypatch.setattr(Gate, "patience", 0.5, raising=False)
    told = [each for n in range(WORKERS) for each in explored(str(tmp_path), "read", n)[1]]
    assert any("inside still" in line for line in told)


def test_a_line_that_is_not_come_to_is_an_error(tmp_path):
    with create(str(tmp_path / "start"), map_size=MAP_BYTES) as journal:
        pack(journal, "first")
    nowhere = (ROOT + "gate.py", "Gate.nowhere", 1, 2, 3)
    assert interrupted("read", str(tmp_path / "start"), nowhere, MemoryError) == "not reached"


def test_who_is_inside_and_forgotten_is_inside_no_more():
    gate = Gate(patience=30)

    def forgotten():
        inside = gate.inside()
        inside.__enter__()
        assert gate.depth == 1

    forgotten()
    assert not gate.occupied
    with gate.alone("a test"):
        pass


def test_one_is_alone_only_when_nobody_is_inside_and_only_one_is():
    gate, order, running = Gate(patience=60), [], threading.Event()

    def other():
        running.set()
        with gate.alone("a test"):
            order.append("alone")

    with gate.inside():
        thread = threading.Thread(target=other)
        thread.start()
        running.wait(60)
        order.append("inside")
    thread.join(60)
    assert order == ["inside", "alone"]
