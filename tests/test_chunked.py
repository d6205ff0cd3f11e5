"""Pulling layers by their table of contents: what is fetched, and that the tree is that of a full pull."""

import base64
import hashlib
import io
import json
import os
import random
import tarfile
import tracemalloc
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

import chunkedmaker
import tocs
from chunkedmaker import CURRENT, FORMS, NERDCTL, OF_2022, OLD_STARGZ, STARGZ, make, member
from storekit import add
from layerstore import TarDiffer
from layerstore.chunked import golines, is_chunked
from layerstore.chunked.toc import Toc
from layerstore.system.descriptors import Descriptor
from layerstore.dedup import LayerFinder
from layerstore.differs import ChunkedDiffer
from layerstore.errors import DamagedError, DigestMismatchError, RangesUnsupportedError, SizeMismatchError, TocError
from layerstore.model import Descriptor as LayerDescriptor
from layerstore.model import DiffTarget, Limits
from layerstore.sources.blobs import LocalBlob

DATA = Path(__file__).parent / "data" / "zstd-chunked"


class Counted(LocalBlob):
    """A blob that remembers what was read of it."""

    def __init__(self, data, *, ranges=True):
        super().__init__(lambda: io.BytesIO(data), len(data), "the blob")
        self.asked, self.opened, self.has_ranges = [], 0, ranges

    def open(self, offset=0):
        self.opened += 1
        return super().open(offset)

    def ranges(self, wanted):
        if not self.has_ranges:
            raise RangesUnsupportedError("only the whole")
        self.asked.append(list(wanted))
        return super().ranges(wanted)

    @property
    def fetched(self):
        return sum(length for call in self.asked for _, length in call)


class Here:
    """A place with content; *rotten* after so many reads."""

    def __init__(self, data, rotten=False):
        self.data, self.size, self.rotten = data, len(data), rotten

    def read(self):
        if self.rotten:
            raise DamagedError("rotten")
        yield self.data

    def clone(self):
        return None


class Finds:
    """A finder over contents; ``open`` while its places are good."""

    def __init__(self, *contents, rotten=False):
        self.places = {hashlib.sha256(data).digest(): Here(data, rotten) for data in contents}
        self.open, self.asked, self.at = False, set(), {}

    @contextmanager
    def find(self, wanted, at=None):
        self.asked, self.at = set(wanted), at
        self.open = True
        yield {digest: place for digest, place in self.places.items() if digest in wanted}
        self.open = False


class Tree:
    """Staging trees without a store."""

    def __init__(self, path):
        self.path, self.count, self.fetched, self.spared = path, 0, [], []

    def apply(self, differ, **more):
        self.count += 1
        at = self.path / str(self.count)
        (at / "diff").mkdir(parents=True)
        fds = os.open(at, os.O_RDONLY), os.open(at / "diff", os.O_RDONLY)
        try:
            return differ.apply_diff(DiffTarget(*fds, progress=self.fetched.append, spared=self.spared.append, **more))
        finally:
            for fd in fds:
                os.close(fd)


@pytest.fixture
def tree(tmp_path):
    return Tree(tmp_path)


def partial(made, finder=None, **more):
    blob = more.pop("blob", None) or Counted(made.blob)
    return ChunkedDiffer(blob, expect=made.descriptor, diff_id=made.diff_id, finder=finder, **more), blob


def same(one, other):
    assert (one.diff_id, one.manifest_digest, one.tar_split_digest) == (other.diff_id, other.manifest_digest, other.tar_split_digest)


def fixture(name):
    """One of the images that skopeo made."""
    def blob(digest):
        return (DATA / name / "blobs" / "sha256" / digest.removeprefix("sha256:")).read_bytes()

    index = json.loads((DATA / name / "index.json").read_bytes())
    manifest = json.loads(blob(index["manifests"][0]["digest"]))
    (layer,) = manifest["layers"]
    expect = LayerDescriptor(layer["mediaType"], layer["digest"], layer["size"], layer["annotations"])
    diff_id = json.loads(blob(manifest["config"]["digest"]))["rootfs"]["diff_ids"][0]
    return chunkedmaker.Made(blob(layer["digest"]), expect, diff_id, b"")


