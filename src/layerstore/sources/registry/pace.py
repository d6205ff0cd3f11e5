"""What a response is read from: bounded in its headers, given up when hardly anything comes, or nobody wants it. No HTTP.

A time-out of the socket alone ends with each byte: who sends one every few seconds would hold a pull for years.
"""

from __future__ import annotations

import io
import socket
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from contextvars import ContextVar
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

__all__ = ["SLICE", "TERMS", "Paced", "Terms"]

_HEADERS = 256 << 10     # bytes of all headers of a response, interim ones included
_BUFFER = 64 << 10
SLICE = 0.5              # seconds after which who waits looks whether it is still to wait


class Terms(NamedTuple):
    """On what terms a response is waited for: until one of *stops* is set, at *least_rate* bytes a second of waiting."""

    stops: Sequence[threading.Event] = ()
    least_rate: float = 0.0


TERMS: ContextVar[Terms] = ContextVar("TERMS", default=Terms())  # noqa: B039 - immutable; of the request that is being made


class Paced(io.RawIOBase):
    """The raw stream of a socket. ``idle`` is seconds of waiting; the time that the reader takes does not count.

    Its ``TERMS`` are those of when it is made. Once one of their stops is set, reading ends soon with ConnectionError.
    """

    def __init__(self, sock: socket.socket) -> None:
        self._sock, (self._stops, self._least) = sock, TERMS.get()
        self._raw = sock.makefile("rb", buffering=0)   # keeps the socket open, whoever else closes it
        self._idle = sock.gettimeout()
        if self._stops:
            sock.settimeout(SLICE if self._idle is None else min(SLICE, self._idle))
        self._waited = self._headers_waited = 0.0
        self._came = self._headers_came = 0
        self.in_headers = True

    def makefile(self, _mode: str) -> io.BufferedReader:
        """What ``http.client`` asks a socket for."""
        return io.BufferedReader(self, _BUFFER)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer, /) -> int | None:
        began = time.monotonic()
        while True:
            if any(each.is_set() for each in self._stops):
                raise ConnectionError("it is no longer wanted")
            try:
                count = self._sock.recv_into(buffer)
            except TimeoutError:
                if not self._stops or (self._idle is not None and time.monotonic() - began >= self._idle):
                    raise
                continue
            if count:
                self._look(count, time.monotonic() - began)
            return count

    def _look(self, count: int, waited: float) -> None:
        if self.in_headers:
            self._headers_came += count
            self._headers_waited += waited
            if self._headers_came > _HEADERS:
                raise ConnectionError("the headers do not end")
            if self._idle is not None and self._headers_waited > self._idle:
                raise TimeoutError("the headers come too slowly")
            return
        self._came += count
        self._waited += waited
        if self._idle is not None and self._waited > self._idle:
            if self._came < self._least * self._waited:
                raise TimeoutError("the response comes too slowly")
            self._waited, self._came = 0.0, 0

    def close(self) -> None:
        with suppress(OSError):   # it may be closed by now; or this was a proxy's answer, and TLS begins
            self._sock.settimeout(self._idle)
        self._raw.close()
        super().close()
