"""Hand-made seeds, by target: small inputs that each hold one thing a decoder may stumble over.

As code rather than as files, so that a reader sees what is nasty about each. Most are valid up to the one thing: what
is refused in its first bytes exercises nothing.
"""

from __future__ import annotations

import base64
import bz2
import gzip
import io
import json
import lzma
import tarfile
import zlib
from collections.abc import Callable

import msgpack
import zstandard

import layerjournal
from fuzz import odd_tars
from fuzz.tar_parts import END, file, header, padded, pax
from layerjournal import segment
from layerjournal.record import genesis, seal
from layerstore.formats.crc64 import crc64

Seeds = list[bytes]


def seeds(target: str) -> Seeds:
    """The seeds of a target, always the same."""
    return _MAKERS[target]()


# -- tars ----------------------------------------------------------------------------------------------------------


def _tars() -> Seeds:
    long = b"d/" * 60 + b"f"
    far = b"/".join([b"n" * 255] * 3)
    whole = io.BytesIO()
    with tarfile.open(fileobj=whole, mode="w", format=tarfile.GNU_FORMAT) as archive:
        for name in ("a" * 120, "b/" + "c" * 200):
            archive.addfile(tarfile.TarInfo(name))
    return [
        END, b"", bytes(512), bytes(511),
        file(b"plain") + END, file(b"plain"), file(b"plain") + bytes(512), file(b"plain") + END + b"junk",
        header(b"dir/", b"5", mode=0o755) + file(b"dir/file") + END,
        header(b"link", b"2", link=b"/etc/passwd") + file(b"link/evil") + END,
        header(b"link", b"2", link=b"../..") + file(b"link/evil") + END,
        header(b"loop", b"2", link=b"loop") + file(b"loop/x") + END,
        pax({"linkpath": b"n" * 256}) + header(b"l", b"2", link=b"cut") + file(b"l/x") + END,
        header(b"d", b"5") + header(b"l", b"2", link=b"d") + file(b"l/through") + END,
        file(b"target") + header(b"hard", b"1", link=b"target") + END,
        header(b"hard", b"1", link=b"../canary/file") + END, header(b"hard", b"1", link=b"absent") + END,
        header(b"self", b"1", link=b"self") + END,
        file(b"../escape") + END, file(b"/absolute") + END, file(b"a/../b") + END, file(b"./.") + END, file(b"") + END,
        file(b"twice", b"one") + file(b"twice", b"two") + END,
        header(b"x", b"5") + file(b"x/in") + file(b"x") + END, file(b"x") + header(b"x", b"5") + file(b"x/in") + END,
        file(b".wh.gone", b"") + END, file(b"d/.wh..wh..opq", b"") + file(b"d/kept") + END, file(b".wh.", b"") + END,
        file(b"kept") + file(b".wh.kept", b"") + END, file(b".wh..wh.plnk", b"") + END,
        header(b"null", b"3") + END, header(b"fifo", b"6") + END, header(b"block", b"4") + END,
        header(b"unknown", b"Z") + END, header(b"volume", b"V") + END, header(b"multi", b"M", size=4) + padded(b"data") + END,
        pax({"path": long}) + file(b"short") + END, pax({"path": b""}) + file(b"short") + END,
        pax({"size": b"4"}) + header(b"sized", size=0) + padded(b"data") + END,
        pax({"size": b"99999999999999999999"}) + header(b"huge") + END,
        pax({"mtime": b"-1.5"}) + file(b"old") + END, pax({"mtime": b"1e9"}) + file(b"odd") + END,
        pax({"uid": b"4294967295"}) + file(b"owned") + END, pax({"SCHILY.xattr.user.a": b"1"}) + file(b"attr") + END,
        pax({"SCHILY.xattr.trusted.overlay.opaque": b"y"}) + header(b"d", b"5") + END,
        pax({"LIBARCHIVE.xattr.user%2Ea": b"!!"}) + file(b"attr") + END,
        pax({"SCHILY.xattr.user.": b"1"}) + file(b"attr") + END,
        pax({"SCHILY.xattr.security.capability": b"\1\0\0\2"}) + file(b"attr") + END,
        pax({"comment": b"x" * 3000}) + file(b"c") + END, pax({"path": b"a\0b"}) + file(b"nul") + END,
        pax({"mtime": b"1"}, b"g") + file(b"g") + END, pax({"path": b"all"}, b"g") + file(b"g") + END,
        pax({"a": b"1"}) + pax({"b": b"2"}) + file(b"two") + END, pax({"a": b"1"}) + END, pax({"a": b"1"}),
        header(b"pax", b"x", size=9) + padded(b"10 a=b\nxx") + file(b"f") + END,
        header(b"pax", b"x", size=4) + padded(b"junk") + file(b"f") + END,
        header(b"././@LongLink", b"L", size=5) + padded(b"name\0") + file(b"n") + END,
        header(b"././@LongLink", b"L", size=5) + padded(b"a\0b\0c") + file(b"n") + END,
        header(b"././@LongLink", b"K", size=5) + padded(b"name\0") + header(b"s", b"2", link=b"x") + END,
        pax({"GNU.sparse.major": b"1", "GNU.sparse.minor": b"0", "GNU.sparse.name": b"s", "GNU.sparse.realsize": b"1000"})
        + file(b"s", padded(b"1\n500\n4\n") + b"data") + END,
        pax({"GNU.sparse.numblocks": b"2", "GNU.sparse.map": b"0,2,100,2", "GNU.sparse.size": b"200"}) + file(b"s") + END,
        pax({"GNU.sparse.numblocks": b"2", "GNU.sparse.map": b"100,2,0,2", "GNU.sparse.size": b"200"}) + file(b"s") + END,
        pax({"GNU.sparse.numblocks": b"2", "GNU.sparse.map": b"0,9,100,2", "GNU.sparse.size": b"20"}) + file(b"s") + END,
        header(b"old", b"S", size=4, magic=b"ustar  \0", extra=bytes(41) + b"%011o\0%011o\0" % (512, 4)) + padded(b"data") + END,
        header(b"base256", size_field=b"\x80" + bytes(10) + b"\4") + padded(b"data") + END,
        header(b"negative", size_field=b"\xff" * 12) + END, header(b"notoctal", size_field=b"9999999999\0") + END,
        header(b"v7", magic=b"") + END, header(b"name", prefix=b"prefix/of/it") + END,
        header(b"cut", size=600) + bytes(512), file(b"cut")[:-1], whole.getvalue(),
        header(b"dir/", b"5", size=4) + padded(b"data") + END, header(b"asdir/", b"0", size=4) + padded(b"data") + END,
        # by way of the links longer than a path may be, though each name is shorter
        pax({"path": far}) + header(b"d", b"5") + pax({"linkpath": far}) + header(b"l", b"2", link=b"cut")
        + pax({"path": b"l/" + far}) + header(b"d", b"5") + pax({"linkpath": b"l/" + far}) + header(b"m", b"2", link=b"cut")
        + pax({"path": b"m/" + b"/".join([far] * 4)}) + file(b"f") + END,
        file(b"/".join([b"d"] * 39) + b"/deep") + END, file(b"\xff\xfe") + END, file(b"n" * 100) + END,
        *odd_tars.ARCHIVES.values(),
    ]