def contents(made):
    """All that a layer that is here has: its files and its chunks, out of the blob itself."""
    from layerstore.chunked.layout import File
    from layerstore.chunked.opening import open_chunked
    from layerstore.formats.compression.units import Units

    opened = open_chunked(made.descriptor, lambda asked: [made.blob[s : s + n] for s, n in asked], Limits())
    units = Units(opened.codec)
    for item in opened.items:
        if isinstance(item, File):
            parts = [units.reader([made.blob[c.start : c.start + c.length]])(1 << 30) for c in item.chunks]
            yield b"".join(parts)
            yield from parts


# -- what real tools made


@pytest.mark.parametrize("version", ["v1", "v2"])
@pytest.mark.parametrize("form", ["current", "2022"])
def test_what_skopeo_made_gives_the_tree_of_the_full_pull(tree, version, form):
    made, full = fixture(f"{version}-{form}"), fixture(f"{version}-current")
    differ, blob = partial(made)
    output = tree.apply(differ)
    same(output, tree.apply(TarDiffer(full.blob, expect=full.descriptor, diff_id=full.diff_id)))
    assert (differ.whole, blob.opened, output.blob_digest, output.compression) == (None, len(blob.asked), None, "zstd")
    assert output.toc_digest in made.descriptor.annotations.values()


def test_padding_that_skopeo_lost_in_2022_is_put_back_and_said(tree):
    told = []
    made = fixture("v1-2022")
    tree.apply(partial(made, tell=told.append)[0])
    assert any("1024 bytes of padding" in line for line in told)


@pytest.mark.parametrize(("form", "share"), [("current", 0.103), ("2022", 0.135)])
def test_of_the_second_image_only_what_differs_is_fetched(tree, form, share):
    one, two = fixture(f"v1-{form}"), fixture(f"v2-{form}")
    here = Finds(*contents(one))
    differ, blob = partial(two, here)
    tree.apply(differ)
    least = least_of(two, here)
    assert least <= blob.fetched <= 1.05 * least
    assert blob.fetched <= share * len(two.blob)
    assert sum(tree.fetched) == blob.fetched
    assert 0.8 * len(two.blob) < sum(tree.spared) < len(two.blob) - least + 0.05 * least


def least_of(made, here):
    return tocs.least(made.descriptor.annotations, made.blob, here.places)


def test_of_a_file_that_came_as_a_plain_tar_and_changed_a_little_the_change_is_fetched(store):
    """Its chunks are in no index. As many layers as are probed are likelier, but have not the path."""
    data = random.Random(1).randbytes(700_000)
    add(store, {"a.pyc": b"1111" + data})
    for n in range(8):
        add(store, {"base": b"%d" % n})
    made = make(CURRENT, [member("a.pyc", b"2222" + data)], chunk=65_536)
    differ, blob = partial(made, LayerFinder(store._handle))
    with store.stage(differ) as staged:
        assert staged.output.diff_id == made.diff_id
    assert len(made.blob) > 700_000
    assert blob.fetched <= 65_536 + 20_000


# -- what the maker makes


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("chunk", [100, 3000, 1 << 20])
def test_every_form_gives_the_tree_of_the_full_pull(tree, form, chunk):
    made = make(form, chunk=chunk)
    differ, blob = partial(made)
    output = tree.apply(differ)
    assert (differ.whole, blob.opened) == (None, len(blob.asked))
    assert sum(tree.fetched) == blob.fetched
    same(output, tree.apply(TarDiffer(made.blob, expect=made.descriptor, diff_id=made.diff_id)))
    assert output.compression == ("gzip" if form in (STARGZ, OLD_STARGZ) else "zstd")


