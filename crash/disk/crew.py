"""Processes that yield crash states: forked from a warm interpreter, with mounts and a directory of their own."""

from __future__ import annotations

import gc
import os
import pickle
import selectors
import struct
import tempfile
import traceback
from collections.abc import Callable, Iterator, Sequence

from crash.disk.kernel_calls import die_with_parent, own_mounts
from crash.state import State

_FRAME = struct.Struct("<I")
_CHUNK = 1 << 16


class CrewError(AssertionError):
    """A worker failed: of the rig, not of the store."""


def gather(works: Sequence[Callable[[str], Iterator[State]]], directory: str) -> Iterator[State]:
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
            raise CrewError(item)
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