def _paxes() -> Seeds:
    """The bodies of PAX headers."""
    def body(*pairs: tuple[bytes, bytes]) -> bytes:
        return b"".join(pax({key.decode(): value})[512:].rstrip(b"\0") for key, value in pairs)

    return [
        b"", b"\n", b"6 a=b\n", b"6 a=b\n6 a=c\n", b"5 a=b\n", b"7 a=b\n", b"06 a=b\n", b"5 ab\n", b"4 =\n", b"+6 a=b\n", b"6  a=b\n",
        b"99999999999999999999999 a=b\n", b"6 \xff=b\n", b"9 a=b\nc=d\n",
        body((b"path", b"a/b"), (b"linkpath", b"c"), (b"size", b"4"), (b"uid", b"1"), (b"gid", b"2"), (b"mtime", b"-1.000000001")),
        body((b"mtime", b".5")), body((b"mtime", b"1.")), body((b"mtime", b"-0.0000000001")), body((b"size", b"")), body((b"uid", b"-1")),
        body((b"SCHILY.xattr.user.a", b""), (b"LIBARCHIVE.xattr.user.a%3D", b"YQ"), (b"LIBARCHIVE.xattr.%00", b"YQ==")),
        body((b"SCHILY.xattr.", b"x")), body((b"SCHILY.xattr.user.big", b"x" * 300)), body((b"LIBARCHIVE.xattr.user.b", b"!!")),
        body((b"GNU.sparse.map", b"0,1,2,3"), (b"GNU.sparse.size", b"9"), (b"GNU.sparse.numblocks", b"2")),
        body((b"GNU.sparse.size", b"9"), (b"GNU.sparse.offset", b"0"), (b"GNU.sparse.numbytes", b"1")),
        body((b"GNU.sparse.offset", b"0"), (b"GNU.sparse.offset", b"1"), (b"GNU.sparse.size", b"9")),
        body((b"GNU.sparse.major", b"1"), (b"GNU.sparse.minor", b"0"), (b"GNU.sparse.realsize", b"9"), (b"GNU.sparse.name", b"n")),
        body((b"GNU.sparse.major", b"2"), (b"GNU.sparse.minor", b"0")), body((b"hdrcharset", b"BINARY"), (b"path", b"\xff")),
    ]


