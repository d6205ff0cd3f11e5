"""Compressed streams: what is recognised, decompressed, and refused."""

import bz2
import gzip
import lzma
import os
import sys
import zlib

import pytest
import zstandard

from layerstore.errors import CompressionError, LimitExceededError
from layerstore.formats.compression import decoders, decompressed, detect
from layerstore.formats.compression.writing import ZstdWriter
from layerstore.model import Limits

from deflatemaker import member

TEXT = b"".join(b"line %d of a text that compresses\n" % n for n in range(20_000))
NOISE = os.urandom(300_000)


def zst(data, **more):
    return zstandard.ZstdCompressor(**more).compress(data)


def skippable(data, n=0):
    return bytes([0x50 + n]) + b"\x2a\x4d\x18" + len(data).to_bytes(4, "little") + data


def cut(data, size):
    return [data[i:i + size] for i in range(0, len(data), size)]


def run(data, *, chunk=65_536, limits=None, **more):
    stream = decompressed(cut(data, chunk), limits=limits or Limits(), **more)
    return b"".join(stream), stream.compression


def run_pieces(*pieces):
    return b"".join(decompressed(iter(pieces), limits=Limits(), compression="zstd"))


@pytest.fixture(params=["isal", "zlib"])
def inflate(request, monkeypatch):
    """Both gzip decoders."""
    if request.param == "isal":
        pytest.importorskip("isal")
        from isal import isal_zlib as module
    else:
        module = zlib
    monkeypatch.setattr(decoders, "inflate", module)


def test_isal_is_used_where_it_is_installed():
    pytest.importorskip("isal")
    assert decoders.inflate.__name__ == "isal.isal_zlib"


FEWER, MORE = [   # codes than their lengths leave room for
    {"lengths": {0: 3, 1: 3, 2: 3, 3: 3}}, {"literals": {ord("a"): 2, 256: 2}}, {"distances": {0: 2}},
], [
    {"lengths": {0: 1, 1: 1, 2: 2, 3: 2}}, {"literals": {ord("a"): 1, ord("b"): 1, 256: 1}}, {"distances": {0: 1, 1: 1, 2: 1}},
]


def test_a_block_with_the_codes_that_its_lengths_allow_is_read(inflate):
    assert run(member(b"aaaa"))[0] == b"aaaa"


@pytest.mark.parametrize("codes", MORE)
def test_a_block_with_more_codes_than_their_lengths_allow_is_refused(inflate, codes):
    with pytest.raises(CompressionError):
        run(member(b"aaaa", **codes))


@pytest.mark.parametrize("codes", FEWER)
def test_a_block_with_fewer_codes_than_their_lengths_allow_is_refused_by_zlib_alone(inflate, codes):
    if decoders.inflate is zlib:
        with pytest.raises(CompressionError, match=r"invalid .* set"):
            run(member(b"aaaa", **codes))
    else:
        assert run(member(b"aaaa", **codes))[0] == b"aaaa"


@pytest.mark.parametrize("head, kind", [
    (gzip.compress(b"", mtime=0), "gzip"), (zst(b"x"), "zstd"), (skippable(b"abc", 3), "zstd"), (b"", "none"), (b"\0" * 10, "none"),
    (b"./", "none"), (lzma.compress(b""), "xz"), (bz2.compress(b"x"), "bzip2"),
])
def test_the_first_bytes_tell_what_a_stream_is(head, kind):
    assert detect(head) == kind


def test_lz4_is_refused_by_name():
    with pytest.raises(CompressionError, match="lz4"):
        run(b"\x04\x22\x4d\x18ab")


@pytest.mark.parametrize("chunk", [1, 5, 1000, 1 << 20])
@pytest.mark.parametrize(
    "pack", [gzip.compress, zst, bytes, lzma.compress, bz2.compress], ids=["gzip", "zstd", "none", "xz", "bzip2"],
)
def test_a_stream_comes_out_however_it_is_cut(pack, chunk):
    data = TEXT[:100_000] if chunk < 1000 else TEXT + NOISE
    assert run(pack(data), chunk=chunk)[0] == data


@pytest.mark.parametrize("size", [0, 1, 65_535, 1 << 20, (1 << 20) - 1, (1 << 20) + 1, 3 << 20])
@pytest.mark.parametrize("byte", [b"\0", None], ids=["zeros", "noise"])
def test_gzip_output_of_any_size_is_complete(inflate, size, byte):
    data = byte * size if byte else os.urandom(size)
    packed = gzip.compress(data, 1)
    for chunk in (len(packed), len(packed) - 8 or 1, 32 << 10):
        assert run(packed, chunk=chunk) == (data, "gzip")


