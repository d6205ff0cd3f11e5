"""Parts of tars, made byte by byte, so that they can also be wrong: headers with right sums, whatever else is in them."""

from __future__ import annotations

__all__ = ["END", "file", "header", "padded", "pax"]


def header(
    name: bytes, kind: bytes = b"0", *, size: int = 0, link: bytes = b"", mode: int = 0o644, magic: bytes = b"ustar\00000",
    size_field: bytes | None = None, prefix: bytes = b"", extra: bytes = b"",
) -> bytes:
    """A ustar header with a right checksum, whatever is in its fields. *extra* goes at byte 345."""
    field = size_field if size_field is not None else b"%011o\0" % size
    block = bytearray(512)
    for at, value in (
        (0, name[:100]), (100, b"%07o\0" % mode), (108, b"%07o\0" % 0), (116, b"%07o\0" % 0), (124, field[:12]),
        (136, b"%011o\0" % 1_700_000_000), (148, b"        "), (156, kind), (157, link[:100]), (257, magic),
        (329, b"%07o\0" % 0), (337, b"%07o\0" % 0), (345, prefix or extra),
    ):
        block[at : at + len(value)] = value
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 512)


def pax(records: dict[str, bytes], kind: bytes = b"x") -> bytes:
    """A PAX header of *records*, with right lengths."""
    body = b""
    for key, value in records.items():
        line = b" " + key.encode() + b"=" + value + b"\n"
        length = len(line)
        while len(str(length)) + len(line) != length:
            length = len(str(length)) + len(line)
        body += str(length).encode() + line
    return header(b"pax", kind, size=len(body)) + padded(body)


def file(name: bytes, data: bytes = b"data", **fields: object) -> bytes:
    return header(name, size=len(data), **fields) + padded(data)   # type: ignore[arg-type]


END = bytes(1024)
