"""Where we read an archive otherwise than the field's readers do: all of it, each with its reason, and nothing more.

Most rows are refusals: two readers could understand the archive differently, or it is cut off, and a digest does not say
which reading was meant. A row that is missing here, or that is no longer true, fails.
"""

import sys
from pathlib import Path

import pytest

import readings
from fuzz import nasties
from nasty_tars import sparse_tars

pytestmark = pytest.mark.root   # the readers are programs that CI installs for root

FINDINGS = Path(__file__).parent.parent / "fuzz" / "findings"

# the archive (readings.label) -> the readers that do not make of it what we do; why. Of what we refuse: our own words
DELIBERATE = {
    "e3b0c442": ('bsd', 'the archive has no end marker: it may be truncated'),
    "076a27c7": ('tarfile gnu bsd', 'the archive has no end marker: it may be truncated'),
    "f4cd6431": ('tarfile gnu bsd', 'the archive has no end marker: it may be truncated'),
    "af30282c": ('tarfile gnu bsd', 'the archive has no end marker: it may be truncated'),
    "7e1b120b": ('tarfile gnu bsd', "trailing junk after the archive's end marker"),
    "2860db84": ('tarfile gnu bsd', "the hard-link target '../canary/file' contains '..'"),
    "83cd9888": ('tarfile gnu bsd', "the name '../escape' contains '..'"),
    "40bdcc3a": ('tarfile gnu bsd', "the name 'a/../b' contains '..'"),
    "82d6aa4e": ('tarfile gnu bsd', 'an empty name'),
    "a18f81ab": ('tarfile gnu bsd', "an entry of the unknown type b'Z'"),
    "2004d185": ('tarfile gnu bsd', "an entry of the unknown type b'V'"),
    "ef1694b1": ('tarfile gnu', "an entry of the unknown type b'M'"),
    "e824bbab": ('tarfile gnu', "an empty PAX value takes the record back (POSIX pax): the header's name stands"),
    "03c40132": ('gnu', "GNU tar's listing cuts -1.5 s to -1; what it extracts is as ours (test_differential)"),
    "f6ad83be": ('tarfile gnu bsd', "a PAX time that is not a number: b'1e9'"),
    "14094b08": ('tarfile gnu bsd', "the owner 4294967295:0 of 'owned' is not a possible one"),
    "e278d0e3": ('tarfile gnu bsd', "an attribute that is not base64: b'!!'"),
    "2c05b287": ('tarfile gnu bsd', "a NUL byte in the name 'a\\x00b'"),
    "1546a89b": ('bsd', 'libarchive does not honour global PAX headers'),
    "9a4b79bd": ('tarfile gnu bsd', "a global PAX header must not set 'path' for every entry"),
    "a745fd20": ('tarfile gnu', 'two PAX headers for one entry'),
    "d522f9f6": ('gnu', 'an extension header without its entry'),
    "b16ab43e": ('gnu', 'the archive ends after an extension header'),
    "a72974ed": ('tarfile', "a PAX record whose length is wrong: b'10 a=b\\nxx'"),
    "0c9debb1": ('tarfile', 'a PAX record without a length'),
    "881202e8": ('tarfile gnu bsd', 'a NUL byte inside a GNU long name'),
    "1118ddfa": ('gnu', 'GNU tar refuses a sparse map without GNU.sparse.numblocks; Go and tarfile do not need it'),
    "8884dbf5": ('tarfile bsd', 'a sparse map out of order or beyond 200 bytes: 0+2'),
    "8370e748": ('tarfile bsd', 'a sparse map out of order or beyond 20 bytes: 100+2'),
    "a6fc772a": ('tarfile', 'a sparse map out of order or beyond 0 bytes: 512+4'),
    "cc07f254": ('tarfile', 'a negative size: -1'),
    "bd8dc7a0": ('tarfile', "a header's checksum is 0 but should be 666"),
    "66ad23d4": ('tarfile gnu', "'asdir/' is named as a directory but has data"),
    "9f82e965": ('gnu', 'GNU tar wants GNU.sparse.numblocks before the map; the order of PAX records means nothing (POSIX)'),
    "a9ed701d": ('tarfile gnu', 'a file that is all hole has an empty map, which GNU tar writes as 0,0; libarchive reads it as we do'),
    "0b64e30d": ('bsd', 'libarchive cannot write a name that is no UTF-8 again; it reads it'),
}


def archives():
    """Every hand-made one, and what fuzzing found."""
    found = [*nasties.seeds("tar_reader"), *(data for _, data in sparse_tars())]
    found += [path.read_bytes() for target in ("tar_reader", "unpack", "tar_split") for path in sorted((FINDINGS / target).glob("*"))]
    return list(dict.fromkeys(found))


def test_the_readings_that_differ_are_those_of_the_table():
    differing = {}
    for data in archives():
        others = readings.all_readings(data)
        ours = others.pop("ours")
        who = " ".join(name for name, theirs in others.items() if theirs != ours)
        if who:
            differing[readings.label(data)] = who
    agreed = ("a72974ed", "0c9debb1") if sys.version_info >= (3, 13) else ()   # its tarfile refuses them as we do
    assert differing == {label: who for label, (who, _) in DELIBERATE.items() if label not in agreed}


def test_what_is_refused_is_refused_for_the_reason_in_the_table():
    refused = 0
    for data in archives():
        said = readings.refusal(data)
        if said is not None and readings.label(data) in DELIBERATE:
            assert DELIBERATE[readings.label(data)][1] in said
            refused += 1
    assert refused > 20


def test_a_reading_that_is_not_in_the_table_is_seen(monkeypatch):
    monkeypatch.setattr(readings, "ours", lambda _data: [])
    with pytest.raises(AssertionError):
        test_the_readings_that_differ_are_those_of_the_table()
