"""Makes tar archives by hand, byte by byte, so that tests can also make wrong ones. For tests only."""

from __future__ import annotations

END = bytes(1024)


def number(value: int, width: int) -> bytes:
    """An octal field, or base-256 where it does not fit (negative values too)."""
    if 0 <= value < 8 ** (width - 1):
        return b"%0*o\0" % (width - 1, value)
    return (value + (1 << 8 * width) if value < 0 else value | 0x80 << 8 * (width - 1)).to_bytes(width, "big")


def header(
    name=b"f", type=b"0", *, mode=0o644, uid=0, gid=0, size=0, mtime=0, link=b"", major=0, minor=0, prefix=b"",
    magic=b"ustar\x0000", tail=None, checksum=None, raw_size=None,
) -> bytes:
    head = b"".join((
        name.ljust(100, b"\0"), number(mode, 8), number(uid, 8), number(gid, 8),
        number(size, 12) if raw_size is None else raw_size, number(mtime, 12),
    ))
    rest = b"".join((type, link.ljust(100, b"\0"), magic, bytes(64), number(major, 8), number(minor, 8)))
    rest += (prefix.ljust(155, b"\0") if tail is None else tail)
    rest = rest.ljust(512 - 156, b"\0")
    assert len(head) == 148 and len(rest) == 356
    total = sum(head) + 8 * 32 + sum(rest) if checksum is None else checksum
    return head + b"%06o\0 " % total + rest


def pad(data: bytes) -> bytes:
    return data + bytes(-len(data) % 512)


def file(name: bytes, data: bytes = b"", **more) -> bytes:
    return header(name, b"0", size=len(data), **more) + pad(data)


def directory(name: bytes, **more) -> bytes:
    return header(name, b"5", **{"mode": 0o755, **more})


def symlink(name: bytes, to: bytes, **more) -> bytes:
    return header(name, b"2", link=to, mode=0o777, **more)


def hardlink(name: bytes, to: bytes, **more) -> bytes:
    return header(name, b"1", link=to, **more)


def record(key: bytes, value: bytes) -> bytes:
    rest = len(key) + len(value) + 3
    length = rest
    while length != rest + len(str(length)):
        length = rest + len(str(length))
    return b"%d %s=%s\n" % (length, key, value)


def pax(*pairs: tuple[bytes, bytes], type: bytes = b"x", data: bytes | None = None) -> bytes:
    data = b"".join(record(k, v) for k, v in pairs) if data is None else data
    return header(b"PaxHeader", type, size=len(data)) + pad(data)


def gnu_long(type: bytes, name: bytes) -> bytes:
    return header(b"././@LongLink", type, size=len(name) + 1, magic=b"ustar  \0") + pad(name + b"\0")


def chunks(data: bytes, size: int = 1 << 20):
    for start in range(0, len(data), size):
        yield data[start:start + size]
