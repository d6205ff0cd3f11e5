"""What the tar reader reads, and what it refuses."""

import io
import subprocess
import tarfile

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tarmaker import END, chunks, directory, file, gnu_long, hardlink, header, pad, pax, record, symlink

from layerstore.errors import ArchiveError, LimitExceededError
from layerstore.model import Limits
from layerstore.formats.tar import TarReader


CAPABILITY = b"SCHILY.xattr.security.capability"


def read(data, *, chunk=1 << 20, limits=None, require_end=True):
    """Every entry with its stored data."""
    reader = TarReader(chunks(data, chunk), limits, require_end=require_end)
    return [(entry, b"".join(map(bytes, reader.read_data(entry)))) for entry in reader]


def one(data, **more):
    (found,) = read(data + END, **more)
    return found[0]


def refused(data, match, error=ArchiveError, **more):
    with pytest.raises(error, match=match) as caught:
        read(data, **more)
    return caught.value


# -- what it reads


@pytest.mark.parametrize("chunk", [1, 7, 511, 512, 513, 4096])
def test_entries_and_data_do_not_depend_on_how_the_stream_is_cut(chunk):
    data = directory(b"d/") + file(b"d/f", b"x" * 1500, mode=0o4755, uid=7, gid=8, mtime=9) + symlink(b"l", b"../a") + END
    d, f, link = read(data, chunk=chunk)
    assert (d[0].name, d[0].type, d[0].mode) == (b"d", "dir", 0o755)
    assert (f[0].name, f[0].mode, f[0].uid, f[0].gid, f[0].mtime_ns) == (b"d/f", 0o4755, 7, 8, 9_000_000_000)
    assert f[1] == b"x" * 1500
    assert (link[0].type, link[0].linkname) == ("symlink", b"../a")


def test_data_that_is_not_read_is_skipped():
    names = [e.name for e in TarReader(chunks(file(b"a", b"1" * 5000) + file(b"b", b"2") + END, 100))]
    assert names == [b"a", b"b"]


def test_data_within_one_chunk_is_had_whole():
    reader = TarReader(chunks(file(b"a", b"hello") + END))
    next(iter(reader))
    assert reader.read_whole() == b"hello"


def test_data_across_chunks_is_not_had_whole():
    reader = TarReader(chunks(file(b"a", b"h" * 1000) + END, 600))
    next(iter(reader))
    assert reader.read_whole() is None


@pytest.mark.parametrize("raw, clean", [(b"./a//b/./c", b"a/b/c"), (b"/abs", b"abs"), (b"./", b""), (b"///x", b"x")])
def test_names_become_relative_and_clean(raw, clean):
    assert one(directory(raw)).name == clean


def test_the_ustar_prefix_is_put_in_front():
    assert one(header(b"name", prefix=b"some/prefix")).name == b"some/prefix/name"


def test_a_gnu_header_has_no_prefix():
    assert one(header(b"name", prefix=b"12345670123", magic=b"ustar  \0")).name == b"name"


def test_a_star_header_has_times_where_others_have_the_end_of_the_prefix():
    tail = (b"pre".ljust(131, b"\0") + b"00000000001 00000000002 ").ljust(163, b"\0") + b"tar\0"
    assert one(header(b"name", tail=tail[:167])).name == b"pre/name"


def test_gnu_long_names_replace_the_short_ones():
    name, link = b"n" * 200, b"l/" * 100 + b"x"
    entry = one(gnu_long(b"L", name) + gnu_long(b"K", link) + symlink(b"short", b"short"))
    assert (entry.name, entry.linkname) == (name, link)


def test_type_7_is_a_regular_file():
    assert one(header(b"f", b"7")).type == "file"


def test_a_file_named_with_a_slash_is_a_directory_in_archives_of_before_ustar():
    assert one(header(b"old/", b"\0")).type == "dir"


def test_a_directory_after_a_global_header_keeps_its_own_records():
    assert one(pax((b"comment", b"1"), type=b"g") + pax((b"path", b"long")) + file(b"short")).name == b"long"


