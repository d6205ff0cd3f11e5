"""Processes that take jobs: each forked from a warm interpreter, with a mount namespace and a directory of its own."""

from __future__ import annotations

import gc
import os
import pickle
import selectors
import struct
import tempfile
import traceback
from collections.abc import Callable, Iterator, Sequence
from itertools import count

from crash.block import jobs as jobs_module
from crash.block.jobs import Job, Series, Settings
from crash.block.recording import Recording
from crash.disk.kernel_calls import die_with_parent, own_mounts
from crash.state import State

_FRAME = struct.Struct("<I")
_CHUNK = 1 << 16


class WorkerError(AssertionError):
    """A worker failed: of the rig, not of the store."""


def run(jobs: Sequence[Job], settings: Settings, *, each: int, rounds: int | None, workers: int) -> Iterator[State]:
    """The states of *jobs*, in the order in which they are judged; *rounds* times through, None: without end."""
    workers = min(workers, len(jobs))

    def working(share: int) -> Callable[[str], Iterator[State]]:
        def work(directory: str) -> Iterator[State]:
            for number in count() if rounds is None else range(rounds):
                for job in jobs[share::workers]:
                    yield from jobs_module.run(Job(job.fs, job.workload, number), settings, each, directory)
        return work

    yield from _gather([working(share) for share in range(workers)], settings.work)


def again(settings: Settings, path: str, number: int | None, limit: int | None) -> Iterator[State]:
    """The states of a kept recording, or one of them, as they were."""
    def work(directory: str) -> Iterator[State]:
        series = Series(Recording.load(path), settings, directory)
        for at, cut in enumerate(series.different(limit or (number or 0) + 1 or 1)):
            if number is None or at == number:
                yield series.state(cut, at, series.judge(cut, at))

    yield from _gather([work], settings.work)


def _gather(works: Sequence[Callable[[str], Iterator[State]]], directory: str) -> Iterator[State]:
    """What the workers yield, as it comes. Given up early, they are stopped, and take down what they have mounted."""
    with selectors.DefaultSelector() as selector:
        pids: list[int] = []
        pipes: list[int] = []
        gc.collect()
        gc.freeze()   # children would copy every page whose reference counts they touch
        try:
            for each in works:
                pid, pipe = _start(each, directory, pipes)
                pids.append(pid)
                pipes.append(pipe)
                selector.register(pipe, selectors.EVENT_READ, bytearray())
            while selector.get_map():
                for key, _ in selector.select():
                    data = os.read(key.fd, _CHUNK)
                    key.data.extend(data)
                    yield from _frames(key.data)
                    if not data:
                        selector.unregister(key.fileobj)
        finally:
            gc.unfreeze()
            for pipe in pipes:
                os.close(pipe)   # a worker that still writes is told so
            for pid in pids:
                os.waitpid(pid, 0)


def _frames(buffer: bytearray) -> Iterator[State]:
    while len(buffer) >= _FRAME.size:
        size = _FRAME.unpack_from(buffer)[0]
        if len(buffer) < _FRAME.size + size:
            return
        item = pickle.loads(bytes(buffer[_FRAME.size:_FRAME.size + size]))
        del buffer[:_FRAME.size + size]
        if not isinstance(item, State):
            raise WorkerError(item)
        yield item


def _start(work: Callable[[str], Iterator[State]], directory: str, others: Sequence[int]) -> tuple[int, int]:
    read, write = os.pipe()
    pid = os.fork()
    if pid != 0:
        os.close(write)
        return pid, read
    code = 1
    try:
        for each in (read, *others):
            os.close(each)
        die_with_parent()
        own_mounts()
        with tempfile.TemporaryDirectory(dir=directory) as own:
            _send_all(work(own), write)
        code = 0
    except BrokenPipeError:
        code = 0   # nobody listens any more
    except BaseException:  # a child must never return into its parent's stack
        traceback.print_exc()
    finally:
        os._exit(code)


def _send_all(states: Iterator[State], pipe: int) -> None:
    try:
        for state in states:
            _send(pipe, state)
    except BrokenPipeError:
        raise
    except Exception:
        _send(pipe, traceback.format_exc())   # the parent raises it


def _send(pipe: int, item: object) -> None:
    data = pickle.dumps(item)
    view = memoryview(_FRAME.pack(len(data)) + data)
    while view:
        view = view[os.write(pipe, view):]