def test_every_member_of_a_gzip_stream_is_read(inflate):
    data = b"".join(gzip.compress(part) for part in (b"one", b"", b"two" * 50_000, b"three"))
    assert run(data, chunk=100)[0] == b"one" + b"two" * 50_000 + b"three"


def test_many_small_members_do_not_take_quadratic_time(inflate):
    assert len(run(gzip.compress(b"x") * 30_000, chunk=1 << 20)[0]) == 30_000


def test_small_members_after_a_long_one_are_not_fed_with_what_follows_them(inflate, monkeypatch):
    """A long member is fed in long slices; each small one would copy the rest of such a slice."""
    fed, decoder = [], decoders.inflate

    class Counted:
        error = decoder.error

        class decompressobj:   # noqa: N801 - as the module calls it
            def __init__(self, wbits):
                self._it = decoder.decompressobj(wbits)

            def decompress(self, data, limit):
                fed.append(len(data))
                return self._it.decompress(data, limit)

            def __getattr__(self, name):
                return getattr(self._it, name)

    monkeypatch.setattr(decoders, "inflate", Counted)
    noise, small = os.urandom(1_000_000), gzip.compress(b"x")
    blob = gzip.compress(noise, 1) + small * 20_000
    stream = decompressed(cut(blob, 1 << 19), limits=Limits())
    assert b"".join(stream) == noise + b"x" * 20_000
    assert stream.bytes_in == len(blob)
    assert max(fed) > 1 << 17, "the long member is fed in long slices"
    assert sum(size > 1 << 15 for size in fed) < 20



def test_every_frame_of_a_zstd_stream_is_read_and_skippable_ones_are_skipped():
    data = skippable(b"head") + zst(b"one") + skippable(b"x" * 5000, 15) + zst(b"two" * 50_000) + skippable(b"")
    for chunk in (3, 100, 1 << 20):
        assert run(data, chunk=chunk) == (b"one" + b"two" * 50_000, "zstd")


@pytest.mark.parametrize("pack", [lzma.compress, bz2.compress], ids=["xz", "bzip2"])
@pytest.mark.parametrize("chunk", [1, 7, 1 << 20])
def test_every_stream_of_xz_or_bzip2_is_read(pack, chunk):
    assert run(pack(b"one") + pack(b"") + pack(b"two" * 500), chunk=chunk)[0] == b"one" + b"two" * 500


@pytest.mark.parametrize("pack", [lzma.compress, bz2.compress], ids=["xz", "bzip2"])
def test_an_xz_or_bzip2_stream_cut_anywhere_or_followed_by_junk_is_refused(pack):
    data = pack(b"hello world" * 30)
    for bad in (*(data[:n] for n in range(6, len(data))), data + b"junk", data + bytes(4)):
        with pytest.raises(CompressionError):
            run(bad)


def test_an_xz_stream_that_wants_too_much_memory_is_refused():
    greedy = lzma.compress(b"x", filters=[{"id": lzma.FILTER_LZMA2, "dict_size": 1 << 29}])
    with pytest.raises(CompressionError):
        run(greedy)


def test_where_python_lacks_a_codec_the_error_says_so(monkeypatch):
    monkeypatch.setitem(sys.modules, "lzma", None)
    with pytest.raises(CompressionError, match="built without lzma"):
        run(lzma.compress(b"x"))


def test_no_memory_for_decoding_is_not_blamed_on_the_content(inflate, monkeypatch):
    class Starved:
        error = decoders.inflate.error

        @staticmethod
        def decompressobj(_bits):
            class Decoder:
                def decompress(self, _data, _most):
                    raise MemoryError

            return Decoder()

    monkeypatch.setattr(decoders, "inflate", Starved)
    with pytest.raises(MemoryError):
        run(gzip.compress(b"x"))


def test_a_reserved_header_flag_is_refused_whatever_the_decoder(inflate):
    for flag in (0x20, 0x40, 0x80):
        data = bytearray(gzip.compress(b"one") + gzip.compress(b"two"))
        data[len(gzip.compress(b"one")) + 3] |= flag
        for chunk in (1, 1000):
            with pytest.raises(CompressionError, match="reserved"):
                run(bytes(data), chunk=chunk)


