"""zstd:chunked and eStargz: layers with a table of contents (TOC), by which a part of a blob can be fetched for itself.

What they are, what is refused and why: docs/chunked.md. Pure but for reading and writing what is handed in: nothing is
fetched here, and no file is opened. That a layer is what its diffID promises is not checked here either: whatever a TOC
says, the tar that is made by it is verified as a whole.

    annotations  what a descriptor says         footers    what a blob's end says
    toc          its TOC's entries              golines    its tar-split's lines
    agreement    that both say the same         layout     where in the blob the content of files is
    plan         what of it is fetched          assembly   the tar, made again out of parts
    writing      a tar becomes such a blob      cutting    where a file's data is cut into chunks
    described    what a TOC says of a member    content    a member's data, cut, in frames
"""

from layerstore.chunked.annotations import Announced, Position, Unsuitable, announced, is_chunked

__all__ = ["Announced", "Position", "Unsuitable", "announced", "is_chunked"]
