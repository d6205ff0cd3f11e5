"""What a zstd:chunked blob consists of, by its table of contents, read by nothing of ours: an oracle for partial pulls."""

import itertools
import json

from zstandard import ZstdDecompressor

_SKIPPABLE = 8   # bytes of the header of the frame that the table is in
RANGE = 200      # bytes that another range costs at most: its place in the request, and the headers of its part


def _said(annotations):
    return {key.rpartition(".")[2]: value for key, value in annotations.items()}


def _pieces(annotations, blob):
    start, length, size = map(int, _said(annotations)["manifest-position"].split(":")[:3])
    toc = json.loads(ZstdDecompressor().decompress(blob[start:start + length], max_output_size=size))
    return [e for e in toc["entries"] if e["type"] in ("reg", "chunk") and "offset" in e and e.get("size", e.get("chunkSize"))]


def parts_of(annotations, blob):
    """(start, length, digest) of each piece of content, in order; without a tar-split also of what lies between, with None.

    Digests have 32 bytes. Zeros are left out: nobody fetches them.
    """
    said = _said(annotations)
    start = int(said["manifest-position"].split(":")[0])
    parts, end, file_end = [], 0, 0
    pieces = _pieces(annotations, blob)
    for each, follows in zip(pieces, [*pieces[1:], {}], strict=True):
        parts.append((end, each["offset"] - end, None))
        file_end = each.get("endOffset") or file_end   # a file's first piece has it
        end = follows["offset"] if follows.get("type") == "chunk" else file_end
        if each.get("chunkType") != "zeros":
            parts.append((each["offset"], end - each["offset"], bytes.fromhex((each.get("chunkDigest") or each["digest"])[7:])))
    parts.append((end, start - _SKIPPABLE - end, None))
    return [each for each in parts if each[1] and (each[2] is not None or "tarsplit-position" not in said)]


def digests(annotations, blob):
    """The digests of all content."""
    return {digest for _, _, digest in parts_of(annotations, blob)} - {None}


def least(annotations, blob, here):
    """The least bytes of the blob that who has content with the digests *here* needs: what is not here, TOC and tar-split."""
    said = _said(annotations)
    beside = sum(int(said[each].split(":")[1]) for each in ("manifest-position", "tarsplit-position") if each in said)
    return beside + sum({(digest or start): length for start, length, digest in _missing(annotations, blob, here)}.values())


def least_in_ranges(annotations, blob, here):
    """The same as it goes over the wire by requests for many ranges: a gap between two costs itself, or another range."""
    missing = _missing(annotations, blob, here)
    gaps = (after[0] - before[0] - before[1] for before, after in itertools.pairwise(missing))
    return least(annotations, blob, here) + sum(min(gap, RANGE) for gap in gaps)


def _missing(annotations, blob, here):
    return [each for each in parts_of(annotations, blob) if each[2] not in here]
