"""Tars made into zstd:chunked blobs: what a blob says of itself, that our reader agrees, and that it is the very tar."""

import base64
import hashlib
import io
import json
import random
import struct
import tempfile
import tracemalloc

import pytest
import tarmaker
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from test_chunked import Finds, Tree, contents, fixture, partial, same

import chunkedmaker
from layerstore import TarDiffer
from layerstore.chunked import Unsuitable, footers, writing
from layerstore.chunked.agreement import check_agreement
from layerstore.chunked.golines import Payload
from layerstore.chunked.opening import open_chunked
from layerstore.chunked.toc import Toc
from layerstore.errors import InputError, TocError
from layerstore.formats.compression import decompressed
from layerstore.model import Descriptor, Limits

PREFIX = "io.github.containers.zstd-chunked."


@pytest.fixture
def tree(tmp_path):
    return Tree(tmp_path)


def write(tar, size=1 << 20):
    """What becomes of the tar, which comes in pieces of *size* bytes; ``why`` it has no TOC."""
    out = []
    written = writing.write_chunked(tarmaker.chunks(tar, size), out.append, tempfile.TemporaryFile)
    blob = b"".join(out)
    sha = "sha256:" + hashlib.sha256(blob).hexdigest()
    expect = Descriptor("application/vnd.oci.image.layer.v1.tar+zstd", sha, len(blob), written.annotations)
    return chunkedmaker.Made(blob, expect, "sha256:" + hashlib.sha256(tar).hexdigest(), tar), written.why


def plain(blob):
    return b"".join(decompressed([blob], limits=Limits(), compression="zstd"))


def metadata(made):
    """The TOC and the tar-split's lines, found by the annotations, read by nothing of ours."""
    found = []
    for key in ("manifest-position", "tarsplit-position"):
        start, length, size = map(int, made.descriptor.annotations[PREFIX + key].split(":")[:3])
        found.append(zstandard.ZstdDecompressor().decompress(made.blob[start : start + length], max_output_size=size))
        assert len(found[-1]) == size
    return found


def lines_of(made):
    """Those of the tar-split, and what all after the last file are together: Go has the end marker for itself."""
    lines = metadata(made)[1].splitlines()
    last = max(number for number, line in enumerate(lines) if line.startswith(b'{"type":1'))
    return lines[: last + 1], b"".join(base64.b64decode(json.loads(line)["payload"]) for line in lines[last + 1 :])


def entries(made):
    return json.loads(metadata(made)[0])["entries"]


def without_places(toc):
    """What zstd's own choices do not change."""
    return [{key: value for key, value in each.items() if key not in ("offset", "endOffset")} for each in toc]


def everything():
    big = random.Random(7).randbytes(300_000)
    return b"".join((
        tarmaker.directory(b"./"), tarmaker.directory(b"./d/", mode=0o1777), tarmaker.file(b"./d/small", b"small"),
        tarmaker.file(b"./d/empty"), tarmaker.file(b"./d/big", big), tarmaker.file(b"./d/holes", big[:70_000] + bytes(90_000) + b"end"),
        tarmaker.pax((b"mtime", b"1700000000.123456789"), (b"atime", b"1.5"), (b"SCHILY.xattr.user.a", b"\0\xff"),
                     (b"SCHILY.xattr.user.B", b"c")),
        tarmaker.file(b"./d/noted", b"x", uid=1000, gid=1001, mode=0o104755), tarmaker.symlink(b"./d/link", b"../a b"),
        tarmaker.hardlink(b"./d/hard", b"./d/big"), tarmaker.header(b"./d/null", b"3", major=1, minor=3, mode=0o666),
        tarmaker.header(b"./d/pipe", b"6"), tarmaker.pax((b"path", "./d/ünï".encode())), tarmaker.file(b"x", b"named"),
        tarmaker.gnu_long(b"L", b"./d/" + b"n" * 120), tarmaker.file(b"cut", b"long", magic=b"ustar  \0"), tarmaker.END, bytes(10_240),
    ))


