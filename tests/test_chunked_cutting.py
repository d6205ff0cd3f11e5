"""Where files are cut into chunks: where the field's tools cut, however the data comes in pieces."""

import random

import pytest

from layerstore.chunked.cutting import HOLE, cut


def as_specified(data):
    """perkeep's rolling checksum and the search for holes as containers/storage has them: byte by byte, nothing clever."""
    holes, at = [], 0
    while at < len(data):
        end = at
        while end < len(data) and data[end] == 0:
            end += 1
        if end - at >= HOLE:
            holes.append((at, end))
        at = max(end, at + 1)
    first, second, window, chunks, begin = 64 * 31, 64 * 63 * 31, bytearray(64), [], 0
    ends = dict(holes)
    at = 0
    while at < len(data):
        if at in ends:
            chunks += [(begin, at, False), (at, ends[at], True)]
            begin = at = ends[at]
            window[:] = bytes(64)        # so many zeros were rolled in, and more
            first, second = 64 * 31, 64 * 63 * 31
            continue
        old, window[at % 64] = window[at % 64], data[at]
        first += data[at] - old
        second += first - 64 * (old + 31)
        at += 1
        if second & 0xFFFF == 0xFFFF:
            chunks.append((begin, at, False))
            begin = at
    chunks.append((begin, len(data), False))
    return [each for each in chunks if each[0] < each[1]]


def chunks_of(pieces):
    found, begin, at, made = [], 0, 0, []
    for piece in cut(pieces):
        made.append(piece.data)
        at += len(piece.data)
        if piece.ends and at > begin:
            found.append((begin, at, piece.zeros))
            begin = at
    return found + ([(begin, at, False)] if at > begin else []), b"".join(made)


def in_pieces(data, rng, largest):
    at = 0
    while at < len(data):
        size = rng.randint(1, largest)
        yield data[at : at + size]
        at += size


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("largest", [700, 5000, 1 << 20])
def test_files_are_cut_where_the_specification_cuts_them_however_they_come(seed, largest):
    rng = random.Random(seed)
    data = b"".join(rng.choice([
        lambda: rng.randbytes(rng.randint(1, 60_000)), lambda: bytes(rng.randint(1, 3 * HOLE)),
        lambda: bytes(HOLE + rng.randint(-1, 1)), lambda: rng.randbytes(rng.randint(1, 70)),
    ])() for _ in range(12))
    expected = as_specified(data)
    assert len(expected) > 3
    assert chunks_of(in_pieces(data, rng, largest)) == (expected, data)


@pytest.mark.parametrize("size", [0, 1, HOLE - 1, HOLE, HOLE + 1, 10 * HOLE])
def test_a_file_of_zeros_is_a_hole_from_so_many_on(size):
    assert chunks_of([bytes(size)]) == ([(0, size, size >= HOLE)] if size else [], bytes(size))


def test_behind_an_insertion_the_cuts_are_the_same():
    data = random.Random(3).randbytes(400_000)
    before, _ = chunks_of([data])
    after, _ = chunks_of([b"inserted", data])
    assert len(before) > 3
    assert [(start + 8, end + 8) for start, end, _ in before[1:]] == [(start, end) for start, end, _ in after[1:]]


def test_what_follows_a_hole_is_cut_as_if_only_zeros_were_before_it():
    rng = random.Random(5)
    data = rng.randbytes(100_000) + bytes(HOLE) + rng.randbytes(100_000)
    assert chunks_of([data[:100_500], data[100_500:]]) == (as_specified(data), data)
