"""What we and the readers of the field make of an archive's bytes: its members, or that it is refused.

A member is (name, type, size, link, seconds of its time), names cleaned of ``/`` and ``.``; a reading is a list of them or ``refused``.
"""

import calendar
import decimal
import hashlib
import io
import re
import subprocess
import tarfile
import time

import writers
from layerstore.errors import ArchiveError, LimitExceededError
from layerstore.model import Limits
from layerstore.formats.tar import TarReader

REFUSED = "refused"
_LIMITS = Limits(max_entries=2_000, max_bytes=64 << 20, max_pax_record=1 << 16)
_TYPES = {
    tarfile.REGTYPE: "file", tarfile.AREGTYPE: "file", tarfile.CONTTYPE: "file", tarfile.GNUTYPE_SPARSE: "file",
    tarfile.LNKTYPE: "hardlink", tarfile.SYMTYPE: "symlink", tarfile.CHRTYPE: "char", tarfile.BLKTYPE: "block",
    tarfile.DIRTYPE: "dir", tarfile.FIFOTYPE: "fifo",
}


def label(data):
    """By which a table names an archive."""
    return hashlib.sha256(data).hexdigest()[:8]


def all_readings(data):
    return {"ours": ours(data), "tarfile": by_tarfile(data), "gnu": by_gnu(data), "bsd": by_bsd(data)}


def ours(data):
    try:
        return [
            (e.name.decode("utf-8", "surrogateescape"), e.type, e.size, clean(text(e.linkname)) if e.type == "hardlink" else text(e.linkname),
             e.mtime_ns // 10**9) for e in TarReader([data], _LIMITS)
        ]
    except (ArchiveError, LimitExceededError):
        return REFUSED


def refusal(data):
    """Our words if we refuse it, else None."""
    try:
        for _ in TarReader([data], _LIMITS):
            pass
    except (ArchiveError, LimitExceededError) as error:
        return str(error)
    return None


def by_tarfile(data):
    """All of it: tarfile itself stops where it no longer understands, without a word."""
    try:
        with tarfile.open(fileobj=io.BytesIO(data), mode="r:", errorlevel=2, encoding="utf-8", errors="surrogateescape") as archive:
            return [
                (clean(m.name), _TYPES.get(m.type, repr(m.type)), m.size if m.isreg() else 0,
                 clean(m.linkname) if m.islnk() else m.linkname if m.issym() else "", int(m.mtime // 1)) for m in archive
            ]
    except (tarfile.TarError, ValueError, OverflowError, EOFError):
        return REFUSED


def by_gnu(data):
    ran = subprocess.run(
        ["tar", "-tvf", "-", "--full-time", "--numeric-owner", "--quoting-style=escape", "-P"], input=data, capture_output=True,
        env=writers.ENVIRONMENT,
    )
    if ran.returncode:
        return REFUSED
    return [_gnu_line(line) for line in ran.stdout.decode("utf-8", "surrogateescape").splitlines()]


_GNU = re.compile(r"(.)\S+ \S+ +(\S+) (\S+ \S+) (.*)")


def _gnu_line(line):
    kind, size, when, rest = _GNU.match(line).groups()
    kind = {"-": "file", "d": "dir", "l": "symlink", "h": "hardlink", "c": "char", "b": "block", "p": "fifo", "C": "file"}.get(kind, kind)
    name, link = rest, ""
    if kind == "symlink":
        name, _, link = rest.partition(" -> ")
    elif kind == "hardlink":
        name, _, link = rest.partition(" link to ")
        link = clean(link)
    return clean(_unescaped(name)), kind, int(size) if kind == "file" else 0, _unescaped(link), _seconds(when.partition(".")[0])


def _seconds(when):
    """Since 1970. Times may be of the year 3170843: a calendar comes again after 400 years."""
    year, month, rest = when.rsplit("-", 2)
    again, within = divmod(int(year), 400)
    return calendar.timegm(time.strptime(f"{2000 + within}-{month}-{rest}", "%Y-%m-%d %H:%M:%S")) + (again - 5) * 146_097 * 86_400


def by_bsd(data):
    """What libarchive writes again of what it has read."""
    ran = subprocess.run(["bsdtar", "--format=pax", "-cf", "-", "@-"], input=data, capture_output=True, env=writers.ENVIRONMENT)
    return REFUSED if ran.returncode or ran.stderr else by_tarfile(ran.stdout)


def _unescaped(name):
    raw = re.sub(rb"\\([0-7]{3})", lambda m: bytes([int(m[1], 8)]), name.encode("utf-8", "surrogateescape"))
    return raw.replace(b"\\\\", b"\\").decode("utf-8", "surrogateescape")


def clean(name):
    return "/".join(part for part in name.split("/") if part not in ("", "."))


def text(name):
    return name.decode("utf-8", "surrogateescape")


def members(path):
    """Every member of a tar file, with all that a layer is checked by."""
    with open(path, "rb") as file:
        return [
            {
                "name": text(e.name), "type": e.type, "mode": e.mode, "uid": e.uid, "gid": e.gid, "size": e.size, "mtime_ns": e.mtime_ns,
                "link": clean(text(e.linkname)) if e.type == "hardlink" else text(e.linkname), "device": (e.devmajor, e.devminor),
                "xattrs": dict(e.xattrs),
            } for e in TarReader(iter(lambda: file.read(1 << 20), b""))
        ]


def members_by_tarfile(path):
    with tarfile.open(path, "r:", encoding="utf-8", errors="surrogateescape") as archive:
        return [_member(m) for m in archive]


def members_by_bsd(path, scratch):
    """As libarchive writes them again, in a form that loses no nanosecond."""
    again = scratch / "again.tar"
    subprocess.run(["bsdtar", "--format=pax", "-cf", again, f"@{path}"], check=True, env=writers.ENVIRONMENT)
    return members_by_tarfile(again)


def _member(m):
    exact = m.pax_headers.get("mtime")
    prefix = "SCHILY.xattr."
    return {
        "name": clean(m.name), "type": _TYPES[m.type], "mode": m.mode & 0o7777, "uid": m.uid, "gid": m.gid,
        "size": m.size if m.isreg() else 0, "mtime_ns": int(decimal.Decimal(exact).scaleb(9)) if exact else int(m.mtime) * 10**9,
        "link": clean(m.linkname) if m.islnk() else m.linkname if m.issym() else "",
        "device": (m.devmajor, m.devminor) if m.ischr() or m.isblk() else (0, 0),
        "xattrs": {
            key[len(prefix) :].encode(): value.encode("utf-8", "surrogateescape")
            for key, value in m.pax_headers.items() if key.startswith(prefix)
        },
    }