# -- what the field makes


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_what_a_blob_says_is_what_a_current_skopeo_says_of_the_same_tar_but_for_places(version):
    theirs = fixture(f"{version}-current")
    tar = plain(theirs.blob)
    ours, why = write(tar)
    assert (why, ours.diff_id, plain(ours.blob) == tar) == (None, theirs.diff_id, True)
    assert without_places(entries(ours)) == without_places(entries(theirs))
    assert any(each.get("chunkType") == "zeros" for each in entries(ours))
    assert lines_of(ours) == lines_of(theirs)
    assert set(ours.descriptor.annotations) == set(theirs.descriptor.annotations)


@pytest.mark.parametrize("one", ["ours", "theirs"])
def test_chunks_and_files_of_a_blob_that_a_skopeo_made_are_found_again_in_ours(tree, one):
    made = {"ours": write(plain(fixture("v1-current").blob))[0], "theirs": fixture("v1-current")}
    two = write(plain(fixture("v2-current").blob))[0]
    differ, blob = partial(two, Finds(*contents(made[one])))
    same(tree.apply(differ), tree.apply(TarDiffer(two.tar, diff_id=two.diff_id)))
    assert blob.fetched < 0.12 * len(two.blob)


# -- a blob


def test_a_blob_is_the_very_tar_for_who_knows_only_zstd():
    made, why = write(everything())
    assert why is None
    assert zstandard.ZstdDecompressor().stream_reader(io.BytesIO(made.blob), read_across_frames=True).read() == everything()


def test_the_partial_pull_of_a_blob_gives_the_tree_of_its_tar(tree):
    made, _ = write(everything())
    differ, blob = partial(made)
    same(tree.apply(differ), tree.apply(TarDiffer(made.tar, diff_id=made.diff_id)))
    assert (differ.whole, blob.opened) == (None, len(blob.asked))


@pytest.mark.parametrize("size", [1, 511, 4097, (1 << 20) + 7])
def test_the_same_tar_gives_the_same_bytes_however_it_comes(size):
    tar = everything() if size > 1 else tarmaker.file(b"a", bytes(2000) + b"a" * 70) + tarmaker.END
    if size > 4096:                      # a file that is never cut, in a frame that is not held
        tar = tarmaker.file(b"uncut", bytes(random.Random(2).choices(b"\1\2", k=(5 << 19) + 9))) + tar
    assert write(tar, size)[0] == write(tar)[0]


def test_the_fields_are_those_of_the_headers():
    found = {each["name"]: each for each in entries(write(everything())[0]) if each["type"] != "chunk"}
    assert list(found["./d/noted"]) == ["type", "name", "mode", "size", "uid", "gid", "modtime", "accesstime", "xattrs",
                                        "digest", "offset", "endOffset"]
    assert found["./d/noted"] | {"digest": "", "offset": 0, "endOffset": 0} == {
        "type": "reg", "name": "./d/noted", "mode": 0o104755, "size": 1, "uid": 1000, "gid": 1001, "digest": "", "offset": 0,
        "modtime": "2023-11-14T22:13:20.123456789Z", "accesstime": "1970-01-01T00:00:01.5Z", "endOffset": 0,
        "xattrs": {"user.B": "Yw==", "user.a": "AP8="},
    }
    assert (found["./d/hard"]["linkName"], found["./d/link"]["linkName"]) == ("./d/big", "../a b")
    assert (found["./d/null"]["devMajor"], found["./d/null"]["devMinor"], "size" in found["./d/null"]) == (1, 3, False)
    assert "digest" not in found["./d/empty"] and "./d/ünï" in found and "./d/" + "n" * 120 in found


def test_the_footer_says_what_the_annotations_say():
    made, _ = write(everything())
    positions = [tuple(map(int, made.descriptor.annotations[PREFIX + key].split(":"))) for key in ("manifest-position", "tarsplit-position")]
    assert made.blob[-72:-64] == b"\x50\x2a\x4d\x18" + struct.pack("<I", 64)
    assert struct.unpack("<7Q", made.blob[-64:-8]) == positions[0] + positions[1]
    toc, split = footers.zstd(made.blob[-footers.ZSTD_MOST :], len(made.blob))
    assert [tuple(toc), tuple(split)] == [positions[0][:3], positions[1]]