# -- compressed streams -----------------------------------------------------------------------------------------------


def _compressed() -> Seeds:
    text = b"layerstore " * 300
    gz, zs = gzip.compress(text, mtime=0), zstandard.ZstdCompressor().compress(text)
    checked = zstandard.ZstdCompressor(write_checksum=True).compress(text)
    skippable = b"\x50\x2a\x4d\x18\x04\x00\x00\x00skip"
    raw = zlib.compressobj(9, zlib.DEFLATED, -15)
    named = b"\x1f\x8b\x08\x08" + bytes(6) + b"name\0" + raw.compress(b"x") + raw.flush() + zlib.crc32(b"x").to_bytes(4, "little")
    gzips = [gz, gz + gz, gz[:-1], gz[:-8], gz + b"junk", gz + bytes(512), gz[:10], b"", gzip.compress(b""), named + b"\1\0\0\0",
             gz[:-8] + bytes(8), gzip.compress(bytes(1 << 18), mtime=0), gzip.compress(bytes(1 << 19), mtime=0)]
    zstds = [zs, zs + zs, zs[:-1], zs + b"junk", skippable, skippable + zs, zs + skippable, checked, checked[:-4] + bytes(4),
             b"", zstandard.ZstdCompressor().compress(b""), skippable[:-1], b"\x50\x2a\x4d\x18\xff\xff\xff\xff",
             b"\x28\xb5\x2f\xfd\x00\xff", zstandard.ZstdCompressor().compress(bytes(1 << 19))]
    others = [b"plain", b"\xfd7zXZ\0", b"BZh9", b"\x04\x22\x4d\x18", b"\x1f", b"\x28\xb5"]
    xzs = [lzma.compress(text), lzma.compress(text) * 2, lzma.compress(text)[:-1], lzma.compress(text) + bytes(4),
           lzma.compress(b""), lzma.compress(text, check=lzma.CHECK_NONE), lzma.compress(text, format=lzma.FORMAT_ALONE)]
    bz = bz2.compress(text, 1)   # small blocks: a decoder takes four times a block's memory
    bzips = [bz, bz * 2, bz[:-1], bz + b"x", bz2.compress(b"", 1), bz2.compress(text, 9)]
    return [b"\3" + s for s in xzs] + [b"\4" + s for s in bzips] + [b"\0" + s for s in gzips] + [b"\1" + s for s in zstds] + [b"\2" + s for s in gzips + zstds + others]


# -- our own formats, and documents ---------------------------------------------------------------------------------------


def _record(**changes: object) -> bytes:
    fields: dict[str, object] = {
        "seq": 1, "group": 1, "txid": "t", "entity": "layer:x", "from_state": "absent", "to_state": "staging",
        "trigger": "begin", "payload": {"key": b"\0", "n": [1, -1, None, True]}, "time_ns": 1,
    }
    return seal(genesis("fuzz"), **{**fields, **changes})[1][32:]   # type: ignore[arg-type]


