"""What a response is read from: bounded in its headers, and given up when hardly anything comes. No HTTP here.

A time-out of the socket alone ends with each byte: who sends one every few seconds would hold a pull for years.
"""

from __future__ import annotations

import io
import socket
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

__all__ = ["Paced"]

_LEAST = 1024            # bytes to come in each time of waiting that is as long as the idle time-out
_HEADERS = 256 << 10     # bytes of all headers of a response, interim ones included
_BUFFER = 64 << 10


class Paced(io.RawIOBase):
    """The raw stream of a socket. ``idle`` is seconds of waiting; the time that the reader takes does not count."""

    def __init__(self, sock: socket.socket) -> None:
        self._raw = sock.makefile("rb", buffering=0)
        self._idle = sock.gettimeout()
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
        count = self._raw.readinto(buffer)
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
            if self._came < _LEAST:
                raise TimeoutError("the response comes too slowly")
            self._waited, self._came = 0.0, 0

    def close(self) -> None:
        self._raw.close()
        super().close()
