"""A strict, streaming reader of tar archives: bytes in, entries and their data out. No file is touched here.

Reads what the field writes: ustar, PAX (global headers only as comments), GNU long names, GNU sparse files of every
kind, base-256 numbers, star's prefix. Whatever two readers could understand differently is refused with
``ArchiveError`` and the offset: this library checks a layer by its digest, and a digest says nothing about
which reading was meant.

Memory is bounded by the limits: one chunk of the stream, one extension header, one sparse map.
Sources: POSIX pax (ustar and pax interchange formats), GNU tar manual appendices, Go's archive/tar (the
field's reader: where it ignores something, so do we; see ``header.HEADER_ONLY``).

    reader   entries, one after the other          stream   bytes, and what of them is nobody's content
    header   one block's fields                    names    what a name may be
    pax      extended headers                      sparse   maps of files with holes
"""

from layerstore.formats.tar.header import BLOCK
from layerstore.formats.tar.names import os_text
from layerstore.formats.tar.reader import Entry, TarReader

__all__ = ["BLOCK", "Entry", "TarReader", "os_text"]
