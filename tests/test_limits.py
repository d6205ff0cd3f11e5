"""Bombs: each limit stops its own, says which it was and how much it allows, and memory and disk stay small until then.

Each bomb is unpacked in a child process, whose peak of memory is measured from where it began. A bomb that were not
stopped would pass its margin by far.
"""

import bz2
import itertools
import json
import lzma
import os
import struct
import threading
import types
import zlib

import pytest
from tarmaker import END, file, gnu_long, hardlink, header, number, pad, pax, record, symlink
from test_unpack import FORM

from layerstore import errors
from layerstore.differs import TarDiffer
from layerstore.model import DiffTarget, Limits
from layerstore.testing import run_child

MEMORY = 64 << 20        # bytes above what the process had: chunks between threads, one extension header, the decoders
MARGIN = 8 << 20         # of the disk: batches of small files that threads still had
DISK = 4 << 20           # bytes beyond the limit: what is written before a limit is looked at again



def detonate(tmp_path, blob, **limits):
    """Unpack *blob* (bytes, or a function that gives chunks) in a child; (error's name, limit, maximum, memory, disk)."""
    chunks = (lambda: iter([blob])) if isinstance(blob, bytes) else blob
    told = tmp_path / "told"

    def child():
        (tmp_path / "diff").mkdir()
        fds = [os.open(path, os.O_RDONLY) for path in (tmp_path, tmp_path / "diff")]
        begin = reset_peak()
        try:
            TarDiffer(Chunked(chunks())).apply_diff(DiffTarget(*fds, overlay_form=FORM, limits=Limits(**limits)))
            found = ["nothing", None, None]
        except errors.InputError as error:
            found = [type(error).__name__, getattr(error, "limit", None), getattr(error, "maximum", None)]
        told.write_text(json.dumps([*found, status("VmHWM") - begin, disk(tmp_path)]))

    assert os.waitstatus_to_exitcode(run_child(child)) == 0
    return json.loads(told.read_text())


class Chunked:
    """A file object of chunks that are made when they are asked for."""

    def __init__(self, chunks):
        self._chunks = chunks

    def read(self, _size):
        return next(self._chunks, b"")

    def close(self):
        pass


def status(field):
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) << 10 for line in file if line.startswith(field + ":"))


def reset_peak():
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")
    return status("VmRSS")


def disk(top):
    return sum(os.lstat(os.path.join(d, n)).st_blocks * 512 for d, _, names in os.walk(top) for n in names)


def stopped(tmp_path, blob, limit, maximum, *, memory=MEMORY, disk_limit=0, **limits):
    error, by, most, used, written = detonate(tmp_path, blob, **{limit: maximum}, **limits)
    assert (error, by, most) == ("LimitExceededError", limit, maximum)
    assert used < memory, f"{used >> 20} MiB of memory"
    assert written < disk_limit + DISK, f"{written >> 20} MiB on disk"


def refused(tmp_path, blob, error, *, memory=MEMORY, **limits):
    found, _, _, used, written = detonate(tmp_path, blob, **limits)
    assert found == error
    assert used < memory, f"{used >> 20} MiB of memory"
    assert written < DISK


# -- compressed bombs: a file of endless zeros

HUGE = header(b"zeros", size=1 << 39, raw_size=number(1 << 39, 12))


def gzip_bomb():
    """A gigabyte of zeros a megabyte."""
    stream = zlib.compressobj(9, zlib.DEFLATED, 31)
    yield stream.compress(HUGE) + stream.flush(zlib.Z_FULL_FLUSH)
    zeros = stream.compress(bytes(8 << 20)) + stream.flush(zlib.Z_FULL_FLUSH)   # refers to nothing before it
    while True:
        yield zeros


def zstd_frame(window, blocks):
    """A frame made by hand: a window of 2**window bytes, then (type, size, data) blocks; RLE blocks are type 1."""
    made = b"\x28\xb5\x2f\xfd\x00" + bytes([(window - 10) << 3])
    for n, (kind, size, data) in enumerate(blocks):
        made += struct.pack("<I", (n == len(blocks) - 1) | kind << 1 | size << 3)[:3] + data
    return made


def zstd_bomb(window=17):
    yield zstd_frame(17, [(0, 512, HUGE)])
    zeros = zstd_frame(window, [(1, 1 << 17, b"\0")] * 64)   # 8 MiB of zeros in 256 bytes
    while True:
        yield zeros


