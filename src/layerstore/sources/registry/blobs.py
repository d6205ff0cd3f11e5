"""A layer's blob in a registry: whole, from any byte on, and in ranges; resumed where a connection broke.

Nothing is verified here but that the server answers what it was asked: the differ checks digests, whatever came from
how many connections. A server that ignores or refuses ``Range``, or answers with another one, is put up with in a
stream, by reading again what was had; in ``ranges`` it is RangesUnsupportedError. ``Content-Encoding`` is not looked at
and never undone: the digest is that of the bytes as stored.
"""

from __future__ import annotations

import io
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from typing import TYPE_CHECKING, BinaryIO, NoReturn, cast

from layerstore.errors import RangesUnsupportedError, RegistryError, SizeMismatchError
from layerstore.sources.registry.client import Attempts, Client
from layerstore.sources.registry.failures import Broken, refuse
from layerstore.sources.registry.multipart import PIECE, Odd, boundary_of, content_range, parts, pieces
from layerstore.sources.registry.transport import Reply

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

__all__ = ["RegistryBlob"]

_BUFFER = 128 << 10
_RANGES = 128            # in one request: Apache answers 200 at most, and then all of the blob
_HEADER = 3 << 10        # bytes of the header that asks for them: servers take 8 KiB of all headers
_NO_RANGES = (400, 403, 405, 413, 414, 416, 431, 501)   # what may be said to a range, and not to the whole


class RegistryBlob:
    """Implements ``BlobSource``. One request is under way for each stream or iterator that is being read."""

    remote = True

    def __init__(
        self, client: Client, digest: str, size: int, label: str, stops: tuple[threading.Event, ...] = (),
    ) -> None:
        self._client, self._digest, self.size, self.label, self._stops = client, digest, size, label, stops
        self._lock, self._reading = threading.Lock(), 0

    def until(self, stop: threading.Event) -> RegistryBlob:
        """The same blob, of which all reading ends soon once *stop* is set."""
        return RegistryBlob(self._client, self._digest, self.size, self.label, (*self._stops, stop))

    def open(self, offset: int = 0) -> BinaryIO:
        """As in ``BlobSource``. Nothing is asked for before the first read."""
        return cast("BinaryIO", io.BufferedReader(_Stream(self, offset, self._client.attempts(self._stops)), _BUFFER))

    def ranges(self, wanted: Sequence[tuple[int, int]]) -> Iterator[tuple[int, bytes]]:
        """As in ``BlobSource``: many in one request where the server can, else a request for each."""
        attempts = self._client.attempts(self._stops)
        todo = deque((start, start + length) for start, length in wanted if length)
        begun = False
        while todo:
            try:
                for at, piece in self._some(_batch(todo) if self._client.together else [todo[0]], attempts, begun=begun):
                    begun = True
                    _start, end = todo.popleft()
                    if at + len(piece) < end:
                        todo.appendleft((at + len(piece), end))
                    attempts.progress(len(piece))
                    yield at, piece
            except Odd:
                self._client.together = False
            except Broken as broken:
                attempts.failed(broken)

    @contextmanager
    def slot(self, attempts: Attempts) -> Iterator[None]:
        """To be had by a differ, which reads on, while it has a reply. One that reads the blob already needs no other.

        Or those of chunked layers, who now and then need a part while the next ones come, could wait in a circle.
        """
        with self._lock:
            first = self._reading == 0
            self._reading += 1
        try:
            with self._client.slot(attempts) if first and self._stops else nullcontext():
                yield
        finally:
            with self._lock:
                self._reading -= 1

    def reply_from(self, start: int, attempts: Attempts) -> Reply:
        """A reply whose next byte is the blob's byte *start* and whose last is the blob's. To be closed."""
        if start:
            reply = self._get([(start, self.size)], attempts)
            if reply.status == 200 or self._has_range(reply, start, self.size):
                return self._from(reply, start, attempts)
            reply.close()
        return self._from(self._get([], attempts), start, attempts)

    def _from(self, reply: Reply, start: int, attempts: Attempts) -> Reply:
        try:
            if reply.status == 206 and self._has_range(reply, start, self.size):
                return reply
            if reply.status == 206:
                self._check_range(reply, 0, self.size)
            else:
                self._check_whole(reply)
            for _at, piece in pieces(reply, 0, start, reply.url):
                attempts.again(len(piece), self.size, reply.url)
        except BaseException:
            reply.close()
            raise
        return reply

    def _get(self, ranges: Sequence[tuple[int, int]], attempts: Attempts) -> Reply:
        asked = {"Range": "bytes=" + ",".join(f"{start}-{end - 1}" for start, end in ranges)} if ranges else {}
        accept = (200, 206, *_NO_RANGES) if ranges else (200, 206)
        return self._client.get(f"blobs/{self._digest}", asked, attempts, accept)

    def _some(self, batch: list[tuple[int, int]], attempts: Attempts, *, begun: bool) -> Iterator[tuple[int, bytes]]:
        """The first of *batch*, or more of them, in order. Odd: none came, and they are better asked for one by one."""
        (start, end), alone = batch[0], len(batch) == 1
        with self.slot(attempts), self._get(batch, attempts) as reply:
            if reply.status == 206:
                boundary = boundary_of(reply.header("Content-Type"))
                if boundary is not None and not alone:
                    yield from parts(reply, boundary, batch, self.size)
                    return
                if not alone and content_range(reply.header("Content-Range"), self.size) != (start, end):
                    raise Odd
                self._client.together &= alone   # it takes the first, and forgets the others
                if begun or self._has_range(reply, start, end):
                    self._check_range(reply, start, end)
                else:
                    raise RangesUnsupportedError(f"the server answers another range than was asked for: GET {reply.url}")
            elif not alone:
                raise Odd
            elif reply.status != 200 or (start, end) != (0, self.size):
                self._refused(reply, begun=begun)
            else:
                self._check_whole(reply)
            yield from pieces(reply, start, end, reply.url)

    def _refused(self, reply: Reply, *, begun: bool) -> NoReturn:
        """Raise what it means that one range was not answered with it."""
        ignored = reply.status == 200
        if not begun:
            how = "ignores Range" if ignored else f"refuses Range ({reply.status})"
            raise RangesUnsupportedError(f"the server {how}: GET {reply.url}")
        if not ignored:
            refuse(reply.status, reply.url, reply.code())
        what = f"the server ignores Range: GET {reply.url}, after it did not"
        raise RegistryError(what, status=reply.status, url=reply.url)

    def _has_range(self, reply: Reply, start: int, end: int) -> bool:
        told = content_range(reply.header("Content-Range"), self.size)
        return reply.status == 206 and told == (start, end) and reply.length in (None, end - start)

    def _check_range(self, reply: Reply, start: int, end: int) -> None:
        if not self._has_range(reply, start, end):
            raise RegistryError(
                f"the server answers another range than bytes {start} to {end - 1} of {self.size}: GET {reply.url}",
                status=reply.status, url=reply.url,
            )

    def _check_whole(self, reply: Reply) -> None:
        if reply.length is not None and reply.length != self.size:
            raise SizeMismatchError(
                f"{self.label}, the blob {self._digest}", expected=self.size, actual=reply.length,
            )


