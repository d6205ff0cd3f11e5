"""Jobs that threads do: each is done once, who waits hears of it, and whatever comes between, no thread is left."""

import gc
import os
import signal
import sys
import threading
import time
import weakref

import pytest

from layerstore.errors import BusyError, IoError
from layerstore.system import pool as pool_module
from layerstore.system import threads as threads_module
from layerstore.system.pool import Pool, pooled
from layerstore.system.threads import Worker, running

NAME = "layerstore-tried"
FILES = (pool_module.__file__, threads_module.__file__)


@pytest.fixture(autouse=True)
def interruptible():
    """Who is started in the background of a shell ignores the signal."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def left():
    return [thread.name for thread in threading.enumerate() if thread.name.startswith(NAME)]


def all_of(pool):
    found = []
    while pool:
        found += pool.finished(wait=10)
    return found


def test_every_job_is_done_once_and_told_once():
    done = []
    with pooled(3, NAME) as pool:
        jobs = [pool.submit(lambda n=n: done.append(n)) for n in range(100)]
        assert sorted(map(id, all_of(pool))) == sorted(map(id, jobs))
        assert pool.finished(wait=10) == []   # there are none, so nobody waits
    assert sorted(done) == list(range(100))
    assert left() == []


def test_as_many_are_done_at_once_as_there_are_threads():
    barrier = threading.Barrier(3)
    with pooled(3, NAME) as pool:
        for _ in range(3):
            pool.submit(lambda: barrier.wait(30))
        assert [job.error for job in all_of(pool)] == [None] * 3


def test_who_waits_gets_what_there_is_and_no_more_than_was_said():
    go_on = threading.Event()
    with pooled(2, NAME) as pool:
        slow = pool.submit(lambda: go_on.wait(60))
        quick = pool.submit(lambda: None)
        assert pool.finished(wait=30) == [quick]
        assert pool.finished(wait=0) == [] and pool.finished(wait=0.01) == [] and pool
        go_on.set()
        assert pool.finished(wait=30) == [slow]


def test_what_a_job_raises_is_its_own_and_is_raised_once_by_who_asks():
    def bad():
        raise ValueError("this one")

    with pooled(1, NAME) as pool:
        job, other = pool.submit(bad), pool.submit(lambda: None)
        all_of(pool)
        other.check()
        with pytest.raises(ValueError, match="this one"):
            job.check()
        job.check()


@pytest.mark.parametrize("asked", [True, False])
def test_an_error_keeps_nothing_alive_when_the_pool_is_gone(asked):
    class Thing:
        pass

    def bad(_thing):
        raise ValueError

    def use():
        thing = Thing()
        with pooled(2, NAME) as pool:
            for _ in range(2):
                pool.submit(lambda: bad(thing))
            jobs = all_of(pool)
            if asked:
                with pytest.raises(ValueError):
                    jobs[0].check()
        return weakref.ref(thing)

    gc.collect()
    gc.disable()
    try:
        assert use()() is None
    finally:
        gc.enable()


def test_a_job_that_no_thread_has_begun_is_left_when_the_pool_ends():
    done, begun, go_on = [], threading.Event(), threading.Event()

    def first():
        begun.set()
        go_on.wait(60)
        done.append(1)

    with pytest.raises(KeyError), pooled(1, NAME) as pool:
        pool.submit(first)
        pool.submit(lambda: done.append(2))
        begun.wait(60)
        threading.Timer(0.1, go_on.set).start()
        raise KeyError
    assert done == [1] and left() == []


def test_a_thread_that_ends_by_itself_is_an_error_to_who_waits(monkeypatch):
    monkeypatch.setattr(pool_module, "_LOOK_SECONDS", 0.01)

    class Poison:
        def put(self, _job):
            raise MemoryError("no more")

    with pooled(1, NAME) as pool:
        pool._threads[0]._done = Poison()
        pool.submit(lambda: None)
        with pytest.raises(MemoryError, match="no more"):
            pool.finished(wait=30)
        with pytest.raises(IoError, match="ended by itself"):
            pool.finished(wait=30)
    assert left() == []


def test_if_the_system_gives_too_few_threads_those_that_there_are_end(monkeypatch):
    start = threading.Thread.start

    def starting(thread):
        if thread.name == f"{NAME}_2":
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", starting)
    with pytest.raises(BusyError, match="can't start new thread"), pooled(4, NAME):
        pytest.fail("there are too few")
    assert left() == []


class Interrupter:
    """Raises KeyboardInterrupt at the n-th line of the pool and the threads beneath it that the main thread comes to."""

    def __init__(self, at):
        self.at, self.passed = at, 0

    def __call__(self, frame, event, _arg):
        if event == "call" and frame.f_code.co_filename not in FILES:
            return None
        if event == "line":
            self.passed += 1
            if self.passed == self.at:
                raise KeyboardInterrupt
        return self


def use():
    done = []
    with pooled(2, NAME) as pool:
        for n in range(4):
            pool.submit(lambda n=n: done.append(n))
        all_of(pool)
    return done


def settled():
    """No thread is left, within a moment: one whose start was interrupted is not waited for, and does nothing."""
    until = time.monotonic() + 30
    while left() and time.monotonic() < until:
        time.sleep(0.001)
    return left() == []


@pytest.mark.timeout(300)
def test_an_interrupt_at_any_line_leaves_no_thread_that_works():
    interrupted, at = 0, 0
    while True:
        at += 1
        interrupter = Interrupter(at)
        sys.settrace(interrupter)
        try:
            done = use()
        except KeyboardInterrupt:
            interrupted += 1
        else:
            break
        finally:
            sys.settrace(None)
        assert settled(), (at, left())
    assert sorted(done) == [0, 1, 2, 3] and interrupted == at - 1 > 50


def test_an_interrupt_while_a_thread_is_started_leaves_one_that_never_does_anything(monkeypatch):
    start = threading.Thread.start

    def starting(thread):
        start(thread)
        if thread.name == f"{NAME}_1":
            raise KeyboardInterrupt

    monkeypatch.setattr(threading.Thread, "start", starting)
    pool = Pool(2, NAME)
    done = []
    pool.submit(lambda: done.append(1))  # as nobody can by ``pooled``; the first thread may do it
    with pytest.raises(KeyboardInterrupt), running(pool):
        pytest.fail("not all were started")
    assert settled() and len(done) <= 1


class Slow(Worker):
    """Works until it is told to end, and a while longer."""

    def __init__(self):
        super().__init__(NAME)
        self.told, self.finish, self.ended = threading.Event(), threading.Event(), False

    def _work(self):
        self.told.wait(60)
        self.finish.wait(60)
        self.ended = True

    def _stop(self):
        self.told.set()


@pytest.mark.timeout(120)
def test_a_thread_is_waited_for_though_an_interrupt_comes_while_it_is_waited_for():
    """``Thread.join`` may take a running thread for an ended one then."""
    worker = Slow()

    def interrupt():
        worker.told.wait(60)
        for _ in range(20):
            time.sleep(0.01)
            os.kill(os.getpid(), signal.SIGINT)
            if interrupts:
                break
        time.sleep(0.2)
        worker.finish.set()

    interrupts = []
    other = threading.Thread(target=interrupt)
    with pytest.raises(KeyboardInterrupt):
        with running(worker):
            other.start()
            try:
                worker.close()
            except KeyboardInterrupt:
                interrupts.append(1)
                raise
    assert worker.ended and left() == []
    other.join()


@pytest.mark.timeout(120)
def test_that_test_can_tell_python_s_own_way_from_ours(monkeypatch):
    """An interrupt at the right place of ``join`` marks the thread as ended, here by hand; who asks Python is deceived."""
    worker = Slow()
    with running(worker):
        if sys.version_info < (3, 13):
            worker._thread._tstate_lock.release()
            worker._thread._stop()
            assert not worker._thread.is_alive()
        assert worker.is_alive()
        threading.Timer(0.1, worker.finish.set).start()
    assert worker.ended
