"""Layers that the library made which defined eStargz (tests/data/stargz): read in parts, and made by ours as by it."""

import hashlib
import io
import json
import struct
import tarfile
import zlib
from dataclasses import replace
from pathlib import Path

import pytest
import zstandard

import chunkedmaker
from chunkedmaker import NERDCTL, STARGZ
from layerstore import TarDiffer
from layerstore.chunked import is_chunked
from layerstore.errors import InputError
from layerstore.model import Descriptor
from test_chunked import Counted, Finds, Tree, partial, same

DATA = Path(__file__).parent / "data" / "stargz"
FORMS = {"estargz": STARGZ, "zstdchunked": NERDCTL}


def content(name, size):
    return hashlib.shake_256(name.encode()).digest(size)


def fixture(name):
    told, blob = json.loads((DATA / "told.json").read_text())[name], (DATA / f"{name}.blob").read_bytes()
    media_type = "application/vnd.oci.image.layer.v1.tar+" + ("gzip" if name.startswith("estargz") else "zstd")
    expect = Descriptor(media_type, "sha256:" + hashlib.sha256(blob).hexdigest(), len(blob), told["annotations"])
    return chunkedmaker.Made(blob, expect, told["diff_id"], b"")


@pytest.fixture
def tree(tmp_path):
    return Tree(tmp_path)


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("form", FORMS)
def test_what_the_library_made_gives_the_tree_of_the_full_pull(tree, form, version):
    made = fixture(f"{form}-{version}")
    assert is_chunked(made.descriptor)
    differ, blob = partial(made)
    same(tree.apply(differ), tree.apply(TarDiffer(Counted(made.blob), expect=made.descriptor, diff_id=made.diff_id)))
    assert differ.whole is None and blob.asked


def test_the_footer_that_the_library_wrote_is_read_where_annotations_do_not_say_the_place(tree):
    made = fixture("zstdchunked-2")
    notes = {key: each for key, each in made.descriptor.annotations.items() if not key.endswith("position")}
    made.descriptor = replace(made.descriptor, annotations=notes)
    differ, _blob = partial(made)
    tree.apply(differ)
    assert differ.whole is None


@pytest.mark.parametrize(("form", "share"), [("estargz", 0.69), ("zstdchunked", 0.72)])
def test_of_a_second_blob_of_the_library_the_chunks_that_are_here_are_not_fetched(tree, form, share):
    """Five of six whole chunks of a file are; of smaller files it says that they share a unit with what follows them."""
    made, here = fixture(f"{form}-2"), [content("big", 24_000)[at:at + 4096] for at in range(0, 20_480, 4096)]
    differ, blob = partial(made, Finds(*here))
    tree.apply(differ)
    assert differ.whole is None and blob.fetched <= share * len(made.blob)


@pytest.mark.parametrize("form", FORMS)
def test_a_blob_of_the_library_is_found_to_lie_as_one_of_ours_is(tree, form):
    made = fixture(f"{form}-1")
    lie = bytearray(made.blob)
    lie[5000] ^= 1   # in the second chunk of "d/big"
    made.blob = bytes(lie)
    with pytest.raises(InputError):
        tree.apply(partial(made)[0])


# -- what our tests make, beside it ------------------------------------------------------------------------------------


def units(form, blob):
    """(where it begins, what is in it) of each gzip member or zstd frame that holds something of the tar."""
    at, found = 0, []
    while at < len(blob) and blob[at:at + 4] != b"\x50\x2a\x4d\x18":
        one = zlib.decompressobj(31) if form == STARGZ else zstandard.ZstdDecompressor().decompressobj()
        found.append((at, one.decompress(blob[at:])))
        at = len(blob) - len(one.unused_data)
    return found


def members_of(tar):
    """As ``chunkedmaker.make`` takes them, with the very headers."""
    with tarfile.open(fileobj=io.BytesIO(tar)) as archive:
        for info in archive:
            if info.name != "stargz.index.json":
                header = tar[info.offset:info.offset_data]
                info.name += "/" if info.isdir() else ""
                yield header, tar[info.offset_data:info.offset_data + info.size] if info.isreg() else b"", info


def entries_of(toc):
    """Those of a table of contents, but for where units lie, which depends on how well they are compressed."""
    return [{key: value for key, value in entry.items() if key != "offset"} for entry in toc["entries"]]


@pytest.mark.parametrize("form", FORMS)
def test_what_our_maker_makes_of_the_same_tar_is_cut_and_described_as_the_library_does(form):
    kind, theirs = FORMS[form], fixture(f"{form}-1").blob
    their_units = units(kind, theirs)
    tar = b"".join(data for _at, data in their_units)
    # it has one processor compress what is before the link, another the rest: so a unit begins at its header, too;
    # and its zstd:chunked has a tar without an end
    end = bytes(1024) if kind == STARGZ else b""
    ours = chunkedmaker.make(kind, members_of(tar), chunk=4096, alone=("d/link",), end=end)
    assert hashlib.sha256(tar).hexdigest() == json.loads((DATA / "told.json").read_text())[f"{form}-1"]["diff_id"][7:]
    our_units = units(kind, ours.blob)
    if kind == STARGZ:
        toc = json.loads(their_units[-2][1][512:].split(b"\0")[0])
        assert [each for _at, each in our_units[:-2]] == [each for _at, each in their_units[:-2]]
        assert our_units[-1][1] == their_units[-1][1] == b""
        ours_at, theirs_at = b"%016x" % our_units[-2][0], b"%016x" % their_units[-2][0]
        assert ours.blob[-51:] == theirs[-51:].replace(theirs_at, ours_at)
    else:
        at, length = (int(each) for each in struct.unpack("<2Q", theirs[-40:-24]))
        toc = json.loads(zstandard.ZstdDecompressor().decompressobj().decompress(theirs[at:at + length]))
        assert [each for _at, each in our_units] == [each for _at, each in their_units]
        assert (ours.blob[-48:-40], ours.blob[-16:]) == (theirs[-48:-40], theirs[-16:])
    assert entries_of(ours.toc) == entries_of(toc)
    assert [each["offset"] for each in toc["entries"] if "offset" in each] == [
        at for at, data in their_units[1:] if data and not data.startswith((b"stargz.index.json", b"d/link"))]