def test_a_sum_of_the_header_is_verified_whatever_the_decoder_and_wherever_it_is_cut(inflate):
    header = b"\x1f\x8b\x08\x12" + bytes(6) + b"a comment\0"   # FCOMMENT and FHCRC
    sum_ = zlib.crc32(header) & 0xFFFF
    rest = gzip.compress(b"content", mtime=0)[10:]
    for at in range(1, len(header) + 2):
        good = header + sum_.to_bytes(2, "little") + rest
        assert b"".join(decompressed([good[:at], good[at:]], limits=Limits())) == b"content", at
        for wrong in (0, sum_ ^ 1):
            bad = header + wrong.to_bytes(2, "little") + rest
            with pytest.raises(CompressionError):
                list(decompressed([bad[:at], bad[at:]], limits=Limits()))


@pytest.mark.parametrize("flags", range(0, 0x20, 2))
def test_a_header_with_any_fields_is_read_whatever_the_decoder_and_wherever_it_is_cut(inflate, flags):
    fields = {0x04: b"\x05\0extra", 0x08: b"a name\0", 0x10: b"a comment\0"}
    header = b"\x1f\x8b\x08" + bytes([flags]) + bytes(6) + b"".join(field for flag, field in fields.items() if flags & flag)
    if flags & 0x02:
        header += (zlib.crc32(header) & 0xFFFF).to_bytes(2, "little")
    data = header + gzip.compress(b"content", mtime=0)[10:]
    for at in range(len(header) + 1):
        assert b"".join(decompressed([data[:at], data[at:]], limits=Limits(), compression="gzip")) == b"content", at


def test_a_gzip_stream_cut_anywhere_is_refused(inflate):
    data = gzip.compress(b"hello world" * 3)
    for n in range(2, len(data)):
        with pytest.raises(CompressionError):
            run(data[:n], compression="gzip")


def test_a_second_gzip_member_cut_anywhere_is_refused(inflate):
    first, second = gzip.compress(b"one"), gzip.compress(b"two")
    for n in range(1, len(second)):
        with pytest.raises(CompressionError):
            run(first + second[:n])


def test_a_zstd_stream_cut_anywhere_is_refused():
    data = zst(b"hello world" * 30, write_checksum=True) + skippable(b"tail")
    whole = len(data) - len(skippable(b"tail"))
    for n in range(1, len(data)):
        if n == whole:
            continue   # at the end of a frame the stream is whole
        with pytest.raises(CompressionError):
            run(data[:n], compression="zstd")


@pytest.mark.parametrize("junk", [b"x", b"\0", b"\0" * 600, b"\x1f", b"\x28\xb5", b"junk" * 100])
@pytest.mark.parametrize("pack", [gzip.compress, zst], ids=["gzip", "zstd"])
def test_junk_after_the_end_is_refused(inflate, pack, junk):
    with pytest.raises(CompressionError):
        run(pack(TEXT) + junk)


@pytest.mark.parametrize("pack", [gzip.compress, lambda d: zst(d, write_checksum=True)], ids=["gzip", "zstd"])
def test_a_flipped_bit_never_gives_other_bytes(inflate, pack):
    data = bytearray(pack(TEXT[:3000]))
    refused = 0
    for at in range(12, len(data), 7):
        damaged = data.copy()
        damaged[at] ^= 0x10
        try:
            assert run(bytes(damaged))[0] == TEXT[:3000]   # a few bits of a zstd frame mean nothing
        except CompressionError:
            refused += 1
    assert refused > len(data) // 7 * 0.9


@pytest.mark.parametrize("compression", ["gzip", "zstd"])
def test_an_empty_stream_is_not_an_empty_compressed_one(compression):
    assert run(b"") == (b"", "none")
    with pytest.raises(CompressionError):
        run(b"", compression=compression)


@pytest.mark.parametrize("pack", [lambda d: gzip.compress(d, 9), zst], ids=["gzip", "zstd"])
def test_a_bomb_is_stopped_by_the_ratio(inflate, pack):
    bomb = pack(bytes(64 << 20))
    with pytest.raises(LimitExceededError, match="max_ratio"):
        run(bomb, limits=Limits(max_ratio=100))


def test_a_bomb_within_one_chunk_is_stopped_before_it_is_inflated():
    out = 0
    stream = decompressed([gzip.compress(bytes(200 << 20), 9)], limits=Limits(max_ratio=100))
    with pytest.raises(LimitExceededError):
        for piece in stream:
            out += len(piece)
    assert out <= 17 << 20


@pytest.mark.parametrize("pack", [gzip.compress, zst], ids=["gzip", "zstd"])
def test_what_compresses_very_well_but_is_small_is_no_bomb(pack):
    assert len(run(pack(bytes(8 << 20)), limits=Limits(max_ratio=2))[0]) == 8 << 20