@pytest.mark.parametrize("form", [CURRENT, OF_2022])
def test_a_layer_whose_files_are_all_here_costs_its_metadata(tree, form):
    made = make(form)
    here = Finds(*contents(made))
    differ, blob = partial(made, here)
    same(tree.apply(differ), tree.apply(TarDiffer(made.tar, diff_id=made.diff_id)))
    assert blob.fetched <= 1.05 * least_of(made, here) + 4096
    assert not here.open


@pytest.mark.parametrize("form", [STARGZ, NERDCTL])
def test_chunks_before_the_last_are_taken_where_units_go_on_after_a_file(tree, form):
    big = random.Random(1).randbytes(100_000)
    made = make(form, chunkedmaker.tree(big), chunk=10_000)
    here = Finds(*(big[at : at + 10_000] for at in range(0, 100_000, 10_000)))
    differ, blob = partial(made, here)
    same(tree.apply(differ), tree.apply(TarDiffer(made.tar, diff_id=made.diff_id)))
    assert len(made.blob) - 90_500 <= blob.fetched <= len(made.blob) - 85_000


def test_payloads_that_share_a_unit_are_found_in_it(tree):
    """``innerOffset``: as eStargz has it with a least size of chunks."""
    parts = [member("a", b"first"), member("b", b"second")]

    def shared(toc):
        one, two = toc["entries"]
        two["offset"], two["innerOffset"] = one["offset"], 512 + 512
        return toc

    made = make(STARGZ, parts, toc=shared, data=None)
    whole = parts[0][1] + bytes(507) + parts[1][0] + parts[1][1] + bytes(506)
    made = _one_unit(made, parts, whole, shared)
    same(tree.apply(partial(made)[0]), tree.apply(TarDiffer(made.tar, diff_id=made.diff_id)))


def _one_unit(_made, parts, whole, shared):
    class OneUnit(chunkedmaker._Maker):
        def unit(self, fresh):
            if not fresh or not self.blob:
                super().unit(fresh)

    maker = OneUnit(STARGZ, 3000, lambda _name, _number, part: part)
    for each in parts:
        maker.add(*each)
    assert maker.pending == whole
    return maker.finish(bytes(1024), shared, None, lambda notes: notes)


def test_a_footer_says_where_the_toc_is_when_annotations_do_not(tree):
    for form in (CURRENT, OF_2022):
        made = make(form, annotations=lambda notes: {k: v for k, v in notes.items() if k.endswith("checksum")})
        differ, _ = partial(made)
        tree.apply(differ)
        assert differ.whole is None


@pytest.mark.parametrize("form", ["current", "2022"])
def test_the_footer_that_skopeo_wrote_is_read(tree, form):
    made = fixture(f"v2-{form}")
    notes = {k: v for k, v in made.descriptor.annotations.items() if k.endswith("checksum")}
    made.descriptor = replace(made.descriptor, annotations=notes)
    differ, _ = partial(made)
    tree.apply(differ)
    assert differ.whole is None


def test_content_that_is_damaged_here_is_fetched_instead_and_said(tree):
    made, told = make(CURRENT), []
    differ, _ = partial(made, Finds(*contents(made), rotten=True), tell=told.append)
    output = tree.apply(differ)
    assert any("damaged" in line for line in told)
    assert any(n < 0 for n in tree.spared)
    assert sum(tree.spared) == 0         # all of it was damaged
    same(output, tree.apply(TarDiffer(made.tar, diff_id=made.diff_id)))


def test_content_of_another_size_than_the_toc_says_is_not_taken(tree):
    made = make(CURRENT)
    here = Finds(*contents(made))
    for place in here.places.values():
        place.size += 1
    differ, blob = partial(made, here)
    tree.apply(differ)
    assert blob.fetched > 0.9 * len(made.blob) - 200


