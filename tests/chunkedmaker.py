"""Blobs of zstd:chunked and eStargz, as their specifications have them, and with any lie that one wants in them.

Every digest that vouches for a part is right: what is wrong is what the parts say. *toc*, *lines* and *data* are told what
would be written, and may change it.
"""

import base64
import gzip
import hashlib
import io
import json
import struct
import tarfile
from dataclasses import dataclass, field
from datetime import UTC, datetime

import zstandard

from layerstore.formats.crc64 import crc64
from layerstore.model import Descriptor

CURRENT, OF_2022, STARGZ, OLD_STARGZ, NERDCTL = "current", "2022", "estargz", "stargz", "nerdctl"
FORMS = (CURRENT, OF_2022, STARGZ, OLD_STARGZ, NERDCTL)
TIME = 1_700_000_000
TYPES = {
    tarfile.REGTYPE: "reg", tarfile.DIRTYPE: "dir", tarfile.SYMTYPE: "symlink", tarfile.LNKTYPE: "hardlink",
    tarfile.CHRTYPE: "char", tarfile.BLKTYPE: "block", tarfile.FIFOTYPE: "fifo",
}


@dataclass
class Made:
    blob: bytes
    descriptor: Descriptor
    diff_id: str
    tar: bytes
    toc: dict = field(default_factory=dict)


def sha(data):
    return "sha256:" + hashlib.sha256(data).hexdigest()


def member(name, data=b"", kind=tarfile.REGTYPE, **fields):
    """(header's bytes, data, TarInfo) of one member."""
    info = tarfile.TarInfo(name)
    info.type, info.size, info.mtime, info.mode = kind, len(data), TIME, 0o755 if kind == tarfile.DIRTYPE else 0o644
    xattrs = fields.pop("xattrs", {})
    info.pax_headers = {f"SCHILY.xattr.{key}": value for key, value in xattrs.items()}
    for key, value in fields.items():
        setattr(info, key, value)
    return info.tobuf(tarfile.PAX_FORMAT), data, info


def tree(big=b""):
    """A small layer with something of everything."""
    return [
        member("d/", kind=tarfile.DIRTYPE), member("d/a", b"first file\n"), member("d/empty"), member("d/b", b"second\n" * 50),
        member("d/big", big or bytes(range(256)) * 40), member("d/link", kind=tarfile.SYMTYPE, linkname="a"),
        member("d/hard", kind=tarfile.LNKTYPE, linkname="d/a"), member("d/pipe", kind=tarfile.FIFOTYPE),
        member("d/noted", b"x", xattrs={"user.note": "value"}, uid=1000, gid=1001, mode=0o4755),
        member("d/holes", b"begin" + bytes(5000) + b"end"), member("d/null", kind=tarfile.CHRTYPE, devmajor=1, devminor=3),
    ]


def make(form, members=None, *, chunk=3000, toc=None, lines=None, data=None, annotations=None, end=bytes(1024), **more):
    """A blob of the *form*; files are cut into chunks of *chunk* bytes."""
    maker = _Maker(form, chunk, data or (lambda _name, _number, part: part), **more)
    for each in tree() if members is None else members:
        maker.add(*each)
    return maker.finish(end, toc or (lambda found: found), lines or (lambda found: found), annotations or (lambda found: found))


