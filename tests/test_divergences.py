"""Where we read an archive otherwise than the field's readers do: all of it, each with its reason, and nothing more.

Most rows are refusals: two readers could understand the archive differently, or it is cut off, and a digest does not say
which reading was meant. A row that is missing here, or that is no longer true, fails.
"""

import os
import sys
from pathlib import Path

import pytest

import layerstore
import readings
import treediff
import writers
from fuzz import nasties, odd_tars
from layerstore import TarDiffer
from layerstore.errors import ArchiveError, LimitExceededError
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
    "60182c32": ('tarfile gnu bsd', "an extended attribute named b'user.'"),
    "8cc4c6b7": ('tarfile gnu bsd', "capabilities of a file that no kernel takes: b'\\x01\\x00\\x00\\x02'"),
    "e278d0e3": ('tarfile gnu bsd', "an attribute that is not base64: b'!!'"),
    "2c05b287": ('tarfile gnu bsd', "a NUL byte in the name 'a\\x00b'"),
    "1546a89b": ('tarfile gnu bsd', "a global PAX header must not set 'mtime' for every entry"),
    "9a4b79bd": ('tarfile gnu bsd', "a global PAX header must not set 'path' for every entry"),
    "a745fd20": ('tarfile gnu', 'two PAX headers for one entry'),
    "d522f9f6": ('gnu', 'an extension header without its entry'),
    "b16ab43e": ('gnu', 'the archive ends after an extension header'),
    "a72974ed": ('tarfile', "a PAX record whose length is wrong: b'10 a=b\\nxx'"),
    "0c9debb1": ('tarfile', 'a PAX record without a length'),
    "881202e8": ('tarfile gnu bsd', 'a NUL byte inside a GNU long name'),
    "3fa7dfd3": ('tarfile gnu bsd', 'a sparse map out of order or beyond 200 bytes: 0+2'),
    "62d49bdc": ('tarfile gnu bsd', 'a sparse map out of order or beyond 20 bytes: 100+2'),
    "a6fc772a": ('tarfile', 'a sparse map out of order or beyond 0 bytes: 512+4'),
    "cc07f254": ('tarfile', 'a negative size: -1'),
    "bd8dc7a0": ('tarfile', "a header's checksum is 0 but should be 666"),
    "66ad23d4": ('tarfile gnu', "'asdir/' is named as a directory but is a file"),
    "55d498bb": ('bsd', "as a sparse file 1.0 of one hole, below"),
    "0b64e30d": ('bsd', 'libarchive cannot write a name that is no UTF-8 again; it reads it'),
}