def xz_bomb():
    yield lzma.compress(HUGE, preset=0)
    zeros = lzma.compress(bytes(16 << 20), preset=0)
    while True:
        yield zeros


def bzip2_bomb():
    yield bz2.compress(HUGE, 1)
    zeros = bz2.compress(bytes(16 << 20))
    while True:
        yield zeros


BOMBS = {"gzip": gzip_bomb, "zstd": zstd_bomb, "xz": xz_bomb, "bzip2": bzip2_bomb}


@pytest.mark.parametrize("kind", BOMBS)
def test_a_compressed_bomb_is_stopped_by_its_ratio(kind, tmp_path):
    stopped(tmp_path, BOMBS[kind], "max_ratio", 200, memory=MEMORY + (32 << 20), disk_limit=48 << 20)


@pytest.mark.parametrize("kind", BOMBS)
def test_a_compressed_bomb_is_stopped_by_its_bytes(kind, tmp_path):
    stopped(tmp_path, BOMBS[kind], "max_bytes", 8 << 20, disk_limit=8 << 20)   # its header alone is refused


def pattern_bomb():
    """The same of bytes that take space on the disk: within every limit on what may be unpacked, but not within the disk."""
    stream = zlib.compressobj(9, zlib.DEFLATED, 31)
    yield stream.compress(header(b"x", size=1 << 38, raw_size=number(1 << 38, 12))) + stream.flush(zlib.Z_FULL_FLUSH)
    piece = stream.compress(b"x" * (8 << 20)) + stream.flush(zlib.Z_FULL_FLUSH)
    while True:
        yield piece


def small_files_bomb():
    stream = zlib.compressobj(9, zlib.DEFLATED, 31)
    for n in itertools.count():
        yield stream.compress(b"".join(file(b"%d-%d" % (n, m), b"x" * 50_000) for m in range(160))) + stream.flush(zlib.Z_FULL_FLUSH)