def test_a_chunk_of_zeros_is_one_that_nobody_fetches(tree):
    made, _ = write(tarmaker.file(b"a", b"begin" + bytes(5 << 20) + b"end") + tarmaker.END)
    assert [(each["chunkSize"], each.get("chunkType")) for each in entries(made)] == [(5, None), (5 << 20, "zeros"), (3, None)]
    differ, blob = partial(made)
    tree.apply(differ)
    hole = entries(made)[1]["offset"], entries(made)[2]["offset"]
    assert not any(start < hole[1] and hole[0] < start + length - 4096 for call in blob.asked for start, length in call
                   if length < hole[1] - hole[0])


def test_a_large_layer_takes_no_more_memory_than_a_small_one():
    def tar():
        rng = random.Random(1)
        for number in range(8):
            yield tarmaker.header(b"f%d" % number, size=1 << 20) + rng.randbytes(1 << 10) * (1 << 10)
        yield tarmaker.header(b"same", size=6 << 20)   # which is never cut
        for _ in range(6):
            yield b"s" * (1 << 20)
        yield tarmaker.END

    tracemalloc.start()
    try:
        writing.write_chunked(tar(), lambda _data: None, tempfile.TemporaryFile)
        assert tracemalloc.get_traced_memory()[1] < 8 << 20, "of 14 MiB"
    finally:
        tracemalloc.stop()


# -- random tars


NAMES = st.sampled_from(["a", "b", "c", "ünï", "with space", "n" * 120, "-", "q\"uote\\", "e\u0301"])
DATA = st.one_of(
    st.binary(max_size=600), st.integers(0, 5000).map(bytes),
    st.tuples(st.integers(0, 99), st.integers(0, 150_000)).map(lambda each: random.Random(each[0]).randbytes(each[1])),
    st.tuples(st.binary(max_size=9), st.integers(900, 4000), st.binary(max_size=9)).map(lambda each: each[0] + bytes(each[1]) + each[2]),
)


@st.composite
def tars(draw):
    made, seen = [], []
    for _ in range(draw(st.integers(0, 9))):
        name = "/".join(draw(st.lists(NAMES, min_size=1, max_size=2)))
        if name in seen:
            continue
        more = {"mode": draw(st.sampled_from([0, 0o644, 0o4755, 0o100600])), "uid": draw(st.sampled_from([0, 1000, 3_000_000])),
                "gid": draw(st.sampled_from([0, 7])), "mtime": draw(st.sampled_from([0, 1, 1_700_000_000, 1 << 33]))}
        more["magic"] = draw(st.sampled_from([b"ustar\x0000", b"ustar  \0"]))
        records = [(b"path", name.encode())] if len(name.encode()) > 90 or draw(st.booleans()) else []
        if draw(st.booleans()):
            records += [(b"mtime", draw(st.sampled_from([b"1.5", b"-2", b"1700000000.000000001", b"0"])))]
            records += [(b"SCHILY.xattr.user.x", draw(st.binary(max_size=40)))]
        if records:
            made.append(tarmaker.pax(*records))
        short = name.encode()[:90]
        kind = draw(st.sampled_from(["file", "file", "file", "directory", "symlink", "hardlink", "fifo", "device"]))
        files = [each for each in seen if each.startswith(("a", "b"))]
        if kind == "hardlink" and files:
            made.append(tarmaker.hardlink(short, draw(st.sampled_from(files)).encode()[:90], **more))
        elif kind == "symlink":
            made.append(tarmaker.header(short, b"2", link=draw(st.sampled_from([b"/x", b"../y", b"z"])), **more))
        elif kind == "directory":
            made.append(tarmaker.header(short, b"5", **more))
        elif kind == "fifo":
            made.append(tarmaker.header(short, b"6", **more))
        elif kind == "device":
            made.append(tarmaker.header(short, b"4", major=8, minor=draw(st.integers(0, 255)), **more))
        else:
            made.append(tarmaker.file(short, draw(DATA), **more))
        seen.append(name)
    return b"".join(made) + draw(st.sampled_from([tarmaker.END, bytes(10_240), tarmaker.END + bytes(5120)]))