# the same of those with names (fuzz.odd_tars)
ODD = {
    "a contiguous file named as a directory": ('tarfile gnu bsd', "'c/' is named as a directory but is a file"),
    "a file named as a directory": ('tarfile gnu bsd', "'d/' is named as a directory but is a file"),   # Go: it is a file
    "a long name of a file that is a directory's": ('tarfile gnu bsd', "'d/' is named as a directory but is a file"),
    "a PAX path of a file that is a directory's": ('tarfile gnu bsd', "'d/' is named as a directory but is a file"),
    "a prefix and no name": ('tarfile gnu bsd', "'d/' is named as a directory but is a file"),
    "GNU's list of a directory": ('tarfile gnu bsd', "an entry of the unknown type b'D'"),
    "a PAX header of Solaris": ('tarfile gnu bsd', "an entry of the unknown type b'X'"),
    "an ACL of Solaris": ('tarfile gnu', "an entry of the unknown type b'A'"),
    "long names of old GNU": ('tarfile gnu bsd', "an entry of the unknown type b'N'"),
    "an inode of star": ('tarfile gnu bsd', "an entry of the unknown type b'I'"),
    "a hard link with data": ('tarfile', "a header's checksum is 0 but should be 666"),
    "a hard link with data by PAX": ('tarfile gnu bsd', "'h', a hardlink, is said to have data"),
    "a hard link that says it has data, by PAX": ('tarfile', "'h', a hardlink, is said to have data"),
    "a symbolic link that says it has data": ('gnu', "GNU tar looks for the data where it lists, not where it extracts; Go never does"),
    "a fifo that says it has data": ('gnu', "GNU tar looks for the data where it lists, not where it extracts; Go never does"),
    "two sparse maps": ('tarfile bsd', "two PAX records 'GNU.sparse.map'"),
    "a path and a sparse file's name": ('tarfile', "both are there to be read: older readers find one name, those that know sparse files the other"),
    "a sparse file named as a directory": ('tarfile', "'d/', a dir, is said to have data"),
    "old GNU sparse in a ustar header": ('tarfile gnu bsd', "a sparse file of GNU's in another format"),
    "old GNU sparse with a gap": ('tarfile gnu bsd', "a sparse map with a gap"),
    "old GNU sparse that goes on after a gap": ('tarfile bsd', "a sparse map that goes on after its end"),
    "old GNU sparse that overlaps": ('tarfile gnu bsd', "a sparse map out of order or beyond 4096 bytes: 514+4"),
    "old GNU sparse without an offset": ('tarfile gnu bsd', "a sparse map with a gap"),
    "sparse 1.0 and a map of 0.1": ('tarfile', "a sparse file of two versions: ['GNU.sparse.map']"),
    "sparse 1.0 and a size of 0.1": ('tarfile gnu bsd', "a sparse file of two versions: ['GNU.sparse.size']"),
    "sparse 0.1 and a size of 1.0": ('tarfile gnu bsd', "a sparse file of two versions: ['GNU.sparse.realsize']"),
    "sparse, only a major number": ('tarfile gnu bsd', "a sparse file of half a version"),   # Go: it has no holes
    "sparse, only a minor number": ('tarfile gnu', "a sparse file of half a version"),
    "sparse, versions that are empty": ('tarfile', "a sparse file of the unknown version (b'', b'')"),
    "sparse, a size alone": ('tarfile gnu bsd', "a sparse file without a map"),   # Go: it has no holes
    "sparse, a count of nothing": ('tarfile gnu bsd', "a sparse file without a map"),
    "sparse 0.1 with an empty map": ('bsd', "a sparse file without a map"),
    "sparse 0.1 without a count": ('tarfile bsd', "a sparse count that is not a decimal number: b''"),   # Go refuses it, too
    "sparse 0.1 with its count last":
        ('gnu', "GNU tar wants GNU.sparse.numblocks before the map; the order of PAX records means nothing (POSIX)"),
    "sparse 0.0 without a count": ('tarfile', "a sparse count that is not a decimal number: b''"),   # Go refuses it, too
    "sparse 1.0 of one hole": ('bsd', "libarchive reads it as we do; tarfile cannot read what it writes again"),
    "sparse 1.0 out of order": ('tarfile gnu bsd', "a sparse map out of order or beyond 1000 bytes: 100+4"),
    "sparse 1.0 that overlaps": ('tarfile gnu bsd', "a sparse map out of order or beyond 1000 bytes: 502+4"),
    "sparse 1.0 with less map than data": ('tarfile gnu bsd', "a sparse map of 4 bytes with 8 bytes of data"),
    "sparse 1.1": ('tarfile gnu', "a sparse file of the unknown version (b'1', b'1')"),
    "holes of Solaris": ('tarfile gnu bsd', "a sparse file as only star or Solaris have it"),
    "a real size of star's": ('tarfile gnu bsd', "a sparse file as only star or Solaris have it"),
    "a global header after a local one": ('tarfile gnu bsd', "a global PAX header between an extension header and its entry"),
    "a global header after a long name": ('tarfile gnu bsd', "a global PAX header between an extension header and its entry"),
    "a global owner": ('tarfile gnu bsd', "a global PAX header must not set 'uid' for every entry"),   # Go's users pass over it
    "a global attribute": ('tarfile gnu bsd', "a global PAX header must not set 'SCHILY.xattr.user.a' for every entry"),
    "a size after one NUL": ('tarfile gnu', "a size that begins with NUL"),   # Go: it is 4
    "a size after two NULs": ('tarfile', "a size that begins with NUL"),
    "no size to some, and no data": ('tarfile bsd', "a size that begins with NUL"),
    "a mode after a NUL": ('tarfile gnu bsd', "a mode that begins with NUL"),
    "a size after a tab": ('tarfile gnu', "a size that is not a number"),
    "a size, and something after NUL": ('bsd', "libarchive wants nothing behind a number; what is behind a NUL is nothing to the others"),
    "a size, and something after a space": ('gnu', "a size that is not a number"),
    "a size in old GNU's base 64": ('gnu', "a size that is not a number: b'+AAAAAAAAAE '"),
    "a negative uid": ('tarfile', "a negative uid: -1"),
    "a key with a NUL": ('tarfile', "a NUL byte in a PAX record"),
    "the link of a file with a NUL": ('tarfile gnu bsd', "a NUL byte in a PAX record"),   # Go refuses it, too
    "a hard link with a NUL": ('tarfile gnu bsd', "a NUL byte in a PAX record"),
    "a prefix that runs into star's times": ('tarfile gnu bsd', "a prefix that runs into star's times"),
    "a prefix before ustar": ('tarfile gnu bsd', "a name goes on where the format"),
    "a prefix after a magic without NUL": ('tarfile gnu bsd', "a name goes on where the format b'ustar00"),
    "a prefix after a magic of one space": ('tarfile gnu bsd', "a name goes on where the format b'ustar "),
    "a prefix after GNU's magic": ('tarfile gnu bsd', "a time of access of GNU's that is not a number: b'some/directo'"),
    "a prefix after GNU's magic that goes on in a time": ('tarfile gnu bsd', "a time of change of GNU's that is not a number: b'some/dir"),
    "times of GNU's": ('tarfile', "tarfile takes the times of an incremental archive for a directory's name"),
    "an empty long name": ('tarfile gnu bsd', "an empty name"),
    "a long name that runs into its padding": ('tarfile gnu bsd', "a GNU long name that runs into its padding"),
    "half a second before 1970": ('gnu bsd', "GNU tar's listing and libarchive's writer cut it towards 0; we, as Go, to the second before"),
    "a time that begins with a point": ('tarfile bsd', "a PAX time that is not a number: b'.5'"),
    "a time with a plus": ('tarfile bsd', "a PAX time that is not a number: b'+5'"),
    "a time of the year 3170843": ('tarfile gnu bsd', "times end where 64 bits of nanoseconds do (Entry.mtime_ns)"),
    "names that are bytes": ('bsd', "libarchive cannot write a name that is no UTF-8 again; it reads it"),
    "a record's length after a tab": ('tarfile', "a PAX record length that is not a decimal number"),
}
DELIBERATE |= {readings.label(odd_tars.ARCHIVES[name]): row for name, row in ODD.items()}


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
    agreed = ()
    if sys.version_info >= (3, 13):      # its tarfile refuses them as we do
        agreed = ("a72974ed", "0c9debb1", readings.label(odd_tars.ARCHIVES["a record's length after a tab"]))
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