def _batch(todo: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """As many of the first as fit into one request."""
    batch: list[tuple[int, int]] = []
    length = 0
    for start, end in todo:
        length += len(f"{start}-{end},")
        if batch and (len(batch) == _RANGES or length > _HEADER):
            break
        batch.append((start, end))
    return batch


class _Stream(io.RawIOBase):
    """A blob from some byte on, over as many connections as it takes. For one thread at a time."""

    def __init__(self, blob: RegistryBlob, offset: int, attempts: Attempts) -> None:
        self._blob, self._position, self._attempts = blob, offset, attempts
        self._reply: Reply | None = None
        self._slot = ExitStack()   # had while there is a reply

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer, /) -> int:
        view = memoryview(buffer).cast("B")[: min(self._blob.size - self._position, PIECE)]
        if not view:
            return 0
        data = self._next(len(view))
        view[: len(data)] = data
        self._position += len(data)
        self._attempts.progress(len(data))
        if self._position == self._blob.size:
            self._drop()
        return len(data)

    def _next(self, count: int) -> bytes:
        while True:
            try:
                if self._reply is None:
                    self._slot.enter_context(self._blob.slot(self._attempts))
                    self._reply = self._blob.reply_from(self._position, self._attempts)
                data = self._reply.read(count)
                if data:
                    return data
                raise Broken(f"GET {self._reply.url}: it ended early", self._reply.url)
            except Broken as broken:
                self._drop()
                self._attempts.failed(broken)

    def _drop(self) -> None:
        reply, self._reply = self._reply, None
        with self._slot:
            if reply is not None:
                reply.close()

    def close(self) -> None:
        self._drop()
        super().close()