def read_back(made):
    """The blob's metadata as our reader has it, found to agree with the tar-split entry by entry; its content checked."""
    opened = open_chunked(made.descriptor, lambda asked: [made.blob[s : s + n] for s, n in asked], Limits())
    toc, lines = metadata(made)
    check_agreement(list(Toc([toc], most=1 << 20)), opened.lines(), Limits())
    assert [item.size for item in opened.items] == [line.size for line in opened.lines() if isinstance(line, Payload) and line.size]
    for item in opened.items:
        data = b"".join(zstandard.ZstdDecompressor().decompressobj().decompress(made.blob[c.start : c.start + c.length])
                        for c in item.chunks)
        assert (len(data), hashlib.sha256(data).digest()) == (item.size, item.digest)
    return lines


@settings(max_examples=60, deadline=None)
@given(tars(), st.integers(1, 5000))
def test_whatever_is_written_reads_back_as_the_tar_says_it_entry_by_entry(tar, size):
    made, why = write(tar, size)
    assert (why, plain(made.blob) == tar) == (None, True)
    read_back(made)


@pytest.mark.parametrize(("lie", "match"), [
    ({"mode": 0o777}, "mode"), ({"uid": 5}, "uid"), ({"modtime": "2001-01-01T00:00:00Z"}, "time"), ({"type": "fifo"}, "type"),
    ({"name": "other"}, "where the tar has"), ({"xattrs": {"user.lie": "eA=="}}, "attributes"),
])
def test_a_writer_that_lies_of_a_header_is_found_out(monkeypatch, lie, match):
    """The control of the tests above: what reads back is not merely what was written."""
    honest = writing.described
    monkeypatch.setattr(writing, "described", lambda entry, name, raw: honest(entry, name, raw) | lie)
    made, _ = write(tarmaker.file(b"a", b"data") + tarmaker.END)
    with pytest.raises(TocError, match=match):
        read_back(made)


@pytest.mark.parametrize(("field", "lie"), [
    ("digest", lambda _: "sha256:" + "0" * 64), ("offset", lambda at: at + 1), ("endOffset", lambda at: at - 1),
])
def test_a_writer_that_lies_of_content_is_found_out(tree, monkeypatch, field, lie):
    honest = writing._json
    monkeypatch.setattr(writing, "_json", lambda fields: honest(
        fields | ({field: lie(fields[field])} if field in fields else {})))
    made, _ = write(tarmaker.file(b"a", b"data" * 99) + tarmaker.file(b"b", b"more") + tarmaker.END)
    with pytest.raises(InputError):
        tree.apply(partial(made)[0])


# -- what has no table of contents


WITHOUT = {
    "a name twice": tarmaker.file(b"a", b"1") + tarmaker.file(b"./a", b"2"),
    "not UTF-8": tarmaker.file(b"caf\xe9", b"latin"),
    "target not UTF-8": tarmaker.symlink(b"a", b"caf\xe9"),
    "global header": tarmaker.pax((b"comment", b"x"), type=b"g") + tarmaker.file(b"a", b"1"),
    "sparse": tarmaker.pax((b"GNU.sparse.major", b"0"), (b"GNU.sparse.minor", b"1"), (b"GNU.sparse.numblocks", b"1"),
                           (b"GNU.sparse.map", b"0,1"), (b"GNU.sparse.size", b"5000")) + tarmaker.file(b"a", b"1"),
    "a size that means nothing": tarmaker.file(b"a", b"1") + tarmaker.header(b"b", b"1", link=b"a", size=1),
    "contiguous": tarmaker.header(b"a", b"7", size=1) + tarmaker.pad(b"1"),
    "rounding": tarmaker.pax((b"mtime", b"-1.5")) + tarmaker.file(b"a"),
    "GNU's times": tarmaker.header(b"a", magic=b"ustar  \0", tail=b"00000000001\0".ljust(155, b"\0")),
    "a device before ustar": tarmaker.header(b"a", b"3", magic=bytes(8), major=1, minor=3),
    "a number that is none": tarmaker.header(b"a", magic=b"ustar\x0000", major=-1),
}


