"""A zstd stream is cut where its blocks end: nothing is lost, and no piece becomes much, however it is made."""

import random

import pytest
import zstandard

from layerstore.formats.zstdblocks import in_pieces

MIB = 1 << 20
SKIPPABLE = b"\x5a\x2a\x4d\x18" + (300).to_bytes(4, "little") + bytes(range(100)) * 3
CONTENTS = {
    "nothing": b"", "a byte": b"x", "zeros": bytes(10 * MIB), "text": b"some words, " * 300_000,
    "noise": random.Random(1).randbytes(MIB), "mixed": (random.Random(2).randbytes(9_000) + bytes(150_000)) * 30,
}


def frame(content, **more):
    return zstandard.ZstdCompressor(**more).compress(content)


def streamed(content):
    made = zstandard.ZstdCompressor(write_checksum=True, write_content_size=False).compressobj()
    return b"".join((made.compress(content[:1000]), made.flush(zstandard.COMPRESSOBJ_FLUSH_BLOCK), made.compress(content[1000:]), made.flush()))


def cut(data, size):
    return (data[at : at + size] for at in range(0, len(data), size))


def becomes(pieces):
    """What each piece becomes, and all together."""
    context = zstandard.ZstdDecompressor(max_window_size=1 << 27)
    decoder, sizes, made = context.decompressobj(), [], []
    for piece in pieces:
        sizes.append(0)
        while piece:
            output = decoder.decompress(piece)
            sizes[-1] += len(output)
            made.append(output)
            piece = decoder.unused_data if decoder.eof else b""
            if decoder.eof:
                decoder = context.decompressobj()
    return sizes, b"".join(made)


@pytest.mark.parametrize("size", [1, 7, 1000, MIB], ids=str)
@pytest.mark.parametrize("what", CONTENTS)
def test_all_bytes_come_in_order_and_no_piece_becomes_much_more_than_a_mebibyte(what, size):
    content = CONTENTS[what]
    stream = b"".join((frame(content), SKIPPABLE, streamed(content), frame(content, write_checksum=True, level=9), SKIPPABLE))
    if size < 1000 and len(stream) > 100_000:
        stream = stream[:100_000]        # enough for what lies across chunks
    pieces = list(in_pieces(cut(stream, size)))
    assert b"".join(pieces) == stream
    sizes, made = becomes(pieces)
    assert max(sizes) <= MIB + 128 * 1024   # the last bytes of a block may come first
    assert made == (content * 3)[: len(made)]


def test_a_usual_stream_is_cut_into_few_pieces():
    stream = frame(random.Random(3).randbytes(8 * MIB))
    assert len(list(in_pieces(cut(stream, MIB)))) < 40


@pytest.mark.parametrize("what", ["no magic number", "a reserved block"])
def test_what_is_not_understood_is_handed_on_in_small_pieces(what):
    strange = {"no magic number": b"junk", "a reserved block": b"\x28\xb5\x2f\xfd\x20\x05\x06\x00\x00"}[what]
    stream = frame(b"x" * 5000) + strange + bytes(100_000)
    pieces = list(in_pieces(cut(stream, 30_000)))
    assert b"".join(pieces) == stream
    assert max(map(len, pieces)) <= 512


def test_headers_that_become_nothing_do_not_make_a_piece_long():
    """Who decompresses copies what comes after a frame's end."""
    stream = (b"\x50\x2a\x4d\x18" + bytes(4)) * 10_000
    assert max(map(len, in_pieces(cut(stream, MIB)))) <= 64


@pytest.mark.parametrize("strange", [b"", b"junk"], ids=["understood", "not understood"])
def test_an_empty_chunk_among_others_is_nothing(strange):
    stream = frame(b"x" * 5000) + strange
    assert b"".join(in_pieces(iter([b"", stream[:7], b"", stream[7:], b""]))) == stream
