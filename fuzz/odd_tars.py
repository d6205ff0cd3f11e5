"""Archives that readers of tar understand differently, or might: each by what is odd about it. Seeds, as in ``nasties``.

What becomes of each, here and elsewhere, is the table of tests/test_divergences.py.
"""

from __future__ import annotations

from fuzz.tar_parts import END, file, header, padded, pax

__all__ = ["ARCHIVES"]

_GNU = b"ustar  \0"
_SPARSE = {"GNU.sparse.major": b"1", "GNU.sparse.minor": b"0", "GNU.sparse.name": b"s", "GNU.sparse.realsize": b"1000"}
_ZERO = {"GNU.sparse.size": b"9", "GNU.sparse.numblocks": b"1", "GNU.sparse.map": b"0,4"}
_ZERO_ZERO = (b"22 GNU.sparse.size=99\n", b"23 GNU.sparse.offset=0\n", b"25 GNU.sparse.numbytes=4\n")
_MAPPED = padded(b"1\n500\n4\n") + b"data"


def _with(block: bytes, at: int, value: bytes) -> bytes:
    """A header with *value* in it, and its sum right again."""
    changed = bytearray(block)
    changed[at : at + len(value)] = value
    changed[148:156] = b" " * 8
    changed[148:156] = b"%06o\0 " % sum(changed)
    return bytes(changed)


def _slots(*segments: tuple[int, int], size: int = 4096, gap: int = 0, more: bytes = b"\0") -> bytes:
    """An old GNU header from byte 345 on: *gap* slots are left out after the first."""
    table = [b"%011o\0%011o\0" % each for each in segments]
    slots = b"".join(table[:1]) + bytes(24 * gap) + b"".join(table[1:])
    return bytes(41) + slots.ljust(96, b"\0") + more + b"%011o\0" % size


def _records(*lines: bytes) -> bytes:
    """A PAX header whose records are as they are given."""
    return header(b"pax", b"x", size=len(b"".join(lines))) + padded(b"".join(lines))


def _long(name: bytes) -> bytes:
    """A long name of GNU's for what follows."""
    return header(b"././@LongLink", b"L", size=len(name), magic=_GNU) + padded(name)


def _old(stored: bytes, extra: bytes, more: bytes = b"") -> bytes:
    """A sparse file in old GNU's format."""
    return header(b"o", b"S", size=len(stored), magic=_GNU, extra=extra) + more + padded(stored)


def _size(field: bytes) -> bytes:
    """A file of four bytes, if its size is read so."""
    return header(b"n", size_field=field) + padded(b"data")