def _records() -> Seeds:
    good = _record()
    return [
        good, b"", b"\x90", b"\xc0", _record(payload={}), good + b"\0", good[:-1], b"\xdc\x00\x0a" + good[1:],
        msgpack.packb([1, 1, 1, "", "", "", "", "", {"b": 1, "a": 2}, 0]), msgpack.packb([1] * 10), msgpack.packb([2] * 10),
        msgpack.packb([1, 1, 1, "", "", "", "", "", {"f": 1.5}, 0]), msgpack.packb([1, True, 1, "", "", "", "", "", {}, 0]),
        b"\x9a\xcc\x01" + good[2:], b"\x91" * 2000,
    ]


def _segments() -> Seeds:
    """Frames, and what they hold: the target puts the rest around it."""
    stored = seal(
        genesis("fuzz"), seq=1, group=1, txid="t", entity="e", from_state="a", to_state="b", trigger="c", payload={}, time_ns=0,
    )
    made = b"".join(segment.pack(
        uuid="fuzz", first=1, last=1, prev_link=genesis("fuzz"), last_link=stored[0].link, stored=[stored[1]],
        tables={"t": {"k": layerjournal.encode({"a": 1})}},
    ))
    body = made[8:-32]
    items = zstandard.ZstdDecompressor().decompressobj().decompress(body)
    row = items[items.rindex(b"\0\0\0") :]   # the last item is the row, with its length before it
    empty = zstandard.ZstdCompressor().compress(b"")
    return [body, body[:-1], body + b"x", b"", empty, zstandard.ZstdCompressor().compress(b"\xff\xff\xff\xff" + b"x"),
            zstandard.ZstdCompressor().compress(b"\0\0\0\1\x80"),
            items, items[:-1], items + row, items[: -len(row)], items + b"\0" * 4]


