"""Blobs that pass for remote ones: they lie in a local image, but reading them is counted, and can be made to end.

``remotely()`` has a pull take every layer through one, in this process and in those that it forks. Each byte that is
read is put down in a file, so that what several processes read, killed ones included, can be told apart and added up.
"""

from __future__ import annotations

import os
import signal
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, BinaryIO, cast

from layerstore.differs import chunked, tar
from layerstore.errors import SourceError
from layerstore.model import LayerSource, SourceImage
from layerstore.partial import BlobSource
from layerstore.signatures import Signature
from layerstore.verbs import pull

STEP = 1 << 16   # a read gives no more than this, as a connection does


class RemoteBlob:
    """Implements ``BlobSource`` around *blob*. *reading* is told of each (offset, bytes) before they are given."""

    remote = True

    def __init__(self, blob: BlobSource, reading: Callable[[int, int], None]) -> None:
        self.label, self.size = f"the remote {blob.label}", blob.size
        self._blob, self._reading = blob, reading

    def open(self, offset: int = 0) -> BinaryIO:
        return cast("BinaryIO", _Counted(self._blob.open(offset), offset, self._reading))

    def ranges(self, wanted: Sequence[tuple[int, int]]) -> Iterator[tuple[int, bytes]]:
        for at, piece in self._blob.ranges(wanted):
            for start in range(0, len(piece), STEP):
                part = piece[start:start + STEP]
                self._reading(at + start, len(part))
                yield at + start, part


class _Counted:
    def __init__(self, stream: BinaryIO, at: int, reading: Callable[[int, int], None]) -> None:
        self._stream, self._at, self._reading = stream, at, reading

    def read(self, size: int = -1) -> bytes:
        data = self._stream.read(STEP if size < 0 else min(size, STEP))
        self._reading(self._at, len(data))
        self._at += len(data)
        return data

    def close(self) -> None:
        self._stream.close()

    def __enter__(self) -> _Counted:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()


@dataclass(frozen=True)
class Reads:
    """What was read, by whatever process: lines ``<digest> <offset> <bytes>`` in a file."""

    path: str

    def note(self, digest: str, at: int, count: int) -> None:
        fd = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            os.write(fd, f"{digest} {at} {count}\n".encode())
        finally:
            os.close(fd)

    def lines(self) -> list[tuple[str, int, int]]:
        """Every read so far, in order."""
        try:
            with open(self.path, encoding="ascii") as file:
                found = [line.split() for line in file]
        except FileNotFoundError:
            return []
        return [(digest, int(at), int(count)) for digest, at, count in found]

    def total(self) -> Counter[str]:
        """Bytes read, by digest."""
        return Counter({digest: 0 for digest, _, _ in self.lines()}) + sum(
            (Counter({digest: count}) for digest, _, count in self.lines()), Counter(),
        )

    def clear(self) -> None:
        """From now on as if nothing had been read."""
        if os.path.exists(self.path):
            os.unlink(self.path)


@contextmanager
def remotely(
    reads: Reads | None = None, *, ending_at: int | None = None, killed_at: int | None = None,
) -> Iterator[None]:
    """Every layer that is pulled in this context is remote.

    *ending_at*: after so many bytes the net is gone; *killed_at*: the process is killed.
    """
    left = [killed_at if ending_at is None else ending_at]

    def reading(digest: str, at: int, count: int) -> None:
        if left[0] is not None:
            left[0] -= count
            if left[0] < 0:
                if ending_at is None:
                    os.kill(os.getpid(), signal.SIGKILL)
                raise SourceError("the net is gone")
        if reads is not None:
            reads.note(digest, at, count)

    before = pull.open_source
    pull.open_source = lambda *args, **options: _Source(before(*args, **options), reading)  # type: ignore[assignment]
    try:
        yield
    finally:
        pull.open_source = before


@contextmanager
def read_first() -> Iterator[None]:
    """In this context nothing of a layer is unpacked before all of it was read, or the net was gone.

    So the calls of the threads that fetch, keep what they fetch, and take what is here have one order with those of the
    thread that unpacks. Only for what fits into the channels between them, which are not emptied meanwhile: a few pieces.
    """
    before = {kind: kind.start for kind in (tar._Ahead, chunked._Ahead)}

    def to_its_end(self: tar._Ahead | chunked._Ahead) -> None:
        before[type(self)](self)
        self._thread.join()

    for kind in before:
        kind.start = to_its_end  # type: ignore[method-assign]
    try:
        yield
    finally:
        for kind, start in before.items():
            kind.start = start  # type: ignore[method-assign]


class _Source:
    """An image source whose layers are remote."""

    def __init__(self, source: Any, reading: Callable[[str, int, int], None]) -> None:
        self._source, self._reading = source, reading

    def resolve(self) -> SourceImage:
        image = self._source.resolve()
        return cast("SourceImage", replace(image, layers=tuple(self._remote(each) for each in image.layers)))

    def signatures(self, image: SourceImage) -> tuple[Signature, ...]:
        return cast("tuple[Signature, ...]", self._source.signatures(image))

    def _remote(self, layer: LayerSource) -> LayerSource:
        digest = layer.descriptor.digest
        return replace(layer, blob=RemoteBlob(layer.blob, lambda at, count: self._reading(digest, at, count)))

    def __enter__(self) -> _Source:
        self._source.__enter__()
        return self

    def __exit__(self, *exc: object) -> None:
        self._source.__exit__(*exc)