def test_header_only_entries_have_no_data_whatever_their_size_says():
    entries = read(header(b"d", b"5", size=99) + hardlink(b"h", b"f", size=5) + file(b"g", b"x") + END)
    assert [(e.name, e.size) for e, _ in entries] == [(b"d", 0), (b"h", 0), (b"g", 1)]


def test_a_signed_checksum_is_accepted_as_historic_tars_made_it():
    plain = header(b"\xff\xfe")
    signed = sum(b - 256 if b > 127 else b for b in plain[:148] + plain[156:]) + 256
    assert one(header(b"\xff\xfe", checksum=signed)).name == b"\xff\xfe"


def test_base_256_numbers_are_read():
    entry = one(header(b"f", b"3", uid=1 << 30, mtime=(1 << 33) + 1, major=3, minor=5))
    assert (entry.uid, entry.mtime_ns, entry.devmajor, entry.devminor) == (1 << 30, ((1 << 33) + 1) * 10**9, 3, 5)


def test_times_before_1970_are_read():
    assert one(header(b"f", mtime=-5)).mtime_ns == -5_000_000_000


def test_times_beyond_64_bits_are_held_to_them():
    assert one(header(b"f", mtime=1 << 60)).mtime_ns == (1 << 63) - 1


@pytest.mark.parametrize("text, ns", [
    (b"1.5", 1_500_000_000), (b"1", 10**9), (b"0.123456789999", 123_456_789), (b"-1.5", -1_500_000_000),
    (b"-0.0000000001", -1), (b"1700000000.000000001", 1_700_000_000_000_000_001),
])
def test_pax_times_are_exact_to_the_nanosecond_and_cut_towards_the_past(text, ns):
    assert one(pax((b"mtime", text)) + file(b"f")).mtime_ns == ns


def test_pax_records_override_the_header():
    entry = one(pax((b"path", b"long"), (b"uid", b"99999999"), (b"gid", b"3"), (b"comment", b"x")) + file(b"f", uid=1))
    assert (entry.name, entry.uid, entry.gid) == (b"long", 99_999_999, 3)


def test_the_pax_size_governs_how_much_is_read():
    data = pax((b"size", b"600")) + header(b"f", size=0) + pad(b"z" * 600) + file(b"g") + END
    assert [(e.name, d) for e, d in read(data)] == [(b"f", b"z" * 600), (b"g", b"")]


def test_a_pax_value_may_hold_newlines_and_equal_signs():
    assert one(pax((b"path", b"a=b\nc")) + file(b"f")).name == b"a=b\nc"


def test_global_records_that_say_nothing_of_entries_are_passed_over():
    data = pax((b"comment", b"a commit"), (b"uname", b"root"), type=b"g") + file(b"a", uid=2)
    assert one(data).uid == 2


@pytest.mark.parametrize("key", [
    b"path", b"linkpath", b"size", b"uid", b"gid", b"mtime", b"SCHILY.xattr.user.a", b"LIBARCHIVE.xattr.user.a", b"GNU.sparse.size",
    b"SCHILY.realsize", b"SUN.holesdata",
])
@pytest.mark.parametrize("value", [b"5", b""])
def test_global_records_that_not_every_reader_applies_are_refused(key, value):
    refused(pax((key, value), type=b"g") + file(b"a") + END, "must not set")


def test_xattrs_come_from_schily_records_with_any_bytes():
    entry = one(pax((b"SCHILY.xattr.user.a", b"\0\n=\xff"), (b"SCHILY.xattr.user.empty", b"")) + file(b"f"))
    assert entry.xattrs == {b"user.a": b"\0\n=\xff", b"user.empty": b""}


@pytest.mark.parametrize("value", [
    b"\0\0\0\2" + bytes(16), b"\1\0\0\2" + b"\xff" * 16, b"\1\0\0\3" + bytes(20),
], ids=["2", "2 effective", "3"])
def test_capabilities_are_those_that_linux_takes(value):
    assert one(pax((CAPABILITY, value)) + file(b"f")).xattrs == {b"security.capability": value}