def _documents() -> Seeds:
    digest = "sha256:" + "a" * 64
    layer = {"mediaType": "application/vnd.oci.image.layer.v1.tar+gzip", "digest": digest, "size": 3}
    config = {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": digest, "size": 2}
    manifest = {"schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json", "config": config, "layers": [layer]}
    index = {"schemaVersion": 2, "manifests": [
        {**config, "mediaType": manifest["mediaType"], "platform": {"os": "linux", "architecture": "amd64"}},
    ]}
    made = [
        manifest, index, {**manifest, "manifests": []}, {**manifest, "layers": None}, {**manifest, "layers": [layer] * 3},
        {**manifest, "config": {**config, "size": -1}}, {**manifest, "config": {**config, "size": 1.0}},
        {**manifest, "config": {**config, "digest": "md5:00"}}, {**manifest, "schemaVersion": True},
        {"imageLayoutVersion": "1.0.0"}, {"os": "linux", "architecture": "amd64", "rootfs": {"type": "layers", "diff_ids": [digest]}},
        {"rootfs": {"diff_ids": "x"}}, [], None, 1,
        {**manifest, "subject": config, "artifactType": "application/vnd.cncf.notary.signature"}, {**manifest, "subject": {}},
        {**manifest, "annotations": {"n": 1}}, {**manifest, "annotations": "x"}, {**manifest, "artifactType": ["x"]},
        {**index, "manifests": [{**config, "artifactType": 7}, {**config, "artifactType": "application/vnd.cncf.notary.signature"}]},
    ]
    return [json.dumps(each).encode() for each in made] + [
        b"", b"{", b"\xff", b'{"a":1,"a":2}', b'{"a":NaN}', b"[" * 5000, b'"\\ud800"', b"1" * 5000, b"\xef\xbb\xbf{}", b'{"a":1e999}',
    ]


def _manifests() -> Seeds:
    """The msgpack items of a manifest, not compressed: the target does that too."""
    pack = msgpack.Packer(use_bin_type=True).pack
    start, end = pack(["layerstore-manifest", 1]), pack(["end", 2, 0])
    root = pack([b"", "dir", 0o755, 0, 0, 0, 0, b"", 0, 0, {}, None, 0, 0])
    one = pack([b"f", "file", 0o644, 0, 0, 4, 0, b"", 0, 0, {b"user.a": b"1"}, b"\1" * 32, 0, 0])
    hard = pack([b"h", "hardlink", 0, 0, 0, 0, 0, b"f", 0, 0, {}, None, 0, 0])
    bad = pack([b"../x", "file", 0o644, 0, 0, 4, 0, b"", 0, 0, {}, b"\1" * 32, 0, 0])
    return [
        start + one + root + end, start + one + root, start + end, start + bad + root + end, start + one + end + root, b"",
        start + one + hard + pack(["end", 2, 1]), start + hard + one + pack(["end", 2, 1]), start + one + pack(["gone", b"f"]) + end,
        pack(["layerstore-manifest", 2]), start + pack([1] * 14), start * 2, b"\xc1", b"\x91" * 3000,
    ]


def _splits() -> Seeds:
    """The msgpack items of a tar-split, not compressed: the target does that too."""
    pack = msgpack.Packer(use_bin_type=True).pack
    start = pack(["layerstore-tar-split", 1])
    items = [pack(b"header"), pack([b"f", b"f", 4, None]), pack([b"s", b"s", 4, [[0, 2], [9, 2]]]), pack([b"d/", None, 0, None])]
    good = start + b"".join(items) + pack(["kept", b"f", 0, 4, b"\1" * 32]) + pack(["end", 14, 1])
    bad = [pack([b"f", b"../f", 4, None]), pack([b"f", None, 4, None]), pack([b"f", b"f", 4, [[0, 5]]]), pack(["end", 0]), b"\xc1"]
    return [b"", END, good, good[:-1], start, *(start + each + pack(["end", 4, 0]) for each in bad)]


def _side_files() -> Seeds:
    good = layerjournal.encode({"version": 1, "txid": "t", "layer_id": "a" * 64, "parent": None, "names": []})
    return [good, b"", good[:-1], good + b"\0", b"\x80", b"\x90", layerjournal.encode({"version": 2}), b"\xc1", b"\x81" * 1000]


def _answers() -> Seeds:
    """Headers and bodies of registries, and files with credentials."""
    parts = [(0, 3), (10, 30), (999, 1000)]
    lines = [b"\r\n--THIS\r\nContent-Range: bytes %d-%d/1000\r\n\r\n" % (a, b - 1) + bytes(b - a) for a, b in parts]
    return [
        b"".join(lines) + b"\r\n--THIS--\r\n", b"".join(lines[::-1]), lines[0], lines[0][:-1], b"\r\n--THIS--\r\n", b"x" * 2000,
        b'Basic realm="a", Bearer realm="https://h/t",service=s,scope="x:y:pull,push"', b'a="' + b"\\" * 999, b"," * 999,
        b"bytes 0-9/1000", b"bytes 0-9/*", b'multipart/byteranges; charset=x; boundary="THIS"', b'{"errors":[{"code":"DENIED"}]}',
        b'{"auths":{"host.test":{"auth":"dTpw"}}}', b'{"auths":{"https://host.test/v1/":{"identitytoken":"t"}}}', b'{"auths":[]}',
        b'{"auths":{"host.test":{"auth":"\xff"}}}', b'{"auths":{"https://":{}}}',
    ]


def _podman_layers() -> Seeds:
    """Tar-splits over the tree of the target ``podman_layer``."""
    crc = f'"payload":"{base64.b64encode(crc64(b"data!", 0).to_bytes(8, "big")).decode()}"'
    names = ["f", "./f", "/f", "f-link", "up/secret", "out/secret", "root/etc/hostname", "s-link", "../secret", "fifo", "up", "", "f\\u0000x"]
    lines = [f'{{"type":1,"name":"{name}","size":{36 if "secret" in name else 5},{crc},"position":0}}\n' for name in names]
    return [
        *(line.encode() for line in lines), *(line.replace(crc, '"payload":null').encode() for line in lines[4:9]), *_lines(),
        b'{"type":1,"name_raw":"Li4vc2VjcmV0","size":36,"payload":null}', b'{"type":1,"name":5,"size":5}', b'{"type":1,"size":true}',
        b'{"type":2,"payload":"x"}', b"[1]", b"5", b"{" * 5000, b"[" * 5000, b'{"type":1,"name":"\\ud800","size":5}', b"\x1f\x8b", b"",
    ]


def _tocs() -> Seeds:
    """Tables of contents of a blob of 4096 bytes."""
    digest = "sha256:" + "5" * 64
    head = {"type": "dir", "name": "d/", "mode": 0o755, "modtime": "2023-11-14T22:13:20.5+01:00"}
    one = {"type": "reg", "name": "d/a", "size": 5, "digest": digest, "offset": 100, "endOffset": 120, "xattrs": {"user.a": "MQ=="}}
    first = {"type": "reg", "name": "b", "size": 9, "digest": digest, "offset": 200, "endOffset": 260, "chunkSize": 3, "chunkDigest": digest}
    second = {"type": "chunk", "name": "b", "offset": 220, "chunkOffset": 3, "chunkSize": 6, "chunkDigest": digest}
    zeros = {**second, "chunkType": "zeros"}
    open_one, open_first = ({k: v for k, v in each.items() if k != "endOffset"} for each in (one, first))
    inner = {**open_one, "name": "c", "offset": 200, "innerOffset": 512}
    lists = [
        [], [head, one], [head, one, first, second], [first, zeros], [open_one, open_first, second], [open_one, {**inner, "offset": 100}],
        [first, {**second, "offset": 200}], [first, {**second, "chunkOffset": 0}], [one, {**first, "offset": 110}], [second], [one, second],
        [{**one, "endOffset": 5000}], [{**one, "size": 1 << 62}], [{**one, "size": -1}], [open_one, {**inner, "offset": 4096}],
        [{**first, "chunkSize": 0}, second], [one, one], [{**one, "mode": True}], [{**one, "modtime": "0000-00-00T00:00:00Z"}],
    ]
    texts = [json.dumps({"version": 1, "entries": each, "tarSplitDigest": digest}).encode() for each in lists]
    return [
        *texts, texts[2][:-1], texts[2] + b" x", texts[1].replace(b"1,", b"2,", 1), b'{"version":1,"entries":null}', b"", b"{}", b"[" * 5000,
        b'{"version":1,"entries":[{"type":"dir","name":"\\ud800"}]}', b'{"version":1,"entries":[' + b"[" * 5000, b'{"version":1e5,"entries":[]}',
        b'{"version":1,"version":1,"entries":[]}', b'{"entries":[],"version":' + b"1" * 5000 + b"}", b'{"entries":[],"version":' + b"1" * 3000 + b"}", b'{"x":"\xff"}', b'{"version":1',
    ]


def _lines() -> Seeds:
    """Tar-splits as the Go tools write them."""
    good = (
        b'{"type":2,"payload":"aGVhZGVy","position":0}\n{"type":1,"name":"f","size":5,"payload":"AAAAAAAAAAA=","position":1}\n'
        b'{"type":2,"payload":"","position":2}\n{"type":1,"name_raw":"Y2Fm6Q==","payload":null,"position":3}\n'
    )
    return [
        good, good.replace(b":0}", b":00}"), good[:-1], good + b"\n", good * 2, good.replace(b"6", b"!"), good.replace(b'"f"', b'""'), good.replace(b":5,", b":-5,"),
        good.replace(b":5,", b":5.0,"), good.replace(b"AAAAAAAAAAA=", b"AAAA"), good.replace(b'"type":2', b'"type":3'), b"", b"\n", b"null",
        b'{"type":2,"payload":"aGVhZGVy","position":1}', b'{"type":1,"name":"\\ud800","payload":null,"position":0}', b"[" * 5000,
        b'{"type":2,"payload":"aGVhZGV","position":0}', b'{"type":2,"payload":5,"position":0}', b'{"type":1,"name":"a","name_raw":"YQ==","position":0}',
        b'{"type":2,"payload":"aGVhZGVy","position":' + b"9" * 5000 + b"}", b'{"type":true,"name":"a","position":0}', b'{"type":2,"position":false}',
    ]


_MAKERS: dict[str, Callable[[], Seeds]] = {
    "tar_reader": _tars, "unpack": _tars, "tar_split": _splits, "pax": _paxes, "decompress": _compressed, "journal_record": _records,
    "journal_segment": _segments, "oci_json": _documents, "manifest": _manifests, "side_file": _side_files, "registry_answer": _answers,
    "chunked_toc": _tocs, "chunked_lines": _lines, "podman_layer": _podman_layers,
}
