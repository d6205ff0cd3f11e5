"""Blobs whose tables of contents lie: every digest that vouches for a part is right, and what the parts say is not so.

Each is refused with a typed error, by the partial pull and whatever is here already; none costs more memory than bounds say.
"""

import base64
import copy
import hashlib
import json
import tarfile
import tracemalloc

import pytest
import zstandard
from test_chunked import Counted, Finds, Tree, partial

import chunkedmaker
from chunkedmaker import CURRENT, NERDCTL, OF_2022, OLD_STARGZ, STARGZ, make
from layerstore.errors import (
    ArchiveError,
    CompressionError,
    DigestMismatchError,
    InputError,
    LimitExceededError,
    TocError,
)
from layerstore.chunked.agreement import check_agreement
from layerstore.chunked.opening import open_chunked
from layerstore.chunked.plan import make_plan, wanted
from layerstore.model import Descriptor, Limits

ZSTD = (CURRENT, OF_2022)
ALL = (CURRENT, OF_2022, NERDCTL, STARGZ, OLD_STARGZ)


@pytest.fixture
def tree(tmp_path):
    return Tree(tmp_path)


def refused(tree, made, error, match=None, finder=None, **more):
    differ, _ = partial(made, finder)
    with pytest.raises(error, match=match) as caught:
        tree.apply(differ, **more)
    assert isinstance(caught.value, InputError)
    assert differ.whole is None, "it was read as a whole instead"


def lies(cases):
    """Edits, and what the refusal says of each; several may say the same."""
    return pytest.mark.parametrize(("edit", "match"), cases, ids=[f"{match} {n}" for n, (_, match) in enumerate(cases)])


def entry(name, /, **changes):
    """An edit of one entry of the TOC; None takes a field away."""
    def edit(toc):
        (found,) = [each for each in toc["entries"] if each["name"] == name and each["type"] != "chunk"]
        for key, value in changes.items():
            if value is None:
                found.pop(key)
            else:
                found[key] = value
        return toc

    return edit


def chunk(name, number, /, **changes):
    """An edit of a file's chunk, the first being 0."""
    def edit(toc):
        found = [each for each in toc["entries"] if each["name"] == name][number]
        found.update(changes)
        return toc

    return edit


# -- content


@pytest.mark.parametrize("form", ALL)
def test_content_of_another_file(tree, form):
    """Of the same size: all offsets, sizes and digests of the metadata are right."""
    made = make(form, data=lambda name, _number, part: part[::-1] if name == "d/b" else part)
    refused(tree, made, DigestMismatchError, "another tar" if form == OLD_STARGZ else "the table of contents promises")


@pytest.mark.parametrize("form", ALL)
def test_a_chunk_of_another_file(tree, form):
    made = make(form, data=lambda name, number, part: part[::-1] if (name, number) == ("d/big", 1) else part)
    refused(tree, made, DigestMismatchError, "another tar" if form == OLD_STARGZ else "the table of contents promises")


@pytest.mark.parametrize("form", [CURRENT, OF_2022])
def test_the_toc_names_content_that_is_here_instead_of_the_tars(tree, form):
    """Its digest is right, for something else of the same size: only the diffID tells."""
    other = b"FIRST FILE\n"
    made = make(form, toc=entry("d/a", digest=chunkedmaker.sha(other)))
    refused(tree, made, DigestMismatchError, "another tar", finder=Finds(other))
    refused(tree, made, DigestMismatchError, "table of contents promises")


@pytest.mark.parametrize("form", [CURRENT, OF_2022, STARGZ, NERDCTL])
def test_a_files_digest_that_its_chunks_do_not_add_up_to(tree, form):
    made = make(form, toc=entry("d/big", digest=chunkedmaker.sha(b"another")))
    refused(tree, made, DigestMismatchError, "d/big.* another file than the table of contents promises")


@pytest.mark.parametrize("form", [CURRENT, OF_2022])
def test_content_where_the_toc_has_zeros(tree, form):
    made = make(form, toc=chunk("d/big", 1, chunkType="zeros"))
    refused(tree, made, DigestMismatchError, "d/big.* another file than the table of contents promises")