def test_xattrs_come_from_libarchive_records_where_schily_has_none():
    entry = one(pax(
        (b"LIBARCHIVE.xattr.user.a%20b", b"aGk"), (b"LIBARCHIVE.xattr.user.c", b"eA=="), (b"SCHILY.xattr.user.c", b"y"),
    ) + file(b"f"))
    assert entry.xattrs == {b"user.a b": b"hi", b"user.c": b"y"}


# -- sparse files

SPARSE_DATA = b"A" * 512 + b"B" * 512


def old_sparse_tail(segments, real, more=0):
    table = b"".join(b"%011o\0%011o\0" % s if s else bytes(24) for s in segments[:4]).ljust(96, b"\0")
    return bytes(41) + table + bytes([more]) + b"%011o\0" % real


def test_an_old_gnu_sparse_file_has_segments():
    h = header(b"s", b"S", size=1024, magic=b"ustar  \0", tail=old_sparse_tail([(0, 512), (4096, 512)], 8192))
    ((entry, data),) = read(h + SPARSE_DATA + END)
    assert (entry.type, entry.size, entry.sparse, data) == ("file", 8192, ((0, 512), (4096, 512)), SPARSE_DATA)


def test_an_old_gnu_sparse_map_goes_on_in_extension_blocks():
    segments = [(i * 1024, 512) for i in range(6)]
    block = b"".join(b"%011o\0%011o\0" % s for s in segments[4:]).ljust(512, b"\0")
    h = header(b"s", b"S", size=3072, magic=b"ustar  \0", tail=old_sparse_tail(segments, 9000, 1)) + block
    ((entry, data), (after, _)) = read(h + b"d" * 3072 + file(b"after") + END)
    assert (entry.sparse, len(data), after.name) == (tuple(segments), 3072, b"after")


@pytest.mark.parametrize("records, front", [
    ([(b"GNU.sparse.size", b"8192"), (b"GNU.sparse.numblocks", b"2"), (b"GNU.sparse.offset", b"0"),
      (b"GNU.sparse.numbytes", b"512"), (b"GNU.sparse.offset", b"4096"), (b"GNU.sparse.numbytes", b"512")], b""),
    ([(b"GNU.sparse.size", b"8192"), (b"GNU.sparse.numblocks", b"2"), (b"GNU.sparse.name", b"real"),
      (b"GNU.sparse.map", b"0,512,4096,512")], b""),
    ([(b"GNU.sparse.major", b"1"), (b"GNU.sparse.minor", b"0"), (b"GNU.sparse.name", b"real"),
      (b"GNU.sparse.realsize", b"8192")], pad(b"2\n0\n512\n4096\n512\n")),
], ids=["0.0", "0.1", "1.0"])
def test_pax_sparse_files_have_segments(records, front):
    data = pax(*records) + header(b"real", size=len(front) + 1024) + front + SPARSE_DATA + END
    ((entry, stored),) = read(data)
    assert (entry.name, entry.size, entry.sparse, stored) == (b"real", 8192, ((0, 512), (4096, 512)), SPARSE_DATA)