class _Maker:
    def __init__(self, form, chunk, data, *, kept=False, alone=()):
        self.alone = alone                              # names before whose headers a unit begins, too
        self.form, self.chunk, self.data = form, chunk, data
        self.zstd = form in (CURRENT, OF_2022, NERDCTL)
        self.own_units = form in (CURRENT, OF_2022)     # a unit ends where a file does
        self.blob, self.tar = b"", b""
        self.pending = b""                              # of the unit being written
        self.entries, self.lines = [], []

    def unit(self, fresh):
        """End the unit, if there is one or a *fresh* one is wanted anyway."""
        if self.pending:
            self.blob += self.compressed(self.pending)
            self.pending = b""

    def compressed(self, data):
        if self.zstd:
            return zstandard.ZstdCompressor(level=3, write_content_size=False).compress(data)
        return gzip.compress(data, 9, mtime=0)

    def raw(self, data):
        self.pending += data
        self.tar += data
        if self.lines and self.lines[-1]["type"] == 2:
            data = base64.b64decode(self.lines.pop()["payload"]) + data
        self.lines.append({"type": 2, "payload": base64.b64encode(data).decode()})

    def add(self, header, data, info):
        if info.name in self.alone:
            self.unit(True)
        self.raw(header)
        entry = {"type": TYPES[info.type], "name": info.name}
        if info.mtime:
            entry["modtime"] = datetime.fromtimestamp(info.mtime, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        for key, value in (("linkName", info.linkname), ("mode", info.mode), ("size", info.size), ("uid", info.uid),
                           ("gid", info.gid), ("devMajor", info.devmajor), ("devMinor", info.devminor)):
            if value:
                entry[key] = value
        xattrs = {key.removeprefix("SCHILY.xattr."): base64.b64encode(value.encode()).decode()
                  for key, value in info.pax_headers.items()}
        if xattrs:
            entry["xattrs"] = xattrs
        self.entries.append(entry)
        line = {"type": 1, "name": info.name, "payload": None}
        if data:
            line.update(size=len(data), payload=base64.b64encode(crc64(data, 0).to_bytes(8, "big")).decode())
        self.lines.append(line)
        if data:
            self.content(entry, data)
        elif entry["type"] == "reg" and self.form in (STARGZ, NERDCTL):
            entry["digest"] = sha(b"")
        self.tar += data
        if len(data) % 512:
            self.raw(bytes(-len(data) % 512))

    def content(self, entry, data):
        entry["digest"] = sha(data)
        parts = list(self.cut(data))
        for number, (start, part, zeros) in enumerate(parts):
            self.unit(True)
            target = entry
            if number:
                target = {"type": "chunk", "name": entry["name"], "chunkOffset": start}
                self.entries.append(target)
            target["offset"] = len(self.blob)
            if len(parts) > 1 or not self.own_units:
                target["chunkDigest"] = sha(part)
                if self.own_units or number < len(parts) - 1:
                    target["chunkSize"] = len(part)
            if zeros:
                target["chunkType"] = "zeros"
            self.pending += self.data(entry["name"], number, part)
        if self.form == OLD_STARGZ:
            for each in self.entries:
                each.pop("digest", None)
                each.pop("chunkDigest", None)
        if self.own_units:
            self.unit(True)
            entry["endOffset"] = len(self.blob)

    def cut(self, data):
        at = 0
        while at < len(data):
            part = data[at : at + self.chunk]
            if self.own_units and len(data) > self.chunk and (hole := data.find(bytes(1024), at, at + self.chunk + 1024)) >= 0:
                part = data[at:hole]
                if hole == at:
                    zeros = len(data[at:]) - len(data[at:].lstrip(b"\0"))
                    yield at, data[at : at + zeros], True
                    at += zeros
                    continue
            yield at, part, False
            at += len(part)

    def finish(self, end, toc, lines, annotations):
        self.raw(end)
        if self.form in (STARGZ, OLD_STARGZ):
            self.tar = self.tar[: len(self.tar) - len(end)]
            self.pending = self.pending[: len(self.pending) - len(end)]
        self.unit(False)
        notes = self.stargz_end(toc, end) if not self.zstd else self.zstd_end(toc, lines)
        notes = annotations(notes)
        descriptor = Descriptor("application/vnd.oci.image.layer.v1.tar+" + ("zstd" if self.zstd else "gzip"),
                                sha(self.blob), len(self.blob), notes)
        return Made(self.blob, descriptor, sha(self.tar), self.tar, self.toc)

    def stargz_end(self, toc, end):
        self.toc = toc({"version": 1, "entries": self.entries})
        text = self.toc if isinstance(self.toc, bytes) else json.dumps(self.toc, indent="\t").encode()
        header, data, _info = member("stargz.index.json", text, mtime=0)
        tail = header + data + bytes(-len(data) % 512) + end
        at = len(self.blob)
        self.blob += gzip.compress(tail, 9, mtime=0)
        self.tar += tail
        place = b"%016xSTARGZ" % at
        extra = place if self.form == OLD_STARGZ else b"SG" + struct.pack("<H", len(place)) + place
        self.blob += (b"\x1f\x8b\x08\x04\0\0\0\0\0\xff" + struct.pack("<H", len(extra)) + extra
                      + b"\x01\x00\x00\xff\xff" + bytes(8))
        return {"containerd.io/snapshot/stargz/toc.digest": sha(text)}

    def frame(self, data):
        at = len(self.blob) + 8
        self.blob += b"\x50\x2a\x4d\x18" + struct.pack("<I", len(data)) + data
        return at

    def zstd_end(self, toc, lines):
        split = plain_split = b""
        found = {"version": 1, "entries": self.entries}
        if self.form == CURRENT:
            text = lines([{**line, "position": n} for n, line in enumerate(self.lines)])
            plain_split = text if isinstance(text, bytes) else b"".join(
                json.dumps(line, separators=(",", ":")).encode() + b"\n" for line in text)
            split = zstandard.compress(plain_split)
            found["tarSplitDigest"] = sha(split)
        self.toc = toc(found)
        plain = self.toc if isinstance(self.toc, bytes) else json.dumps(self.toc, separators=(",", ":")).encode()
        text = zstandard.compress(plain)
        prefix = "io.github.containers.zstd-chunked." if self.form == CURRENT else "io.containers.zstd-chunked."
        at = self.frame(text)
        notes = {prefix + "manifest-checksum": sha(text), prefix + "manifest-position": f"{at}:{len(text)}:{len(plain)}:1"}
        footer = [at, len(text), len(plain), 1]
        if self.form == CURRENT:
            at = self.frame(split)
            notes[prefix + "tarsplit-position"] = f"{at}:{len(split)}:{len(plain_split)}"
            footer += [at, len(split), len(plain_split)]
        elif self.form == NERDCTL:
            notes["containerd.io/snapshot/stargz/toc.digest"] = sha(plain)
        self.frame(struct.pack(f"<{len(footer)}Q", *footer) + (b"GNUlInUx" if self.form == CURRENT else b"GnUlInUx"))
        return notes


def read_tar(data):
    """What tar(1) would list; a check of the maker itself."""
    return tarfile.open(fileobj=io.BytesIO(data)).getnames()