@pytest.mark.parametrize("form", [CURRENT, OF_2022])
@pytest.mark.parametrize("change", [b"", b"more"])
def test_a_chunk_with_fewer_or_more_bytes_than_it_shall_have(tree, form, change):
    made = make(form, data=lambda name, _n, part: (part + change if change else part[:-1]) if name == "d/b" else part)
    refused(tree, made, TocError, "has more than the|ends after 349 of 350 bytes")


@pytest.mark.parametrize("form", ZSTD)
def test_a_chunk_that_is_a_bomb_costs_its_size(tree, form):
    bomb = zstandard.ZstdCompressor(level=3).compress(bytes(200 << 20))

    class Maker(chunkedmaker._Maker):
        def compressed(self, data):
            return bomb if data == b"second\n" * 50 else super().compressed(data)

    maker = Maker(form, 3000, lambda _name, _number, part: part)
    for each in chunkedmaker.tree():
        maker.add(*each)
    made = maker.finish(bytes(1024), lambda toc: toc, lambda lines: lines, lambda notes: notes)
    costs(8 << 20, lambda: refused(tree, made, DigestMismatchError, "the table of contents promises"))


def test_a_gap_that_is_a_bomb_is_stopped(tree):
    class Maker(chunkedmaker._Maker):
        def zstd_end(self, toc, lines):
            self.blob += zstandard.compress(bytes(64 << 20))
            return super().zstd_end(toc, lines)

    maker = Maker(OF_2022, 3000, lambda _name, _number, part: part)
    for each in chunkedmaker.tree():
        maker.add(*each)
    made = maker.finish(bytes(1024), lambda toc: toc, None, lambda notes: notes)
    costs(16 << 20, lambda: refused(tree, made, LimitExceededError, "ratio", limits=Limits(max_ratio=1000)))


def costs(most, fn):
    tracemalloc.start()
    try:
        fn()
        assert tracemalloc.get_traced_memory()[1] < most
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("form", ZSTD)
def test_a_chunk_that_is_no_zstd(tree, form):
    made = make(form)
    (found,) = [each for each in made.toc["entries"] if each["name"] == "d/b"]
    blob = bytearray(made.blob)
    blob[found["offset"] : found["endOffset"]] = bytes(found["endOffset"] - found["offset"])
    differ, _ = partial(made, blob=Counted(bytes(blob)))
    with pytest.raises(CompressionError):
        tree.apply(differ)


# -- what the table of contents says


@pytest.mark.parametrize("form", ZSTD)
@lies([
    (lambda toc, big: big[1].update(offset=big[0]["offset"]), "lies at .* and ends at"),
    (lambda toc, big: big[2].update(offset=big[1]["offset"] - 1), "lies at .* and ends at"),
    (lambda toc, big: big[0].update(endOffset=1 << 40), "beyond its content"),
    (lambda toc, big: big[0].update(offset=1 << 40), "lies at .* and ends at"),
    (lambda toc, big: big[0].update(offset=0), "before what precedes it ends"),
    (lambda toc, big: big[0].update(endOffset=1), "lies at .* and ends at"),
    (lambda toc, big: big[1].update(chunkOffset=1), "do not cover it"),
    (lambda toc, big: big[1].update(chunkOffset=0), "do not cover it"),
    (lambda toc, big: big[1].update(chunkSize=2999), "do not cover it"),
    (lambda toc, big: big[0].update(chunkSize=1 << 60), "do not cover it"),
    (lambda toc, big: big[1].pop("chunkDigest"), "has no digest"),
    (lambda toc, big: toc["entries"].remove(big[-1]), "of its 10240 bytes"),
    (lambda toc, big: toc["entries"].append({**big[1]}), "belongs to no file"),
    (lambda toc, big: toc["entries"].insert(0, {**big[1]}), "belongs to no file"),
    (lambda toc, big: big[1].update(name="d/b"), "belongs to no file"),
])
def test_chunks_that_cannot_be_where_the_toc_has_them(tree, form, edit, match):
    def edited(toc):
        edit(toc, [each for each in toc["entries"] if each["name"] == "d/big"])
        return toc

    refused(tree, make(form, toc=edited), TocError, match)