@pytest.mark.parametrize("case", WITHOUT)
def test_what_no_table_of_contents_can_describe_becomes_plain_zstd_and_is_said(case):
    tar = tarmaker.file(b"first", b"1") + WITHOUT[case] + tarmaker.file(b"last", b"2") + tarmaker.END
    made, why = write(tar)
    assert (made.descriptor.annotations, bool(why)) == ({}, True)
    assert plain(made.blob) == tar and b"GNUlInUx" not in made.blob[-64:]


@pytest.mark.parametrize("case", ["a name twice", "sparse"])
def test_what_is_left_without_a_table_of_contents_would_have_been_refused(monkeypatch, case):
    """The control: a writer that is not so careful makes what our own reader does not take."""
    monkeypatch.setattr(writing._Blob, "_described", lambda self, entry, name, headers, padding: {
        "type": "reg", "name": name.decode(), "size": entry.size, "mode": 0o644})
    made, _ = write(WITHOUT[case] + tarmaker.END)
    with pytest.raises((TocError, Unsuitable)):
        read_back(made)


def test_a_table_of_contents_that_nobody_would_read_is_left_out(monkeypatch):
    monkeypatch.setattr(writing, "_MOST", 100)
    made, why = write(everything())
    assert (made.descriptor.annotations, plain(made.blob) == everything()) == ({}, True)
    assert "nobody reads" in why
    monkeypatch.undo()
    monkeypatch.setattr(writing, "LONGEST_ENTRY", 200)
    assert "attributes" in write(everything())[1]


def often_cut(size, name=b"cut"):
    """A member that is cut after every third byte."""
    return tarmaker.file(name, b"\x00\x03\xbd" * (size // 3))


def test_what_is_cut_more_often_than_a_table_of_contents_has_room_for_is_cut_no_more_and_takes_no_memory(monkeypatch):
    monkeypatch.setattr(writing, "_MOST", 100_000)
    tar = often_cut(1 << 18) + often_cut(1 << 19, b"2nd") + tarmaker.END
    ends = []
    monkeypatch.setattr(writing.ZstdFrames, "end", lambda self, end=writing.ZstdFrames.end: ends.append(1) or end(self))
    spooled = [io.BytesIO(), io.BytesIO()]
    for each in spooled:
        each.close = lambda: None
    out = []
    tracemalloc.start()
    try:
        written = writing.write_chunked(tarmaker.chunks(tar, 1 << 18), out.append, iter(spooled).__next__)
        assert tracemalloc.get_traced_memory()[1] < 20 << 20, "800 bytes a chunk are 140 MB"
    finally:
        tracemalloc.stop()
    assert (written.annotations, "nobody reads" in written.why) == ({}, True)
    assert len(ends) < 1000
    assert sum(len(each.getvalue()) for each in spooled) < 100_000
    assert plain(b"".join(out)) == tar


@pytest.mark.parametrize("size", [1, 4097, (1 << 20) + 7])
def test_where_cutting_ends_does_not_depend_on_how_the_tar_comes(monkeypatch, size):
    monkeypatch.setattr(writing, "_MOST", 20_000)
    tar = often_cut(100_000) + tarmaker.file(b"last", b"1") + tarmaker.END
    assert write(tar, size)[0] == write(tar)[0]


@pytest.mark.parametrize("tar", [often_cut(3000), often_cut(3), everything()])
def test_a_table_of_contents_that_just_fits_is_there_however_often_its_files_are_cut(monkeypatch, tar):
    made, _ = write(tar + tarmaker.END)
    size = len(metadata(made)[0])
    monkeypatch.setattr(writing, "_MOST", size)
    assert write(tar + tarmaker.END)[0] == made
    monkeypatch.setattr(writing, "_MOST", size - 1)
    assert "nobody reads" in write(tar + tarmaker.END)[1]


def test_padding_that_is_longer_than_a_line_may_be_is_told_in_several():
    tar = tarmaker.file(b"a", b"1") + bytes(9 << 20)
    made, why = write(tar)
    assert (why, plain(made.blob) == tar) == (None, True)
    assert max(map(len, read_back(made).splitlines())) < 12 << 20
