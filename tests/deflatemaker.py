"""A gzip member of one deflate block with whatever code lengths one likes. Source: RFC 1951, 3.2.2 and 3.2.7."""

import struct
import zlib

_ORDER = (16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15)
LENGTHS, LITERALS, DISTANCES = {0: 2, 1: 2, 2: 2, 3: 2}, {ord("a"): 1, 256: 1}, {0: 1}   # symbols and bits: complete sets


def _codes(lengths):
    codes, code = {}, 0
    for bits in range(1, 16):
        for symbol in sorted(symbol for symbol, length in lengths.items() if length == bits):
            codes[symbol] = f"{code & (1 << bits) - 1:0{bits}b}"
            code += 1
        code <<= 1
    return codes


def member(data, *, lengths=LENGTHS, literals=LITERALS, distances=DISTANCES):
    """*data*, which has only the symbols of *literals*; none of *distances* is used."""
    told = [literals.get(each, 0) for each in range(257)] + [distances.get(each, 0) for each in range(max(distances) + 1)]
    fields = [(1, 1), (2, 2), (0, 5), (max(distances), 5), (len(_ORDER) - 4, 4), *((lengths.get(each, 0), 3) for each in _ORDER)]
    bits = "".join(f"{value:0{width}b}"[::-1] for value, width in fields)
    bits += "".join(map(_codes(lengths).__getitem__, told))
    bits += "".join(map(_codes(literals).__getitem__, [*data, 256]))
    block = int(bits[::-1], 2).to_bytes((len(bits) + 7) // 8, "little")
    return b"\x1f\x8b\x08" + bytes(6) + b"\xff" + block + struct.pack("<II", zlib.crc32(data), len(data))