def test_names_that_are_not_utf8_agree_as_go_writes_them(tree):
    odd = member("caf\udce9", b"latin")
    made = make(CURRENT, [odd], toc=lambda toc: _renamed(toc, "caf\ufffd"),
                lines=lambda lines: [{**{k: v for k, v in line.items() if k != "name"}, "name_raw": "Y2Fm6Q=="}
                                     if line["type"] == 1 else line for line in lines])
    differ, _ = partial(made)
    tree.apply(differ)
    assert differ.whole is None


@pytest.mark.parametrize("cut", [0, 10, 30])
def test_attributes_in_libarchives_way_need_not_be_in_the_toc_wherever_lines_end(tree, cut):
    def told(toc):
        del toc["entries"][0]["xattrs"][key]
        return toc

    def in_two(lines):
        raw = base64.b64decode(lines[0]["payload"])
        at = raw.index(key.encode()) + cut
        parts = [{"type": 2, "payload": base64.b64encode(part).decode()} for part in (raw[:at], raw[at:])]
        return [{**line, "position": number} for number, line in enumerate([*parts, *lines[1:]])]

    key = "LIBARCHIVE.xattr.user.b"
    info = member("a", b"data")[2]
    info.pax_headers = {"SCHILY.xattr.user.a": "x", key: "eA=="}
    made = make(CURRENT, [(info.tobuf(tarfile.PAX_FORMAT), b"data", info), member("b")], toc=told, lines=in_two)
    differ, _ = partial(made)
    tree.apply(differ)
    assert differ.whole is None


def _renamed(toc, name):
    toc["entries"][0]["name"] = name
    return toc


class Cloned(Here):
    """A place of which other files can be made; ``made`` are their inodes."""

    def __init__(self, data, beside):
        super().__init__(data)
        self.beside, self.made = beside, []

    def clone(self):
        file = Descriptor(self.beside, os.O_TMPFILE | os.O_RDWR)
        os.write(file.fd, self.data)
        self.made.append(os.fstat(file.fd).st_ino)
        return file


@pytest.mark.parametrize("form", [CURRENT, OF_2022])
def test_files_made_of_what_is_here_are_linked_in(tree, tmp_path, form):
    made = make(form)
    here = Finds()
    here.places = {digest: Cloned(place.data, tmp_path) for digest, place in Finds(*contents(made)).places.items()}
    output = tree.apply(partial(made, here)[0])
    inodes = {each.stat().st_ino for each in (tmp_path / "1" / "diff" / "d").iterdir()}
    cloned = [inode for place in here.places.values() for inode in place.made]
    assert len(cloned) >= 5
    assert inodes.issuperset(cloned)
    same(output, tree.apply(TarDiffer(made.tar, diff_id=made.diff_id)))


@pytest.mark.parametrize("form", [CURRENT, OF_2022])
def test_a_file_that_is_found_damaged_when_it_is_to_be_shared_is_fetched(tree, form):
    made, told = make(form), []
    here = Finds(*contents(made), rotten=True)
    for place in here.places.values():
        place.clone = lambda place=place: next(place.read())
    output = tree.apply(partial(made, here, tell=told.append)[0])
    assert told
    same(output, tree.apply(TarDiffer(made.tar, diff_id=made.diff_id)))


class Asked(Cloned):
    """A place that counts how often it is read itself."""

    def __init__(self, data, beside, *, clonable=False, rotten=False):
        super().__init__(data, beside)
        self.clonable, self.rotten, self.reads = clonable, rotten, 0

    def read(self):
        self.reads += 1
        yield from super().read()

    def clone(self):
        if self.clonable and self.rotten:
            raise DamagedError("rotten")
        return super().clone() if self.clonable else None


class FindsAhead(Finds):
    """One whose places are read ahead, but every third of them, and those that are rotten."""

    @contextmanager
    def ahead(self, places):
        self.wanted = places
        self.answers = [None if each.rotten or n % 3 == 0 else each.data for n, each in enumerate(places)]
        left = iter(self.answers)
        yield SimpleNamespace(take=lambda: next(left))
        assert list(left) == []          # each was taken, once