@pytest.mark.parametrize("text, match", [
    (b"0,512,100,512", "out of order"), (b"0,512", "map of 512 bytes"), (b"0,512,8000,512", "beyond"),
    (b"0,512,4096", "odd"), (b"0,512,-1,512", "not a decimal"), (b"0,512,4096,5120", "beyond"),
])
def test_sparse_maps_that_do_not_fit_are_refused(text, match):
    records = [(b"GNU.sparse.size", b"8192"), (b"GNU.sparse.numblocks", b"%d" % (text.count(b",") // 2 + 1)), (b"GNU.sparse.map", text)]
    refused(pax(*records) + header(b"s", size=1024) + SPARSE_DATA + END, match)


def test_a_sparse_map_that_never_ends_is_refused():
    front = b"999999999\n" + b"1\n" * 251
    records = [(b"GNU.sparse.major", b"1"), (b"GNU.sparse.minor", b"0"), (b"GNU.sparse.realsize", b"9")]
    refused(pax(*records) + header(b"s", size=512) + front.ljust(512, b"1") + END, "does not end")


def test_holes_count_towards_the_limit_on_bytes():
    size = b"%d" % (1 << 50)
    entry = pax((b"GNU.sparse.size", size), (b"GNU.sparse.numblocks", b"1"), (b"GNU.sparse.map", size + b",0")) + header(b"s", size=0)
    assert refused(entry + END, "too many bytes", LimitExceededError).limit == "max_bytes"


# -- what it refuses

SPARSE_MAP = ((b"GNU.sparse.numblocks", b"1"), (b"GNU.sparse.map", b"0,4"))
BAD = {
    "a wrong checksum": (header(b"f", checksum=1), "checksum"),
    "a negative size (CVE-2025-8194)": (header(b"f", size=-512), "negative size"),
    "a size beyond 64 bits": (header(b"f", raw_size=b"\x80" + b"\x7f" * 11), "beyond 64 bits"),
    "a negative uid": (header(b"f", uid=-1), "negative uid"),
    "a uid that chown takes for none": (header(b"f", uid=0xFFFFFFFF), "owner"),
    "a size with a sign": (header(b"f", raw_size=b"+0000000001\0"), "not a number"),
    "a size with an underscore": (header(b"f", raw_size=b"0_000000001\0"), "not a number"),
    "a size that is not octal": (header(b"f", raw_size=b"00000000009\0"), "not octal"),
    "an unknown type": (header(b"f", b"V"), "unknown type"),
    "a name with ..": (file(b"a/../b"), r"\.\."),
    "a name that climbs out": (file(b"../b"), r"\.\."),
    "an empty name": (header(b""), "empty name"),
    "a hard-link target that climbs out": (hardlink(b"h", b"../../etc/shadow"), r"\.\."),
    "a hard link to nothing": (hardlink(b"h", b""), "empty hard-link target"),
    "a symlink to nothing": (symlink(b"s", b""), "target"),
    "a NUL in a PAX path": (pax((b"path", b"a\0b")) + file(b"f"), "NUL"),
    "a NUL in a PAX link": (pax((b"linkpath", b"a\0b")) + symlink(b"f", b"x"), "NUL"),
    "a NUL in a PAX link of a file (as Go)": (pax((b"linkpath", b"a\0b")) + file(b"f"), "NUL"),
    "a NUL in a PAX key": (pax((b"path\0x", b"ab")) + file(b"f"), "NUL"),
    "a NUL in a GNU long name": (gnu_long(b"L", b"a\0b") + file(b"f"), "NUL"),
    "a GNU long name without an end": (header(b"L", b"L", size=4, magic=b"ustar  \0") + pad(b"longer") + file(b"f"), "into its padding"),
    "a component of 256 bytes": (gnu_long(b"L", b"a/" + b"n" * 256) + file(b"f"), "longer than 255"),
    "a directory with data": (header(b"d/", b"0", size=5), "named as a directory"),
    "an old directory with data": (header(b"d/", b"\0", size=5), "named as a directory"),
    "a file named as a directory": (header(b"d/", b"0"), "named as a directory"),
    "a sparse directory": (pax((b"GNU.sparse.size", b"9"), *SPARSE_MAP) + directory(b"d"), "said to have data"),
    "a hard link with data by PAX": (file(b"a") + pax((b"size", b"4")) + hardlink(b"h", b"a"), "said to have data"),
    "a sparse file in a ustar header": (header(b"s", b"S", tail=old_sparse_tail([], 8)), "in another format"),
    "a sparse map with a gap": (
        header(b"s", b"S", size=8, magic=b"ustar  \0", tail=old_sparse_tail([(0, 4), None, (8, 4)], 20)), "with a gap"),
    "a sparse map after its end": (
        header(b"s", b"S", size=4, magic=b"ustar  \0", tail=old_sparse_tail([(0, 4)], 20, 1)) + bytes(512), "after its end"),
    "a sparse file of two versions": (
        pax((b"GNU.sparse.size", b"9"), (b"GNU.sparse.map", b"0,4"), (b"GNU.sparse.realsize", b"8")) + file(b"s", b"four"), "two versions"),
    "two sparse maps": (
        pax((b"GNU.sparse.size", b"9"), (b"GNU.sparse.map", b"0,4"), (b"GNU.sparse.map", b"1,4")) + file(b"s", b"four"), "two PAX records"),
    "a sparse file of half a version": (pax((b"GNU.sparse.major", b"1"), (b"GNU.sparse.realsize", b"9")) + file(b"s"), "half a version"),
    "a sparse file of the other half": (
        pax((b"GNU.sparse.minor", b"1"), (b"GNU.sparse.size", b"9"), *SPARSE_MAP) + file(b"s", b"four"), "half a version"),
    "a sparse size and no map": (pax((b"GNU.sparse.size", b"4")) + file(b"s", b"four"), "without a map"),
    "an empty sparse map": (
        pax((b"GNU.sparse.size", b"9"), (b"GNU.sparse.numblocks", b"0"), (b"GNU.sparse.map", b"")) + file(b"s"), "without a map"),
    "a sparse map without a count": (pax((b"GNU.sparse.size", b"9"), SPARSE_MAP[1]) + file(b"s", b"four"), "sparse count"),
    "a sparse file of star's": (pax((b"SCHILY.realsize", b"9")) + file(b"s", b"four"), "star or Solaris"),
    "a global header after a local one": (pax((b"path", b"a")) + pax((b"comment", b"b"), type=b"g") + file(b"f"), "global PAX header between"),
    "a size that begins with NUL": (header(b"f", raw_size=b"\0" + b"0000000004\0"), "begins with NUL"),
    "a number of too many bits": (header(b"f", raw_size=b"\x81" + bytes(11)), "not a number"),
    "a prefix before ustar": (header(b"f", magic=bytes(8), prefix=b"d"), "no place for it"),
    "a prefix in star's times": (header(b"f", tail=b"p" * 140 + bytes(23) + b"tar\0"), "star's times"),
    "a prefix where GNU has times": (header(b"f", magic=b"ustar  \0", prefix=b"some/directory"), "time of access"),
    "a prefix that goes on where GNU has a time": (header(b"f", magic=b"ustar  \0", tail=b"%011o\0some/dir" % 5), "time of change"),
    "a PAX length beyond its header": (pax(data=b"99 path=x\n") + file(b"f"), "length is wrong"),
    "a PAX length that cuts the value": (pax(data=b"8 path=xyz\n") + file(b"f"), "length is wrong"),
    "a PAX length of zero": (pax(data=b"0 path=x\n") + file(b"f"), "length is wrong"),
    "a negative PAX length": (pax(data=b"-9 path=x\n") + file(b"f"), "not a decimal"),
    "a PAX record without =": (pax(data=b"8 pathx\n") + file(b"f"), "without a key"),
    "a PAX record without length": (pax(data=b"path=x\n") + file(b"f"), "length"),
    "a PAX size with a sign": (pax((b"size", b"-1")) + file(b"f"), "not a decimal"),
    "a PAX time that is no number": (pax((b"mtime", b"nan")) + file(b"f"), "not a number"),
    "an attribute that is not base64": (pax((b"LIBARCHIVE.xattr.user.a", b"!!")) + file(b"f"), "base64"),
    "an attribute of user. without a name": (pax((b"SCHILY.xattr.user.", b"1")) + file(b"f"), "attribute named b'user.'"),
    "an attribute of trusted. without a name": (pax((b"LIBARCHIVE.xattr.trusted.", b"eA==")) + file(b"f"), "attribute named"),
    "an attribute of security. without a name": (pax((b"SCHILY.xattr.security.", b"")) + file(b"f"), "attribute named"),
    "an attribute of system. without a name": (pax((b"SCHILY.xattr.system.", b"1")) + file(b"f"), "attribute named"),
    "capabilities of another size": (pax((CAPABILITY, b"\1\0\0\2" + bytes(15))) + file(b"f"), "capabilities of a file"),
    "capabilities of version 3 in the size of 2": (pax((CAPABILITY, b"\1\0\0\3" + bytes(16))) + file(b"f"), "capabilities of a file"),
    "capabilities of version 1": (pax((CAPABILITY, b"\1\0\0\1" + bytes(8))) + file(b"f"), "capabilities of a file"),
    "no capabilities, which Linux takes but never gives back": (pax((CAPABILITY, b"")) + file(b"f"), "capabilities of a file"),
    "capabilities with an unknown flag": (pax((CAPABILITY, b"\2\0\0\2" + bytes(16))) + file(b"f"), "capabilities of a file"),
    "two PAX headers": (pax((b"uid", b"1")) + pax((b"gid", b"1")) + file(b"f"), "two PAX"),
    "two long names": (gnu_long(b"L", b"a") + gnu_long(b"L", b"b") + file(b"f"), "two GNU"),
    "two kinds of long name": (pax((b"path", b"a")) + gnu_long(b"L", b"b") + file(b"f"), "both a PAX and"),
    "an extension header without its entry": (pax((b"uid", b"1")), "without its entry"),
    "a device number beyond Linux's": (header(b"f", b"3", major=1 << 12), "device"),
}


@pytest.mark.parametrize("data, match", BAD.values(), ids=BAD)
def test_malformed_archives_are_refused(data, match):
    refused(data + END, match)


def test_the_error_says_where_the_header_is():
    assert refused(file(b"a", b"x") + header(b"f", checksum=1) + END, "checksum").offset == 1024


@pytest.mark.parametrize("cut", range(0, 3584, 512))
def test_an_archive_cut_at_a_block_is_refused(cut):
    whole = pax((b"mtime", b"1.5")) + file(b"a", b"x" * 600) + END
    assert len(whole) == 3584
    refused(whole[:cut], "end")


@pytest.mark.parametrize("cut", [1, 511, 513, 1300, 1535])
def test_an_archive_cut_inside_a_block_is_refused_even_where_the_end_marker_is_not_required(cut):
    refused((file(b"a", b"x" * 600) + END)[:cut], "ends inside", require_end=False)


@pytest.mark.parametrize("end", [b"", bytes(512)])
def test_a_missing_end_marker_is_accepted_only_by_who_checks_the_digest(end):
    data = file(b"a", b"x") + end
    refused(data, "no end marker")
    assert len(read(data, require_end=False)) == 1


def test_data_after_a_lone_zero_block_is_refused():
    refused(file(b"a") + bytes(512) + file(b"b") + END, "lone zero block")


@pytest.mark.parametrize("junk", [b"x", b"\0" * 9000 + b"x", file(b"hidden") + END])
def test_what_follows_the_end_marker_must_be_zeros(junk):
    refused(file(b"a") + END + junk, "trailing junk")


def test_trailing_zeros_of_any_length_are_consumed():
    consumed = []

    def counted():
        for chunk in chunks(file(b"a") + END + bytes(9001), 1000):
            consumed.append(len(chunk))
            yield chunk

    assert len(list(TarReader(counted()))) == 1
    assert sum(consumed) == 512 + 1024 + 9001


@pytest.mark.parametrize("field, limits, data", [
    ("max_entries", Limits(max_entries=1), file(b"a") + file(b"b")),
    ("max_depth", Limits(max_depth=2), file(b"a/b/c")),
    ("max_path_length", Limits(max_path_length=5), file(b"abc/def")),
    ("max_path_length", Limits(max_path_length=5), symlink(b"a", b"abcdef")),
    ("max_pax_record", Limits(max_pax_record=100), pax((b"comment", b"x" * 100)) + file(b"a")),
    ("max_pax_record", Limits(max_pax_record=100), gnu_long(b"L", b"x" * 101) + file(b"a")),
    ("max_xattr_value", Limits(max_xattr_value=3), pax((b"SCHILY.xattr.user.a", b"four")) + file(b"a")),
    ("max_bytes", Limits(max_bytes=10), file(b"a", b"x" * 11)),
])
def test_limits_are_kept_and_named(field, limits, data):
    assert refused(data + END, field, LimitExceededError, limits=limits).limit == field


# -- against other implementations

names = st.text(st.characters(codec="utf-8", exclude_characters="/\0"), min_size=1, max_size=60).filter(
    lambda n: n not in (".", "..") and len(n.encode()) < 200
)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.lists(names, min_size=1, max_size=4), st.binary(max_size=1200), st.integers(0, 2**40),
                       st.integers(0, 2**31), st.integers(0, 0o7777)), max_size=6),
    st.sampled_from([tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]), st.integers(1, 2000),
)
def test_what_tarfile_writes_is_read_back(members, format, chunk):
    out = io.BytesIO()
    expected = []
    with tarfile.open(fileobj=out, mode="w", format=format) as tar:
        for parts, data, mtime, uid, mode in members:
            info = tarfile.TarInfo("/".join(parts))
            info.size, info.mtime, info.uid, info.mode = len(data), mtime, uid, mode
            try:
                info.tobuf(format)
            except ValueError:
                continue   # does not fit the format
            tar.addfile(info, io.BytesIO(data))
            expected.append((info.name.encode(), data, min(mtime * 10**9, 2**63 - 1), uid, mode))
    found = [(e.name, d, e.mtime_ns, e.uid, e.mode) for e, d in read(out.getvalue(), chunk=chunk)]
    assert found == expected


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_a_damaged_archive_is_read_or_refused_but_never_anything_else(data):
    whole = bytearray(
        pax((b"mtime", b"1.5"), (b"SCHILY.xattr.user.a", b"v")) + file(b"a", b"x" * 600) + gnu_long(b"L", b"n" * 120)
        + symlink(b"l", b"t") + END
    )
    for _ in range(data.draw(st.integers(1, 4))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    for start in range(0, len(whole) - 1024, 512):  # make the checksums right again, so that more than they is tested
        if whole[start + 257:start + 262] == b"ustar" and data.draw(st.booleans()):
            whole[start + 148:start + 156] = b" " * 8
            whole[start + 148:start + 156] = b"%06o\0 " % sum(whole[start:start + 512])
    try:
        read(bytes(whole))
    except (ArchiveError, LimitExceededError):
        pass


@pytest.mark.parametrize("format, sparse_version", [
    ("gnu", ""), ("oldgnu", ""), ("ustar", ""), ("v7", ""), ("pax", "0.0"), ("pax", "0.1"), ("pax", "1.0"),
])
def test_what_gnu_tar_writes_is_read(tmp_path, format, sparse_version):
    tree = tmp_path / "tree"
    (tree / "sub").mkdir(parents=True)
    (tree / "sub" / "f").write_bytes(b"data" * 400)
    (tree / "l").symlink_to("sub/f")
    with open(tree / "sparse", "wb") as f:
        f.seek(1 << 20)
        f.write(b"end")
        f.truncate(3 << 20)
    extra = ["-S", f"--sparse-version={sparse_version}"] if format == "pax" else ["-S"] if "gnu" in format else []
    data = subprocess.run(
        ["tar", "-C", tree, f"--format={format}", *extra, "-cf", "-", "."], check=True, capture_output=True
    ).stdout
    found = {}
    for e, d in read(data):
        content = bytearray(e.size)
        at = 0
        for start, length in e.sparse if e.sparse is not None else [(0, e.size)]:
            content[start:start + length] = d[at:at + length]
            at += length
        found[e.name] = (e.type, bytes(content), e.linkname)
    assert set(found) == {b"", b"sub", b"sub/f", b"l", b"sparse"}
    assert found[b"sub/f"] == ("file", b"data" * 400, b"")
    assert found[b"l"] == ("symlink", b"", b"sub/f")
    assert found[b"sparse"][1] == (tree / "sparse").read_bytes()


def test_a_pax_record_length_that_counts_its_own_digits_is_made_as_it_is_read():
    for n in range(80, 120):  # around where the length gets a digit more
        assert one(pax(data=record(b"path", b"p" * n)) + file(b"f")).name == b"p" * n
