"""Where an interrupt can come in: the instructions that begin a line of the product, and an exception raised at one.

A *point* is finer than a line: a line that is come to in several ways (a ``with`` as it is entered and as it is left, a
``finally`` after success and after an error, a loop's head) has an instruction for each. Only files of layerstore and
layerjournal are traced, in every thread. Nothing here knows what a store is.
"""

from __future__ import annotations

import dis
import os
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import CodeType, FrameType
from typing import Any, NamedTuple

import layerjournal
import layerstore

ROOTS = {os.path.dirname(module.__file__ or "") + "/": name for name, module in
         (("layerstore/", layerstore), ("layerjournal/", layerjournal))}
NOT_PRODUCT = ("layerstore/testing/", "layerstore/cli/")

# Where a line begins with this, an error of a tracer is raised after the handler's own bookkeeping and before this part of
# it, so that Python keeps what was handled. No signal comes in there, and it allocates nothing.
_POP_EXCEPT = dis.opmap["POP_EXCEPT"]


class Point(NamedTuple):
    """An instruction that begins a line: which code, where in it, which line. ``file`` is relative to the package."""

    file: str
    function: str
    first: int    # the function's first line
    offset: int
    line: int

    def __str__(self) -> str:
        return f"{self.file}:{self.line}@{self.function}+{self.offset}"


class NotReachedError(AssertionError):
    """The exception was to be raised at a point, and the run did not come there."""


def file_of(code: CodeType) -> str | None:
    """The product's file that *code* is from, or None."""
    path = code.co_filename
    for root, name in ROOTS.items():
        if path.startswith(root):
            file = name + path[len(root):]
            return None if file.startswith(NOT_PRODUCT) else file
    return None


class Census:
    """Counts how often each point is passed while it is ``armed``."""

    def __init__(self) -> None:
        self._passed: Counter[tuple[CodeType, int, int]] = Counter()
        self._known: dict[CodeType, bool] = {}

    def armed(self) -> Any:
        return _tracing(self._call)

    def counts(self) -> dict[Point, int]:
        return {
            Point(file_of(code) or "", code.co_qualname, code.co_firstlineno, offset, line): n
            for (code, offset, line), n in self._passed.items() if code.co_code[offset] != _POP_EXCEPT
        }

    def _call(self, frame: FrameType, _event: str, _arg: object) -> Any:
        code = frame.f_code
        known = self._known.get(code)
        if known is None:
            known = self._known[code] = file_of(code) is not None
        return self._line if known else None

    def _line(self, frame: FrameType, event: str, _arg: object) -> Any:
        if event == "line":
            self._passed[frame.f_code, frame.f_lasti, frame.f_lineno] += 1
        return self._line


class Aim:
    """Raises an *error* at the *nth* passing of *point*, once, in whatever thread comes there.

    The error is made there, and not kept: it would keep alive what it was raised through.
    """

    def __init__(self, point: Point, nth: int, error: type[BaseException]) -> None:
        self.point, self.error, self.landed, self.in_main = point, error, False, True
        self._left, self._mutex = nth, threading.Lock()

    def armed(self) -> Any:
        return _tracing(self._call)

    def _call(self, frame: FrameType, _event: str, _arg: object) -> Any:
        code, aim = frame.f_code, self.point
        if code.co_firstlineno == aim.first and code.co_qualname == aim.function and file_of(code) == aim.file:
            return self._line
        return None

    def _line(self, frame: FrameType, event: str, _arg: object) -> Any:
        if event == "line" and frame.f_lasti == self.point.offset and not self.landed:
            with self._mutex:
                self._left -= 1
                self.landed = self._left == 0
            if self.landed:
                self.in_main = threading.current_thread() is threading.main_thread()
                raise self.error("injected")
        return self._line


@contextmanager
def _tracing(function: Callable[[FrameType, str, Any], Any]) -> Iterator[None]:
    before, threads = sys.gettrace(), threading.gettrace()
    threading.settrace(function)
    sys.settrace(function)
    try:
        yield
    finally:
        sys.settrace(before)
        threading.settrace(threads)  # type: ignore[arg-type]


def steady(censuses: list[Mapping[Point, int]]) -> dict[Point, int]:
    """The points that every census has, with the fewest passings of each: what is sure to be come to."""
    first, *others = censuses
    return {p: min(n, *(c[p] for c in others)) for p, n in first.items() if all(p in c for c in others)}


__all__ = ["Aim", "Census", "NotReachedError", "Point", "steady"]