# -- what is unpacked ------------------------------------------------------------------------------------------------------

# What we accept as an archive: who makes another tree of it, or none, and why. Times are compared above; ``.wh.`` is OCI's
UNPACKED = {
    "33872fb4": ("gnu bsd tarfile", "a file takes the place of a directory with all in it, as in the field (containers-storage)"),
    "9099e499": ("tarfile", "a directory takes the place of a file"),
    "e824bbab": ("gnu tarfile", "an empty PAX value takes the record back, as above"),
    "78f984f0": ("gnu", "GNU tar ends a file where its map ends; the size is another word of the archive"),
    "f9dcaccc": ("gnu", "GNU tar ends a file where its map ends; the size is another word of the archive"),
    "a996e394": ("gnu", "GNU tar ends a file where its map ends; the size is another word of the archive"),
    "d505e30e": ("gnu", "GNU tar ends a file where its map ends; the size is another word of the archive"),
    "15923791": ("gnu", "GNU tar ends a file where its map ends; the size is another word of the archive"),
    "sparse 0.0": ("gnu", "GNU tar ends a file where its map ends"),
    "sparse 1.0 with an empty map": ("gnu", "GNU tar ends a file where its map ends"),
    "sparse 0.1 with its count last": ("gnu", "as above"),
    "a hard link named as a directory": ("gnu bsd tarfile", "they keep the slash of the target, and the kernel says no; tarfile copies"),
    "a path and a sparse file's name": ("gnu tarfile", "as above, both"),
    "a size, and something after NUL": ("bsd", "as above"),
    "times of GNU's": ("tarfile", "as above"),
    "a link by way of another": ("tarfile", "tarfile makes a second symbolic link"),
}
# and what can be read, but not be unpacked: who does it
NOT_UNPACKED = {
    "e6d9d41b": ("", "too many symbolic links"), "f45da3f8": ("", "which is not in this layer before it"),
    "17bb7e21": ("", "the layer's root is a file"),
    "7ee0395b": ("bsd", "which is not in this layer"), "8e9f0411": ("", "which is not in this layer before it"),
    "1252753a": ("gnu bsd tarfile", "is a whiteout of nothing"), "13cf7384": ("gnu bsd tarfile", "is a device 0:0: a whiteout"),
    "ee795aa1": ("gnu bsd tarfile", "by way of symbolic links the path of"),
    "d67dd97f": ("", "a component of which is longer than 255 bytes"),
}
_NAMES = {readings.label(data): name for name, data in odd_tars.ARCHIVES.items()}
_IGNORED = ("mtime_ns", "xattrs")   # directories that have no entry are made now; of attributes see test_differential