@pytest.mark.parametrize("pack", [gzip.compress, zst, bytes], ids=["gzip", "zstd", "none"])
def test_more_bytes_than_allowed_are_refused(pack):
    with pytest.raises(LimitExceededError, match="max_bytes"):
        run(pack(NOISE), limits=Limits(max_bytes=len(NOISE) - 1))
    assert run(pack(NOISE), limits=Limits(max_bytes=len(NOISE)))[0] == NOISE


def test_no_piece_of_output_is_large(inflate):
    for data in (gzip.compress(bytes(50 << 20)), zst(bytes(50 << 20))):
        assert max(map(len, decompressed([data], limits=Limits(max_ratio=1 << 30)))) <= 17 << 20


def test_a_zstd_frame_with_a_huge_window_is_refused():
    params = zstandard.ZstdCompressionParameters(window_log=28, enable_ldm=True)
    obj = zstandard.ZstdCompressor(compression_params=params).compressobj()
    data = obj.compress(b"x" * 1000) + obj.flush()
    with pytest.raises(CompressionError, match="zstd"):
        run(data)


def test_the_writers_stream_is_read_back():
    parts = []
    writer = ZstdWriter(parts.append)
    for piece in cut(TEXT, 7000):
        writer.write(piece)
    writer.close()
    assert run(b"".join(parts)) == (TEXT, "zstd")


def test_zlib_takes_over_where_isal_is_missing(monkeypatch):
    import importlib

    monkeypatch.setitem(sys.modules, "isal", None)
    try:
        assert importlib.reload(decoders).inflate is zlib
    finally:
        monkeypatch.undo()
        importlib.reload(decoders)


@pytest.mark.parametrize("chunk", [1 << 20, 7, 1])
def test_a_zstd_frame_that_ends_before_the_size_that_it_says_is_refused_however_it_is_cut(chunk):
    """libzstd itself looks only if its last block is not empty, or if it gets all at once."""
    frame = b"\x28\xb5\x2f\xfd\x20\x68" + b"\0\0\0" * 20 + b"\1\0\0"   # 104 bytes, it says; only empty blocks
    with pytest.raises(CompressionError, match="size|corrupt"):
        run(frame, chunk=chunk)
    assert run(frame[:5] + b"\0" + frame[6:], chunk=chunk)[0] == b""


@pytest.mark.parametrize("frame", ["28b52ffd2000050000", "28b52ffda000003e00010000"])
def test_what_a_zstd_frame_is_does_not_depend_on_whether_it_comes_whole(frame):
    """libzstd reads a frame that it is given whole by other rules: of empty blocks, of a size that is wrong."""
    data = bytes.fromhex(frame)

    def outcome(*pieces):
        try:
            return run_pieces(*pieces)
        except CompressionError:
            return None

    found = {outcome(data[:at], data[at:]) for at in range(1, len(data))}
    assert len(found) == 1
    assert outcome(data) in found


# in each the end of the header looks like the beginning of a frame: a skippable one of nothing, twice, and one of b"x"
@pytest.mark.parametrize("frame", [
    "28b52ffd23 502a4d1800000000", "28b52ffda3 502a4d18 00000000", "28b52ffd23 28b52ffd 2001090000 78",
])
def test_a_zstd_frame_that_wants_a_dictionary_is_refused_wherever_it_is_cut(frame):
    data = bytes.fromhex(frame)
    for at in range(len(data)):
        with pytest.raises(CompressionError, match="dictionary|truncated"):
            run_pieces(data[:at], data[at:])


def test_a_zstd_frame_whose_header_ends_like_another_ones_beginning_is_read_wherever_it_is_cut():
    """Its window and its size, and the first of its two blocks, are a skippable frame of nothing."""
    data = bytes.fromhex("28b52ffd40 50 2a4d 180000 000000") + (3 | 20_007 << 3).to_bytes(3, "little") + b"\0"
    assert data[5:13] == skippable(b"")
    assert {run_pieces(data[:at], data[at:]) for at in range(len(data))} == {bytes(20_010)}


def test_a_zstd_frame_with_a_dictionary_of_number_0_needs_none():
    assert run_pieces(bytes.fromhex("28b52ffd21 00 01 090000 78")) == b"x"


def test_what_is_behind_a_skippable_frame_of_nothing_is_read_wherever_it_is_cut():
    data = skippable(b"") + zst(b"x") + skippable(b"") + skippable(b"abc")
    assert {run_pieces(data[:at], data[at:]) for at in range(len(data))} == {b"x"}
