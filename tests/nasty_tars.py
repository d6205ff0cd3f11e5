"""Members and sparse archives for tests, made byte by byte with the helpers of the fuzz seeds."""

import tarfile

from fuzz import nasties

KINDS = {tarfile.REGTYPE: b"0", tarfile.DIRTYPE: b"5", tarfile.SYMTYPE: b"2", tarfile.LNKTYPE: b"1"}


def member(name, data=b"", *, kind=tarfile.REGTYPE, link="", mode=0o644):
    header = nasties.header(name.encode(), KINDS[kind], size=len(data), link=link.encode(), mode=mode)
    return header + nasties.padded(data)


def sparse_tars():
    """(name, tar) of each kind of sparse file that GNU tar writes or wrote."""
    data = b"data" + b"more"
    old = nasties.header(
        b"old", b"S", size=8, magic=b"ustar  \0",
        extra=bytes(41) + b"%011o\0%011o\0%011o\0%011o\0" % (512, 4, 2048, 4) + bytes(49) + b"%011o\0" % 4096,
    )
    maps = {"GNU.sparse.size": b"4096", "GNU.sparse.numblocks": b"2", "GNU.sparse.map": b"512,4,2048,4"}
    hole = {"GNU.sparse.size": b"4096", "GNU.sparse.numblocks": b"1", "GNU.sparse.map": b"4096,0"}
    one = {"GNU.sparse.major": b"1", "GNU.sparse.minor": b"0", "GNU.sparse.name": b"s", "GNU.sparse.realsize": b"4096"}
    return [
        ("old GNU", old + nasties.padded(data) + nasties.END),
        ("PAX 0.1", nasties.pax(maps) + nasties.file(b"s", data) + nasties.END),
        ("PAX 1.0", nasties.pax(one) + nasties.file(b"s", nasties.padded(b"2\n512\n4\n2048\n4\n") + data) + nasties.END),
        ("all hole", nasties.pax(hole) + nasties.file(b"s", b"") + nasties.END),
    ]