@pytest.mark.parametrize("form", [STARGZ, NERDCTL])
@lies([
    (lambda big: big[1].update(offset=1 << 40), "before what precedes it|beyond"),
    (lambda big: big[1].update(offset=big[0]["offset"]), "overlap"),
    (lambda big: big[1].update(offset=big[0]["offset"] - 1), "before what precedes it"),
    (lambda big: big[0].update(innerOffset=5), "another than the table|ends after"),
    (lambda big: big[1].update(chunkSize=1), "do not cover it"),
])
def test_chunks_that_cannot_be_where_an_estargz_toc_has_them(tree, form, edit, match):
    def edited(toc):
        edit([each for each in toc["entries"] if each["name"] == "d/big"])
        return toc

    refused(tree, make(form, toc=edited), (TocError, DigestMismatchError), match)


@pytest.mark.parametrize("form", ALL)
def test_a_name_that_comes_twice(tree, form):
    def edited(toc):
        toc["entries"].append({"type": "reg", "name": "./d//empty", "mode": 0o644})
        return toc

    refused(tree, make(form, toc=edited), TocError, "twice|the tar has not")


def test_a_tar_that_has_a_name_twice(tree):
    again = [*chunkedmaker.tree(), chunkedmaker.member("d/empty")]
    refused(tree, make(CURRENT, again), TocError, "twice")


@lies([
    (entry("d/a", mode=0o777), "mode of 'd/a'"),
    (entry("d/noted", mode=0o755), "mode of"),
    (entry("d/a", uid=1), "uid of"),
    (entry("d/a", gid=1), "gid of"),
    (entry("d/a", modtime="2023-11-14T22:13:21Z"), "time of"),
    (entry("d/a", modtime="2023-11-14T22:13:20.000000001Z"), "time of"),
    (entry("d/a", name="d/A"), "where the tar has 'd/a'"),
    (entry("d/pipe", type="dir"), "type of"),
    (entry("d/link", linkName="b"), "target of"),
    (entry("d/hard", linkName="d/b"), "target of"),
    (entry("d/null", devMinor=5), "device of"),
    (entry("d/noted", xattrs={"user.note": base64.b64encode(b"other").decode()}), "attributes of"),
    (entry("d/noted", xattrs=None), "attributes of"),
    (entry("d/a", xattrs={"user.more": ""}), "attributes of"),
    (entry("d/a", size=10), "size of"),
    (entry("d/empty", size=1, digest=chunkedmaker.sha(b"x"), offset=1, endOffset=2), "size of"),
    (lambda toc: {**toc, "entries": toc["entries"][:-1]}, "which the table of contents has not"),
    (lambda toc: {**toc, "entries": toc["entries"][1:]}, "where the tar has 'd/'"),
    (lambda toc: {**toc, "entries": [*toc["entries"], {"type": "dir", "name": "e/"}]}, "which the tar has not"),
])
def test_a_toc_that_says_something_else_than_the_headers(tree, edit, match):
    refused(tree, make(CURRENT, toc=edit), TocError, match)


@lies([
    (lambda lines: _line(lines, "d/a", name="d/b"), "where the tar has"),
    (lambda lines: _line(lines, "d/a", size=12), "not a|checksum|the tar-split has|header"),
    (lambda lines: _line(lines, "d/a", size=-1), "neither a segment nor a file"),
    (lambda lines: _line(lines, "d/a", payload="AAAA"), "neither a segment nor a file"),
    (lambda lines: _line(lines, "d/a", payload="!"), "not base64"),
    (lambda lines: _line(lines, "d/a", type=3), "neither a segment nor a file"),
    (lambda lines: _line(lines, "d/a", position=7), "out of order"),
    (lambda lines: lines[:1] + lines[2:], "out of order"),
    (lambda lines: _line(lines, "d/empty", size=512), "has 512 bytes of data at the place for that of 'd/empty'"),
    (lambda lines: [{"type": 1, "name": "x", "size": 5, "position": 0}], "has 5 bytes of data at the place"),
    (lambda lines: _later(lines, "d/a"), "has 0 bytes of data at the place for that of 'd/a'"),
    (lambda lines: _later(lines, "d/a", join=True), "has 0 bytes of data at the place for that of 'd/a'"),
    (lambda _lines: b"nonsense\n", "no JSON"),
    (lambda _lines: b"[" * 100_000, "no JSON"),
    (lambda _lines: b"", "which the tar has not"),
])
def test_a_tar_split_that_is_none_or_of_another_tar(tree, edit, match):
    refused(tree, make(CURRENT, lines=edit), (TocError, ArchiveError), match)