@pytest.mark.parametrize("form", [CURRENT, OF_2022])
def test_what_is_read_ahead_is_taken_in_order_past_what_is_shared_or_rotten_and_only_the_rest_is_read(tree, tmp_path, form):
    files = [random.Random(n).randbytes(1000 + n) for n in range(24)]
    big = random.Random(99).randbytes(12_000)
    made = make(form, [*(member(f"f{n:02}", data) for n, data in enumerate(files)), member("in-chunks", big)], chunk=3000)
    here = FindsAhead()
    for n, data in enumerate([*files, big[:3000], big[3000:6000], big[9000:]]):
        place = Asked(data, tmp_path, clonable=n // 2 % 2 and n < 24, rotten=n % 7 > 4)
        here.places[hashlib.sha256(data).digest()] = place
    output = tree.apply(partial(made, here)[0])
    assert [each.data for each in here.wanted] == [place.data for place in here.places.values()]
    assert [each.reads for each in here.wanted] == [
        int(answer is None and not each.clonable) for each, answer in zip(here.wanted, here.answers, strict=True)
    ]
    assert [bool(each.made) for each in here.wanted] == [bool(each.clonable) and not each.rotten for each in here.wanted]
    same(output, tree.apply(TarDiffer(made.tar, diff_id=made.diff_id)))


def test_the_chunks_of_files_are_told_to_later_pulls(tree):
    class Told:
        def __init__(self):
            self.chunks = []

        def add_file(self, *_what):
            pass

        def add_chunk(self, path, offset, length, digest):
            self.chunks.append((path, offset, length, digest))

    made, told = make(CURRENT, chunk=3000), Told()
    tree.apply(partial(made)[0], digests=told)
    big = bytes(range(256)) * 40
    assert [each for each in told.chunks if each[0] == b"d/big"] == [
        (b"d/big", at, len(big[at : at + 3000]), hashlib.sha256(big[at : at + 3000]).digest()) for at in range(0, len(big), 3000)
    ]
    assert {each[1] for each in told.chunks if each[0] == b"d/holes"} == {0, 5005}


def test_where_chunks_lie_is_said_to_who_looks_for_them(tree):
    made, here = make(CURRENT, chunk=3000), Finds()
    tree.apply(partial(made, here)[0])
    big = bytes(range(256)) * 40
    assert here.at[hashlib.sha256(big[3000:6000]).digest()] == (b"d/big", 3000, 3000)


def test_chunks_of_zeros_take_no_blocks(tree):
    data = b"begin" + bytes(8 << 20) + b"end"
    made = chunkedmaker.make(chunkedmaker.CURRENT, [chunkedmaker.member("holes", data)], chunk=1 << 20)
    assert any(entry.get("chunkType") == "zeros" for entry in made.toc["entries"])
    differ, _ = partial(made)
    tree.apply(differ)
    assert differ.whole is None
    at = tree.path / "1" / "diff" / "holes"
    assert at.read_bytes() == data
    assert os.stat(at).st_blocks * 512 <= 1 << 18


# -- when the whole is read instead


def test_an_ordinary_layer_is_read_as_a_whole_and_said(tree):
    made, told = make(CURRENT, annotations=lambda _notes: {}), []
    differ, blob = partial(made, tell=told.append)
    output = tree.apply(differ)
    assert blob.asked == []
    assert "no table of contents" in differ.whole
    assert told == [f"the blob is read as a whole: {differ.whole}"]
    assert (output.blob_digest, output.toc_digest) == (made.descriptor.digest, None)


@pytest.mark.parametrize("form", [CURRENT, STARGZ])
def test_a_source_without_ranges_is_read_as_a_whole(tree, form):
    made = make(form)
    differ, _ = partial(made, blob=Counted(made.blob, ranges=False))
    assert tree.apply(differ).blob_digest == made.descriptor.digest
    assert differ.whole == "only the whole"


def test_a_source_that_has_ranges_no_longer_is_read_as_a_whole(tree):
    """The metadata came, and then the server will not: nothing was unpacked yet."""
    made = make(CURRENT)
    blob = Counted(made.blob)

    def once(wanted, ranges=blob.ranges):
        blob.has_ranges = not blob.asked
        return ranges(wanted)

    blob.ranges = once
    differ, _ = partial(made, blob=blob)
    assert tree.apply(differ).blob_digest == made.descriptor.digest


@pytest.mark.parametrize(("what", "edit"), [
    ("version", lambda toc: {**toc, "version": 2}),
    ("unknown type", lambda toc: {**toc, "entries": [{**toc["entries"][1], "chunkType": "squares"}]}),
])
def test_what_a_newer_toc_may_say_is_no_lie(tree, what, edit):
    made = make(CURRENT, toc=edit)
    differ, _ = partial(made)
    tree.apply(differ)
    assert what in differ.whole


@pytest.mark.parametrize(("room", "readings"), [(32 << 20, 1), (4096, 2)])
def test_a_tar_split_is_decoded_once_if_its_lines_may_be_kept(tree, monkeypatch, room, readings):
    from layerstore.chunked import opening

    made, real, read = make(CURRENT), opening.read_lines, []
    monkeypatch.setattr(opening, "_KEPT", room)
    monkeypatch.setattr(opening, "read_lines", lambda pieces: (read.append(1), real(pieces))[1])
    same(tree.apply(partial(made)[0]), tree.apply(TarDiffer(made.tar, diff_id=made.diff_id)))
    assert len(read) == readings


def test_metadata_is_held_once_as_it_was_sent():
    from layerstore.differs.chunked import _Reader

    mib = 1 << 20
    reader = _Reader(Counted(bytes(24 * mib)), lambda _n: None)
    tracemalloc.start()
    try:
        assert [len(each) for each in reader.read([(0, 12 * mib), (12 * mib + 8, 8 * mib)])] == [12 * mib, 8 * mib]
        assert tracemalloc.get_traced_memory()[1] < 30 * mib
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("form", FORMS)
def test_a_toc_that_is_too_large_is_not_read(tree, form):
    made = make(form)
    differ, blob = partial(made)
    tree.apply(differ, limits=Limits(max_toc=100))
    assert "max_toc" in differ.whole
    assert blob.fetched <= 72


@pytest.mark.parametrize("records, data", [
    ({"major": "0", "minor": "1", "size": "100", "numblocks": "1", "map": "0,4"}, b"data"),
    ({"major": "1", "minor": "0", "realsize": "100"}, b"1\n0\n4\n".ljust(512, b"\0") + b"data"),
], ids=["0.1", "1.0"])
def test_sparse_files_are_not_taken_by_a_toc(tree, records, data):
    info = tarfile.TarInfo("sparse")
    info.size = len(data)
    info.pax_headers = {f"GNU.sparse.{key}": value for key, value in {**records, "name": "sparse"}.items()}
    made = make(CURRENT, [member("before", b"x"), (info.tobuf(tarfile.PAX_FORMAT), data, info), member("after", b"x")])
    differ, _ = partial(made)
    tree.apply(differ)
    assert "sparse" in differ.whole


def test_a_blob_of_another_size_is_not_read(tree):
    made = make(CURRENT)
    differ, blob = partial(made, blob=Counted(made.blob + b"x"))
    with pytest.raises(SizeMismatchError):
        tree.apply(differ)
    assert not blob.asked


def test_a_tar_that_is_not_the_promised_one_is_refused(tree):
    made = make(CURRENT)
    made.diff_id = chunkedmaker.sha(b"another")
    with pytest.raises(DigestMismatchError, match="another tar"):
        tree.apply(partial(made)[0])


def test_whether_a_layer_is_chunked_is_told_by_its_descriptor():
    assert [is_chunked(make(form).descriptor) for form in FORMS] == [True] * len(FORMS)
    assert not is_chunked(LayerDescriptor("application/vnd.oci.image.layer.v1.tar+zstd", chunkedmaker.sha(b""), 0))


# -- reading many entries at once


def test_a_name_that_looks_like_the_space_between_two_entries_is_a_name():
    names = ["plain", 'quote"},{', "a},\n\t\t{b", "\\", "a},{b"]
    for indent in (None, "\t"):
        toc = {"version": 1, "entries": [{"type": "reg", "name": name} for name in names * 3]}
        text = json.dumps(toc, indent=indent, separators=(",", ": " if indent else ":")).encode()
        for size in (1, 7, 1 << 20):
            pieces = [text[at : at + size] for at in range(0, len(text), size)]
            assert [each.name for each in Toc(pieces, most=99)] == names * 3


def test_what_cannot_be_read_at_once_is_tried_once(monkeypatch):
    """Else every entry of a hostile table of contents would cost the parsing of many."""
    tried = []
    honest = json.JSONDecoder.decode
    monkeypatch.setattr(json.JSONDecoder, "decode", lambda self, text: tried.append(text) or honest(self, text))
    entries = ",".join('{"type":"reg","name":"%d},{"}' % n for n in range(500))
    assert len(list(Toc([b'{"version":1,"entries":[%s]}' % entries.encode()], most=999))) == 500
    assert len(tried) == 1


@pytest.mark.parametrize("key", ["mode", "size", "uid", "gid", "devMajor", "devMinor", "offset", "endOffset", "innerOffset",
                                 "chunkOffset", "chunkSize"])
def test_a_field_that_is_no_number_is_refused_by_its_name(key):
    for value in (b"-1", b"true", b"false", b"null", b'"1"', b"%d" % (1 << 63), b"[]", b"{}"):
        with pytest.raises(TocError, match=f"^{key} of 'a'"):
            list(Toc([b'{"version":1,"entries":[{"type":"reg","name":"a","%s":%s}]}' % (key.encode(), value)], most=9))


def test_a_key_that_comes_twice_is_refused_among_many_entries():
    entries = ",".join(['{"type":"dir","name":"a"}'] * 50 + ['{"type":"dir","name":"a","name":"b"}'] + ['{"type":"dir","name":"c"}'] * 9)
    with pytest.raises(TocError, match="twice"):
        list(Toc([b'{"version":1,"entries":[%s]}' % entries.encode()], most=999))


@pytest.mark.parametrize("line", [
    b'{"type":2,"payload":"YQ==","position":1}', b'{"type":2,"payload":"Y\\u0051==","position":0}',
    b'{"type":1,"name":"a\\u003cb","size":3,"payload":"AAAAAAAAAAA=","position":0}', b'{"type":2,"payload":"Y=Q=","position":0}',
    b'{"type":1,"name":"a","size":3,"payload":"AAAAAAAAAAA=","position":00}', b'{"type":2,"payload":"","position":0}',
    b'{"type":1,"name":"a","size":03,"payload":"AAAAAAAAAAA=","position":0}', b'{"type":2,"payload":"YQ==", "position":0}',
    b'{"type":1,"name":"a","payload":null,"position":0}', b'{"type":1,"name":"a","size":3,"payload":"AAAAAAAAAAA=","position":0}',
    b'{"type":2,"payload":"YQ==","x":"","position":0}', b'{"type":2,"payload":","position":0}',
    b'{"type":1,"name":"a","payload":null,"size":4,"position":0}',
])
def test_lines_that_are_read_quickly_say_what_their_json_says(line):
    def told(read):
        try:
            return read()
        except TocError:
            return TocError

    assert told(lambda: list(golines.read_lines([line]))) == told(lambda: [golines._other(line, 0)])