@pytest.mark.parametrize("bomb", [pattern_bomb, small_files_bomb])
def test_a_bomb_within_all_limits_leaves_the_disk_what_is_to_stay_free(tmp_path, monkeypatch, bomb):
    (tmp_path / "diff").mkdir()
    keep, size = 4 << 20, 20 << 20

    def statvfs(fd):
        return types.SimpleNamespace(f_bavail=(size - disk(tmp_path)) // 4096, f_frsize=4096)

    monkeypatch.setattr(os, "fstatvfs", statvfs)
    fds = [os.open(path, os.O_RDONLY) for path in (tmp_path, tmp_path / "diff")]
    with pytest.raises(errors.NoSpaceError, match="would fill the disk") as caught:
        TarDiffer(Chunked(bomb())).apply_diff(DiffTarget(*fds, overlay_form=FORM, keep_free=keep))
    for fd in fds:
        os.close(fd)
    assert caught.value.free < keep
    assert size - disk(tmp_path) > keep - MARGIN, "but for what was on its way when it was looked"


def test_zeros_within_all_limits_take_no_disk(tmp_path):
    """So nothing but its length ends it."""
    error, by, _, _, written = detonate(tmp_path, lambda: itertools.chain(itertools.islice(gzip_bomb(), 9), [b""]))
    assert (error, by) == ("ArchiveError", None) or error == "CompressionError"
    assert written < DISK


def test_a_stream_that_is_longer_than_its_files_is_stopped_by_its_bytes(tmp_path):
    stopped(tmp_path, lambda: (bytes(1 << 20) for _ in range(1 << 20)), "max_bytes", 4 << 20)


def test_a_zstd_window_beyond_the_usual_is_refused_before_memory_is_taken(tmp_path):
    blob = zstd_frame(31, [(1, 1 << 17, b"\0")] * 8)
    refused(tmp_path, blob, "CompressionError", max_ratio=1 << 40)


def test_the_largest_zstd_window_costs_itself_and_no_more(tmp_path):
    frame = zstd_frame(27, [(0, 512, HUGE), *[(1, 1 << 17, b"\0")] * 3000])
    stopped(tmp_path, frame, "max_ratio", 200, memory=MEMORY + (128 << 20) + (32 << 20), disk_limit=48 << 20)


def test_an_xz_dictionary_beyond_the_usual_is_refused_before_memory_is_taken(tmp_path):
    blob = bytearray(lzma.compress(bytes(100), filters=[{"id": lzma.FILTER_LZMA2, "preset": 0, "dict_size": 1 << 16}]))
    blob[blob.index(b"\x21\x01") + 2] = 38   # 2 GiB (the .xz file format, 5.3.1)
    end = 12 + (blob[12] + 1) * 4
    blob[end - 4 : end] = zlib.crc32(blob[12 : end - 4]).to_bytes(4, "little")
    refused(tmp_path, bytes(blob), "CompressionError")


# -- bombs of many


def test_a_million_empty_entries_are_stopped(tmp_path):
    def entries():
        for start in range(0, 1_000_000, 1_000):
            yield b"".join(file(b"%d" % n) for n in range(start, start + 1_000))

    stopped(tmp_path, entries, "max_entries", 3_000)


def test_a_name_of_ten_thousand_directories_is_stopped(tmp_path):
    name = b"/".join([b"d"] * 10_000)
    stopped(tmp_path, gnu_long(b"L", name) + file(b"x"), "max_depth", 255, max_path_length=1 << 20)


def test_directories_that_names_imply_are_entries_too(tmp_path):
    names = b"".join(gnu_long(b"L", b"/".join([b"%d" % n] * 250)) + file(b"x") for n in range(10_000))
    stopped(tmp_path, names, "max_entries", 3_000)


def test_files_whose_headers_are_large_do_not_pile_up_in_memory(tmp_path):
    """Records wait for files that threads make, and to be compressed: neither for long."""
    values = b"".join(record(b"SCHILY.xattr.user.x%d" % n, os.urandom(60_000)) for n in range(16))

    def chunks():
        for n in range(250):
            yield pax(data=values) + file(b"f%d" % n, b"content")
        yield END

    error, _, _, used, _ = detonate(tmp_path, chunks, max_xattr_bytes=1 << 40)
    assert error == "nothing"
    assert used < MEMORY, f"{used >> 20} MiB of memory"


@pytest.mark.parametrize("implied", [False, True], ids=["named", "implied"])
def test_directories_without_end_are_stopped(tmp_path, implied):
    def chunks():
        for n in itertools.count():
            yield file(b"d%d/f" % n) if implied else header(b"d%d/" % n, b"5")

    stopped(tmp_path, chunks, "max_directories", 5_000, disk_limit=5_001 * 8192)


def test_a_path_that_is_too_long_is_stopped(tmp_path):
    stopped(tmp_path, gnu_long(b"L", b"/".join([b"d" * 200] * 100)) + file(b"x"), "max_path_length", 4_096)


@pytest.mark.parametrize("link", [symlink, hardlink])
def test_a_link_that_is_too_long_is_stopped(link, tmp_path):
    most = {symlink: 4_095, hardlink: 4_096}[link]   # a link's target ends in a NUL of its own
    error, limit, maximum, _, _ = detonate(tmp_path, gnu_long(b"K", b"/".join([b"d" * 200] * 100)) + link(b"x", b"y"))
    assert (error, limit, maximum) == ("LimitExceededError", "max_path_length", most)


# -- headers of a gigabyte


def endless(head):
    def chunks():
        yield head
        while True:
            yield bytes(1 << 20)

    return chunks


@pytest.mark.parametrize("kind", [b"x", b"g", b"L", b"K"])
def test_an_extension_header_of_a_gigabyte_is_stopped_unread(kind, tmp_path):
    stopped(tmp_path, endless(header(b"h", kind, size=1 << 30)), "max_pax_record", 1 << 20, memory=24 << 20)


# -- attributes


def test_a_million_attributes_are_stopped_by_the_header_that_they_need(tmp_path):
    body = b"".join(record(b"SCHILY.xattr.user.%d" % n, b"") for n in range(1_000_000))
    stopped(tmp_path, pax(data=body) + file(b"x"), "max_pax_record", 1 << 20)


def test_a_header_full_of_attributes_is_stopped(tmp_path):
    body = b"".join(record(b"SCHILY.xattr.user.%d" % n, b"") for n in range(30_000))
    stopped(tmp_path, pax(data=body) + file(b"x"), "max_xattrs", 128)


def test_the_value_of_an_attribute_is_limited(tmp_path):
    stopped(tmp_path, pax((b"SCHILY.xattr.user.a", b"x" * 65_537)) + file(b"x"), "max_xattr_value", 65_536)


def test_attributes_of_all_entries_are_limited_together(tmp_path):
    def chunks():
        head = pax((b"SCHILY.xattr.user.a", b"x" * 3_000))
        for n in range(1_000_000):
            yield head + file(b"%d" % n)

    stopped(tmp_path, chunks, "max_xattr_bytes", 1 << 20, disk_limit=8 << 20)


# -- sparse files


def sparse(size, segments=(), data=b""):
    segments = [*segments, (size, 0)]    # as GNU tar ends what ends with a hole
    numbers = b",".join(b"%d,%d" % each for each in segments)
    return pax(
        (b"GNU.sparse.size", b"%d" % size), (b"GNU.sparse.numblocks", b"%d" % len(segments)), (b"GNU.sparse.map", numbers),
    ) + file(b"sparse", data)


def test_a_sparse_file_of_eight_exbibytes_is_stopped(tmp_path):
    stopped(tmp_path, sparse((1 << 63) - 1) + END, "max_bytes", 1 << 40)


def test_holes_are_limited_by_themselves(tmp_path):
    """A kilobyte of tar is an hour of hashing zeros."""
    stopped(tmp_path, (sparse(1 << 30) + sparse(1 << 39)) + END, "max_hole_bytes", 1 << 35)


def test_data_of_a_sparse_file_is_no_hole(tmp_path):
    found = detonate(tmp_path, sparse(4_096, [(0, 2_048)], b"x" * 2_048) + END, max_hole_bytes=2_048)
    assert found[0] == "nothing"


def test_hashing_holes_can_be_cancelled(tmp_path):
    class Later(threading.Event):
        left = 20

        def is_set(self):
            self.left -= 1
            return self.left < 0

    (tmp_path / "diff").mkdir()
    fds = [os.open(path, os.O_RDONLY) for path in (tmp_path, tmp_path / "diff")]
    try:
        target = DiffTarget(*fds, overlay_form=FORM, cancelled=Later())
        with pytest.raises(errors.LayerstoreError, match="cancelled"):
            TarDiffer(sparse(1 << 35) + END).apply_diff(target)
    finally:
        for fd in fds:
            os.close(fd)


def many_old_gnu():
    slots = b"%011o\0%011o\0" % (0, 0)
    yield header(b"s", b"S", magic=b"ustar  \0", tail=bytes(41) + slots * 4 + b"\1" + b"%011o\0" % 0)
    while True:
        yield (slots * 21 + b"\1").ljust(512, b"\0") * 1_000


def many_in_data():
    yield pax((b"GNU.sparse.major", b"1"), (b"GNU.sparse.minor", b"0"), (b"GNU.sparse.realsize", b"9"))
    yield header(b"s", size=1 << 33, raw_size=number(1 << 33, 12)) + pad(b"1000000000\n")
    while True:
        yield b"0\n0\n" * (1 << 16)


@pytest.mark.parametrize("chunks", [many_old_gnu, many_in_data])
def test_a_sparse_map_without_end_is_stopped(chunks, tmp_path):
    stopped(tmp_path, chunks, "max_pax_record", 1 << 20)


def test_a_sparse_map_of_empty_slots_without_end_is_stopped(tmp_path):
    def chunks():
        empty = b"%011o\0%011o\0" % (0, 0)
        yield header(b"s", b"S", magic=b"ustar  \0", tail=bytes(41) + empty * 4 + b"\1" + b"%011o\0" % 0)
        while True:
            yield (empty * 21 + b"\1").ljust(512, b"\0") * 1_000

    stopped(tmp_path, chunks, "max_pax_record", 1 << 20)


# -- all of them


def test_every_limit_has_a_bomb_here():
    from dataclasses import fields
    from pathlib import Path

    text = Path(__file__).read_text()
    elsewhere = {
        "max_manifest_json": "test_documents_longer_than_the_limit_are_refused_unread",
        "max_toc": "test_chunked.py, test_chunked_lies.py",
        "max_signature_bytes": "test_signatures_that_are_longer_than_the_limit_are_refused_unread",
    }
    for each in fields(Limits):
        assert f'"{each.name}"' in text or each.name in elsewhere, each.name