def _line(lines, name, /, **changes):
    lines = copy.deepcopy(lines)
    (found,) = [each for each in lines if each.get("name") == name]
    found.update(changes)
    return lines


def _later(lines, name, *, join=False):
    """The data of *name* goes behind the next header, all in order; *join* that with its own, in one segment."""
    lines = copy.deepcopy(lines)
    (at,) = [n for n, each in enumerate(lines) if each.get("name") == name]
    before, data, after = lines[at - 1 : at + 2]
    assert (before["type"], data["type"], after["type"]) == (2, 1, 2)
    if join:
        both = base64.b64decode(before["payload"]) + base64.b64decode(after["payload"])
        moved = [{**before, "payload": base64.b64encode(both).decode()}, data]
    else:
        moved = [before, after, data]
    return [{**each, "position": n} for n, each in enumerate(lines[: at - 1] + moved + lines[at + 2 :])]


# -- as text


def raw(change):
    return lambda toc: change(json.dumps(toc).encode())


@pytest.mark.parametrize("form", ALL)
@lies([
    (raw(lambda text: text + b"{}"), "something follows"),
    (raw(lambda text: text[:-1]), "malformed"),
    (raw(lambda text: text[: len(text) // 2]), "malformed"),
    (raw(lambda _text: b""), "malformed"),
    (raw(lambda _text: b"[]"), "malformed"),
    (raw(lambda _text: b"{}"), "no version"),
    (raw(lambda text: text.replace(b'"version": 1', b'"version": 1.0')), "a number|version of"),
    (raw(lambda text: text.replace(b'"version": 1', b'"version": true')), "version of"),
    (raw(lambda text: text.replace(b'"version": 1,', b'"version": 1, "version": 1,')), "twice"),
    (raw(lambda text: text.replace(b'"mode": 493', b'"mode": 493, "mode": 493')), "twice"),
    (raw(lambda text: text.replace(b'"mode": 493', b'"mode": -1')), "mode of"),
    (raw(lambda text: text.replace(b'"mode": 493', b'"mode": 1e3')), "a number"),
    (raw(lambda text: text.replace(b'"mode": 493', b'"mode": NaN')), "a number"),
    (raw(lambda text: text.replace(b'"mode": 493', b'"mode": ' + b"9" * 5000)), "malformed|mode of"),
    (raw(lambda text: text.replace(b'"mode": 493', b'"mode": 18446744073709551616')), "mode of"),
    (raw(lambda text: text.replace(b'"name": "d/a"', b'"name": 5')), "no name"),
    (raw(lambda text: text.replace(b'"name": "d/a"', b'"name": ""')), "no name"),
    (raw(lambda text: text.replace(b'"name": "d/a"', b'"name": "\xff"')), "not UTF-8"),
    (raw(lambda text: text.replace(b'"type": "fifo"', b'"type": "socket"')), "no known type"),
    (raw(lambda text: text.replace(b'"type": "fifo"', b'"type": {}')), "no known type"),
    (raw(lambda text: text.replace(b"2023-11-14T22:13:20Z", b"2023-11-34T22:13:20Z")), "time of"),
    (raw(lambda text: text.replace(b"2023-11-14T22:13:20Z", b"yesterday")), "time of"),
    (raw(lambda text: text.replace(b'"entries": [', b'"entries": [[], ')), "no object"),
    (raw(lambda text: text.replace(b'"entries": [', b'"entries": [' + b"[" * 100_000)), "malformed"),
    (raw(lambda text: text.replace(b'"dmFsdWU="', b'"d m F"')), "not base64"),
])
def test_text_that_is_no_toc(tree, form, edit, match):
    refused(tree, make(form, toc=edit), TocError, match)


def test_unknown_fields_are_left_out(tree):
    def edited(toc):
        toc["more"] = {"a": [1, None]}
        for each in toc["entries"]:
            each["unknown"] = ["x"]
        return toc

    differ, _ = partial(make(CURRENT, toc=edited))
    tree.apply(differ)
    assert differ.whole is None


@pytest.mark.parametrize("form", ALL)
def test_metadata_that_is_another_than_promised_is_not_parsed(tree, form, monkeypatch):
    made = make(form, annotations=lambda notes: {k: chunkedmaker.sha(b"") if "digest" in k or "checksum" in k else v
                                                 for k, v in notes.items()})
    monkeypatch.setattr("layerstore.chunked.opening.Toc.__iter__", lambda _self: pytest.fail("it was parsed"))
    refused(tree, made, DigestMismatchError, "the table of contents is another than promised")


def test_a_tar_split_that_is_another_than_promised_is_not_parsed(tree, monkeypatch):
    made = make(CURRENT, toc=lambda toc: {**toc, "tarSplitDigest": chunkedmaker.sha(b"")})
    monkeypatch.setattr("layerstore.chunked.opening.read_lines", lambda _pieces: pytest.fail("it was parsed"))
    refused(tree, made, DigestMismatchError, "the tar-split is another")


# -- annotations and footers


@lies([
    (lambda notes: {**notes, "containerd.io/snapshot/stargz/toc.digest": chunkedmaker.sha(b"")}, "two tables of contents"),
    (lambda notes: {**notes, "io.containers.zstd-chunked.manifest-checksum": chunkedmaker.sha(b"")}, "two different"),
    (lambda notes: _note(notes, "checksum", "sha256:nonsense"), "not the digest"),
    (lambda notes: _note(notes, "checksum", None), "not the digest"),
    (lambda notes: _note(notes, "manifest-position", "1:2:3"), "not 4 numbers"),
    (lambda notes: _note(notes, "manifest-position", "1:2:3:1:5"), "not 4 numbers"),
    (lambda notes: _note(notes, "manifest-position", "-1:2:3:1"), "not 4 numbers"),
    (lambda notes: _note(notes, "manifest-position", "1:2:3:\u0661"), "not 4 numbers"),
    (lambda notes: _note(notes, "manifest-position", "1:999999999:3:1"), "lie at 1"),
    (lambda notes: _note(notes, "manifest-position", "1:0:3:1"), "0 bytes of metadata"),
    (lambda notes: _note(notes, "tarsplit-position", "1:2"), "not 3 numbers"),
    (lambda notes: _note(notes, "tarsplit-position", "1:2:3"), "begins before"),
    (lambda notes: _note(notes, "tarsplit-position", "999999999:2:3"), "lie at 999999999"),
])
def test_annotations_that_cannot_be(tree, edit, match):
    refused(tree, make(CURRENT, annotations=edit), TocError, match)


def _note(notes, ending, value):
    return {key: value if key.endswith(ending) and "checksum" + ending != key else old for key, old in notes.items()}


@pytest.mark.parametrize(("form", "place"), [(CURRENT, -30), (OF_2022, -30), (STARGZ, -30), (OLD_STARGZ, -30), (CURRENT, -70)])
def test_a_footer_that_is_broken(tree, form, place):
    made = make(form, annotations=lambda notes: {k: v for k, v in notes.items() if "position" not in k})
    blob = bytearray(made.blob)
    blob[place] ^= 0xFF
    differ, _ = partial(made, blob=Counted(bytes(blob)))
    with pytest.raises(TocError):
        tree.apply(differ)


def test_sizes_that_the_metadata_does_not_have(tree):
    def larger(notes):
        return {key: ":".join([*value.split(":")[:2], str(int(value.split(":")[2]) + 1), *value.split(":")[3:]])
                if "position" in key else value for key, value in notes.items()}

    refused(tree, make(CURRENT, annotations=larger), TocError, "does not decompress to")


# -- bounds


@pytest.mark.parametrize("form", ZSTD)
def test_more_zeros_than_a_layer_may_have(tree, form):
    def edited(toc):
        big = [each for each in toc["entries"] if each["name"] == "d/holes"]
        for each in big:
            each.update(chunkType="zeros")
        return toc

    refused(tree, make(form, toc=edited), LimitExceededError, "zeros", limits=Limits(max_hole_bytes=5000))


def test_more_content_than_the_blob_can_hold(tree):
    """A small table of contents that names a large file that is here, over and over."""
    one = b"large" * (1 << 20)
    made = make(OF_2022, [chunkedmaker.member(f"f{n}", one) for n in range(4)], chunk=1 << 30)
    refused(tree, made, LimitExceededError, "max_ratio", finder=Finds(one), limits=Limits(max_ratio=1))


def test_more_entries_than_its_size_allows(tree):
    made = make(CURRENT, toc=raw(lambda text: text.replace(b'"entries": [', b'"entries": [' + b'{"type":"dir","name":"x"},' * 2000)))
    refused(tree, made, LimitExceededError, "too many entries", limits=Limits(max_toc=100_000))


@pytest.mark.parametrize("nonsense", ids=["list", "text"], argvalues=[b'{"type":"dir","name":"x","y":[' + b"[]," * 1_000_000, b'"' + b"x" * 3_000_000])
def test_an_entry_that_does_not_end_costs_bounded_memory(tree, nonsense):
    made = make(CURRENT, toc=raw(lambda text: text.replace(b'"entries": [', b'"entries": [' + nonsense)))
    costs(150 << 20, lambda: refused(tree, made, TocError, "too long"))


def of_tiny_files(room):
    for n in range(room // 165):
        yield {"type": "reg", "name": f"{n:x}", "size": 1, "digest": f"sha256:{hashlib.sha256(b'%d' % n).hexdigest()}",
               "offset": n * 10, "endOffset": n * 10 + 10}


def of_tiny_chunks(room):
    one = {"name": "a", "chunkSize": 1}
    for n in range(count := room // 190):
        whole = {} if n else {"size": count, "digest": "sha256:" + "0" * 64, "endOffset": count * 10}
        yield {"type": "chunk" if n else "reg", **one, **whole, "offset": n * 10, "chunkOffset": n,
               "chunkDigest": f"sha256:{hashlib.sha256(b'%d' % n).hexdigest()}"}


@pytest.mark.parametrize("entries", [of_tiny_files, of_tiny_chunks])
def test_the_largest_toc_costs_memory_in_proportion_to_its_limit(entries):
    limit = 2 << 20
    text = json.dumps({"version": 1, "entries": list(entries(limit))}, separators=(",", ":")).encode()
    sent = zstandard.compress(text)
    notes = {"manifest-checksum": f"sha256:{hashlib.sha256(sent).hexdigest()}", "manifest-position": f"{1 << 30}:{len(sent)}:{len(text)}:1"}
    descriptor = Descriptor("", "sha256:" + "0" * 64, 1 << 31, {f"io.containers.zstd-chunked.{key}": said for key, said in notes.items()})
    assert 0.8 * limit < len(text) <= limit

    def held():
        opened = open_chunked(descriptor, lambda _ranges: [sent], Limits(max_toc=limit))
        return make_plan(opened.items, dict.fromkeys(wanted(opened.items)[0], 1))

    costs(6 * limit, held)


@pytest.mark.parametrize("block", ids=["zeros", "global"], argvalues=[
    bytes(1 << 16), tarfile.TarInfo.create_pax_global_header({"comment": "x" * 65_000}),
])
def test_what_a_tar_split_has_that_is_no_entrys_costs_no_memory(block):
    lines = (block[:5] + block[5:] for _ in range(512))   # another object each, as those that are decoded
    costs(4 << 20, lambda: check_agreement([], lines, Limits()))


# -- in a store


@pytest.mark.parametrize("form", ALL)
def test_a_refused_layer_leaves_nothing(store, root, form):
    made = make(form, data=lambda name, _number, part: part[::-1] if name == "d/b" else part)
    with pytest.raises(InputError):
        store.stage(partial(made)[0])
    assert list((root / "staging").iterdir()) == []
    assert list(store.layers()) == []


@pytest.mark.parametrize("form", ALL)
def test_a_layer_taken_by_its_toc_is_a_layer_like_any(store, form):
    made = make(form)
    with store.stage(partial(made)[0]) as staged:
        layer = store.apply_staged_layer(staged)
    assert (layer.diff_id, layer.blob_digest) == (made.diff_id, None)
    assert layer.toc_digest.startswith("sha256:")
    assert store.check(content=True).sound
    with store.diff(layer.id) as chunks:
        assert chunkedmaker.sha(b"".join(chunks)) == made.diff_id