def _others(data, where, ours):
    """Those who unpack *data* to another tree than *ours*, or not at all; None: who unpack it."""
    said = []
    for who, extract in writers.READERS.items():
        dest = where / who
        dest.mkdir()
        worked, _ = extract(data, dest)
        if ours is None:
            differs = worked
        else:
            differs = not worked or treediff.differences(ours, treediff.snapshot(dest), ignore=_IGNORED)
        if differs:
            said.append(who)
    return " ".join(said)


def test_what_is_unpacked_is_what_others_unpack_but_for_the_table(tmp_path):
    """Within their directory: what would be put elsewhere is left out."""
    unpacked, refused = {}, {}
    with layerstore.open(tmp_path / "store") as store:
        for data in archives():
            label = _NAMES.get(readings.label(data), readings.label(data))
            whiteout = b".wh." in data and label != "1252753a"
            if readings.refusal(data) is not None or whiteout or b"../.." in data or data.startswith(b"/"):
                continue
            where = tmp_path / readings.label(data)
            where.mkdir()
            try:
                with store.stage(TarDiffer(data)) as staged:
                    layer = store.apply_staged_layer(staged, id=os.urandom(32).hex())
            except (ArchiveError, LimitExceededError) as error:
                refused[label] = (_others(data, where, None), str(error))
            else:
                store.extract(layer.id, where / "ours")
                unpacked[label] = _others(data, where, treediff.snapshot(where / "ours"))
    assert {label: who for label, who in unpacked.items() if who} == {label: who for label, (who, _) in UNPACKED.items()}
    assert {label: who for label, (who, _) in refused.items()} == {label: who for label, (who, _) in NOT_UNPACKED.items()}
    assert all(NOT_UNPACKED[label][1] in said for label, (_, said) in refused.items())
    assert len(unpacked) > 50