_MAKERS = {
    "a contiguous file": header(b"c", b"7", size=4) + padded(b"data"),
    "a contiguous file named as a directory": header(b"c/", b"7"),
    "a directory as before ustar": header(b"d/", b"\0", magic=b"") + file(b"d/f"),
    "a file named as a directory": header(b"d/", b"0") + file(b"d/f"),
    "a long name of a file that is a directory's": _long(b"d/\0") + header(b"f"),
    "a PAX path of a file that is a directory's": pax({"path": b"d/"}) + header(b"f"),
    "a prefix and no name": header(b"", prefix=b"d"),
    "GNU's list of a directory": header(b"d/", b"D", size=4) + padded(b"Yf\0\0"),
    "a PAX header of Solaris": header(b"x", b"X", size=11) + padded(b"11 path=ab\n") + file(b"f"),
    "an ACL of Solaris": header(b"x", b"A", size=4) + padded(b"1000") + file(b"f"),
    "long names of old GNU": header(b"x", b"N", size=4) + padded(b"1000") + file(b"f"),
    "an inode of star": header(b"i", b"I") + file(b"f"),
    "a hard link with data": file(b"t") + header(b"h", b"1", link=b"t", size=4) + padded(b"data") + file(b"g"),
    "a hard link with data by PAX":
        file(b"t") + pax({"size": b"4"}) + header(b"h", b"1", link=b"t") + padded(b"data") + file(b"g"),
    "a hard link that says it has data, by PAX":
        file(b"t") + pax({"size": b"4"}) + header(b"h", b"1", link=b"t") + file(b"g"),
    "a hard link that says it has data": file(b"t") + header(b"h", b"1", link=b"t", size=4) + file(b"g"),
    "a symbolic link that says it has data": header(b"h", b"2", link=b"t", size=4) + file(b"g"),
    "a fifo that says it has data": header(b"h", b"6", size=4) + file(b"g"),
    "a hard link named as a directory": file(b"t") + header(b"s/", b"1", link=b"t/"),
    "a symbolic link named as a directory": header(b"s/", b"2", link=b"x"),
    "two paths": _records(b"10 path=a\n", b"10 path=b\n") + file(b"f"),
    "two sizes": _records(b"10 size=8\n", b"10 size=4\n") + file(b"f"),
    "two sparse maps":
        _records(b"22 GNU.sparse.size=99\n", b"26 GNU.sparse.map=0,1,9,3\n", b"26 GNU.sparse.map=0,2,9,2\n")
        + file(b"f"),
    "a path and a sparse file's name": pax({**_SPARSE, "path": b"p"}) + file(b"hdr", _MAPPED),
    "a sparse directory": pax(_SPARSE) + header(b"d", b"5"),
    "a sparse symbolic link": pax(_SPARSE) + header(b"d", b"2", link=b"x"),
    "a sparse hard link": file(b"t") + pax(_SPARSE) + header(b"d", b"1", link=b"t"),
    "a sparse file named as a directory":
        pax({"GNU.sparse.map": b"0,0", "GNU.sparse.size": b"9", "GNU.sparse.numblocks": b"1"}) + header(b"d/", b"\0"),
    "old GNU sparse in a ustar header": header(b"o", b"S", size=4, extra=_slots((512, 4))) + padded(b"data"),
    "old GNU sparse with a gap": _old(b"datamore", _slots((512, 4), (2048, 4), gap=1)),
    "old GNU sparse that goes on after a gap":
        _old(b"datamore", _slots((512, 4), more=b"\1"), _slots((2048, 4))[41:65].ljust(512, b"\0")),
    "old GNU sparse that overlaps": _old(b"datamore", _slots((512, 4), (514, 4))),
    "old GNU sparse without an offset": _old(b"data", bytes(53) + _slots((0, 4))[53:]),
    "sparse 1.0 and a map of 0.1": pax({**_SPARSE, "GNU.sparse.map": b"0,4"}) + file(b"s", _MAPPED),
    "sparse 1.0 and a size of 0.1": pax({**_SPARSE, "GNU.sparse.size": b"2000"}) + file(b"s", _MAPPED),
    "sparse 0.1 and a size of 1.0":
        pax({"GNU.sparse.size": b"9", "GNU.sparse.realsize": b"20", "GNU.sparse.numblocks": b"1", "GNU.sparse.map": b"0,4"})
        + file(b"s"),
    "sparse, only a major number": pax({k: v for k, v in _SPARSE.items() if k != "GNU.sparse.minor"}) + file(b"s", _MAPPED),
    "sparse, only a minor number": pax({"GNU.sparse.minor": b"1", **_ZERO}) + file(b"s"),
    "sparse, versions that are empty": pax({"GNU.sparse.major": b"", "GNU.sparse.minor": b"", **_ZERO}) + file(b"s"),
    "sparse, a size alone": pax({"GNU.sparse.size": b"4"}) + file(b"s"),
    "sparse, a count of nothing": pax({"GNU.sparse.size": b"9", "GNU.sparse.numblocks": b"0"}) + file(b"s", b""),
    "sparse 0.1 with an empty map":
        pax({"GNU.sparse.size": b"9", "GNU.sparse.numblocks": b"0", "GNU.sparse.map": b""}) + file(b"s", b""),
    "sparse 0.1 without a count": pax({"GNU.sparse.size": b"9", "GNU.sparse.map": b"0,4"}) + file(b"s"),
    "sparse 0.1 with its count last": pax({k: _ZERO[k] for k in reversed(_ZERO)}) + file(b"s"),
    "sparse 0.0 without a count": _records(*_ZERO_ZERO) + file(b"s"),
    "sparse 0.0": _records(b"26 GNU.sparse.numblocks=1\n", *_ZERO_ZERO) + file(b"s"),
    "sparse 1.0 of one hole": pax(_SPARSE) + file(b"s", padded(b"1\n1000\n0\n")),
    "sparse 1.0 with an empty map": pax(_SPARSE) + file(b"s", padded(b"0\n")),
    "sparse 1.0 out of order": pax(_SPARSE) + file(b"s", padded(b"2\n500\n4\n100\n4\n") + b"datamore"),
    "sparse 1.0 that overlaps": pax(_SPARSE) + file(b"s", padded(b"2\n500\n4\n502\n4\n") + b"datamore"),
    "sparse 1.0 with less map than data": pax(_SPARSE) + file(b"s", padded(b"1\n500\n4\n") + b"datamore"),
    "sparse 1.1": pax({**_SPARSE, "GNU.sparse.minor": b"1"}) + file(b"s", _MAPPED),
    "holes of Solaris": pax({"SUN.holesdata": b" 0 2 8 10"}) + file(b"f"),
    "a real size of star's": pax({"SCHILY.realsize": b"100"}) + file(b"f"),
    "a global header after a local one": pax({"path": b"long"}) + pax({"comment": b"1"}, b"g") + file(b"short"),
    "a global header after a long name":
        _long(b"long\0") + pax({"comment": b"1"}, b"g") + file(b"short"),
    "a global owner": pax({"uid": b"5", "gid": b"5"}, b"g") + file(b"f"),
    "a global attribute": pax({"SCHILY.xattr.user.a": b"1"}, b"g") + file(b"f"),
    "a global comment": pax({"comment": b"1"}, b"g") + file(b"f"),
    "a size after one NUL": _size(b"\0%010o\0" % 4),
    "a size after two NULs": _size(b"\0\0%09o\0" % 4),
    "no size to some, and no data": header(b"n", size_field=b"\0%010o\0" % 512) + file(b"g"),
    "a mode after a NUL": _with(header(b"n"), 100, b"\0" + b"000777\0"),
    "a size after a tab": _size(b"\t%010o\0" % 4),
    "a size after spaces": _size(b"          4 "),
    "a size, and something after NUL": _size(b"4\0 77777777 "),
    "a size, and something after a space": _size(b"4 777777777 "),
    "a size in old GNU's base 64": _size(b"+AAAAAAAAAE "),
    "a mode of 56 bits": _with(header(b"n"), 100, b"\x81" + bytes(5) + b"\1\xa4"),
    "a mode in base 256": _with(header(b"n"), 100, b"\x80" + bytes(5) + b"\1\xa4"),
    "a negative uid": _with(header(b"n"), 108, b"\xff" * 8),
    "a key with a NUL": _records(b"13 path\0x=ev\n") + file(b"f"),
    "the link of a file with a NUL": pax({"linkpath": b"a\0b"}) + file(b"f"),
    "a link of a file": pax({"linkpath": b"ab"}) + file(b"f"),
    "a hard link with a NUL": file(b"a") + pax({"linkpath": b"a\0b"}) + header(b"h", b"1", link=b"a"),
    "a type of star's": pax({"SCHILY.filetype": b"fifo"}) + file(b"f"),
    "star's times": _with(header(b"n", prefix=b"p" * 100), 476, b"%011o %011o " % (5, 6) + bytes(8) + b"tar\0"),
    "a prefix that runs into star's times": _with(header(b"n", prefix=b"p" * 140), 508, b"tar\0"),
    "a prefix before ustar": header(b"n", magic=b"", prefix=b"pre"),
    "a prefix after a magic without NUL": header(b"n", magic=b"ustar00", prefix=b"pre"),
    "a prefix after a magic of one space": header(b"n", magic=b"ustar \00", prefix=b"pre"),
    "a prefix after GNU's magic": file(b"f") + file(b"f", magic=_GNU, prefix=b"some/directory"),   # Go before 1.8
    "a prefix after GNU's magic that goes on in a time": file(b"f", magic=_GNU, prefix=b"%011o\0some/dir" % 5),
    "times of GNU's": header(b"n", magic=_GNU, extra=b"%011o\0%011o\0" % (5, 6)),
    "an empty long name": _long(b"") + file(b"short"),
    "a long name without NUL": _long(b"long") + file(b"short"),
    "a long name that runs into its padding":
        header(b"././@LongLink", b"L", size=4, magic=_GNU) + padded(b"longer") + file(b"short"),
    "an empty PAX header": header(b"pax", b"x") + file(b"f"),
    "half a second before 1970": pax({"mtime": b"-0.5"}) + file(b"f"),
    "a time that begins with a point": pax({"mtime": b".5"}) + file(b"f"),
    "a time with a plus": pax({"mtime": b"+5"}) + file(b"f"),
    "a time of the year 3170843": pax({"mtime": b"99999999999999"}) + file(b"f"),
    "names that are bytes": pax({"hdrcharset": b"BINARY", "path": b"\xff"}) + file(b"f"),
    "a record's length after a tab": _records(b"\t9 path=a\n") + file(b"f"),
    "a record's length with zeros": _records(b"0012 path=a\n") + file(b"f"),
    "a link by way of another": header(b"s", b"2", link=b"../x") + header(b"h", b"1", link=b"s"),
}
ARCHIVES = {name: made + END for name, made in _MAKERS.items()}
