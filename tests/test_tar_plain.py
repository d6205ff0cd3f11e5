"""Plain headers that are known by those before them: what is read, told and refused is what the strict reader reads and tells."""

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from nasty_tars import sparse_tars
from randomtrees import trees as random_trees
from tarmaker import END, chunks, directory, file, gnu_long, header, pad, pax, symlink
from test_unpack_threads import look
from test_unpack_threads import trees as layers  # noqa: F401 - a fixture

from fuzz import nasties
from layerstore.errors import ArchiveError, LimitExceededError
from layerstore.model import DiffTarget, Limits
from layerstore.formats.tar import TarReader, plain
from layerstore.trees.unpack import unpack
from test_unpack import FORM

LIMITS = Limits(max_entries=60, max_bytes=1 << 20, max_pax_record=1 << 14, max_depth=12, max_path_length=300)
MANY = b"".join(file(b"d%d/file%d" % (n // 9, n), b"%d" % n * (n % 50)) for n in range(40))
# what can stand between plain files, or is nearly one
ODD = [
    file(b"d1/set", b"x", mode=0o4755), file(b"d1/other", b"x", uid=7), file(b"d1/late", b"x", mtime=1 << 32),
    file(b"d1/huge", b"x", mtime=8**11), file(b"d1/before", b"x", mtime=-1), file(b"d1/nobody", b"x", uid=(1 << 32) - 1),
    file(b"name", b"x", prefix=b"some/where"), file(b"name", b"x", prefix=b"other/where"), file(b"/abs/./x", b"x"),
    file(b"../out", b"x"), file(b"d1/..", b"x"), file(b"d1/.", b"x"), file(b"d1/dir/"), file(b"d1/dir/", b"x"),
    file(b"", b"x"), file(b"d1/" + b"n" * 97, b"x"), file(b"d1/a\0b", b"x"), file(b"d1/7", b"x", magic=b"ustar  \0"),
    header(b"d1/seven", b"7", size=1) + pad(b"x"), header(b"d1/nul", b"\0", size=1) + pad(b"x"), header(b"d1/?", b"?"),
    file(b"d1/sum", b"x", checksum=1), header(b"d1/size", raw_size=b"         1 \0"), header(b"d1/size", raw_size=b"0000000000_\0"),
    header(b"d1/size", raw_size=b"00000000009\0"), header(b"d1/size", raw_size=b"0000000001\0\0") + pad(b"x"),
    header(b"d1/size", raw_size=b"\x80" + bytes(10) + b"\1") + pad(b"x"), header(b"d1/size", raw_size=b"00000000001x") + pad(b"x"),
    file(b"d1/big", b"x" * 70_000), header(b"d1/claims", size=1 << 30), directory(b"d1/"), symlink(b"d1/l", b"x"), file(b"d1/.wh.x"),
    pax((b"path", b"d1/other name")) + file(b"d1/pax", b"x"), pax((b"size", b"3")) + file(b"d1/sized", b"xyz"),
    pax((b"uid", b"5"), type=b"g"), pax((b"comment", b"1"), type=b"g"), gnu_long(b"L", b"d1/long") + file(b"d1/x", b"y"),
    bytes(512), *(data for _, data in sparse_tars()),
] + [file(b"d1/again", b"x", uid=7), file(b"d1/again", b"y", mtime=1 << 32), file(b"deep/" * 11 + b"x", b"y"), file(b"deep/" * 13 + b"x", b"y")]


def reading(data, chunk, known):
    """All that a reader of *data* says, and how it ends."""
    told, found, hits = [], [], 0

    class Watched(plain.PlainHeaders):
        def read(self, buffer, at):
            nonlocal hits
            answer = super().read(buffer, at) if known else None
            hits += answer is not None
            return answer

    reader = TarReader(chunks(data, chunk), LIMITS, require_end=False, raw=told.append)
    reader._plain = Watched()
    try:
        for number, entry in enumerate(reader):
            # what an entry is recorded after, by the unpacker, is told by now; every third one's data is not wanted
            data_read = b"".join(map(bytes, reader.read_data(entry))) if number % 3 else None
            found.append((entry, type(entry), reader.raw_name, data_read, b"".join(told), reader.offset))
        end = None
    except (ArchiveError, LimitExceededError) as error:
        end = type(error), str(error)
    return (found, end, b"".join(told)), hits


def compare(data, chunk=1 << 20):
    """How many headers were known, if that made no difference."""
    strict, none = reading(data, chunk, known=False)
    quick, hits = reading(data, chunk, known=True)
    assert quick == strict
    assert none == 0
    return hits


def archives():
    yield MANY + END
    for each in ODD:
        yield MANY + each + MANY + END
        yield MANY + each + each + file(b"d1/after", b"z") + END
    for target in ("unpack", "tar_reader"):
        for data in nasties.seeds(target):
            yield data
            yield MANY + data


@pytest.mark.parametrize("chunk", [700, 4096, 1 << 20])
def test_what_is_odd_among_plain_files_is_read_as_the_strict_reader_reads_it(chunk):
    hits = [compare(data, chunk) for data in archives()]
    assert sum(hits) > len(hits) * (2 if chunk < 1000 else 20), "few headers were known: little was compared"


@settings(max_examples=150, deadline=None)
@given(st.randoms(use_true_random=False), st.sampled_from([513, 9000, 1 << 20]))
def test_archives_with_some_bytes_changed_are_read_or_refused_alike(rnd, chunk):
    parts = rnd.choices(ODD, k=4) + [MANY[i : i + 5120] for i in (0,)]
    rnd.shuffle(parts)
    data = bytearray(MANY + b"".join(parts) + MANY)
    for _ in range(rnd.randrange(1, 6)):
        at = rnd.randrange(0, len(data))
        data[at] = rnd.choice((0, 32, 48, 49, 55, 56, 255, rnd.randrange(256)))
        if rnd.random() < 0.8:           # a checksum that is right again, so that the fields are looked at
            mended(data, at)
    compare(bytes(data) + END, chunk)


def mended(data, at):
    start = at - at % 512
    block = data[start : start + 512]
    if len(block) == 512:
        block[148:156] = b"        "
        data[start + 148 : start + 156] = b"%06o\0 " % sum(block)


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(random_trees(privileged=False), st.sampled_from([700, 1 << 20]))
def test_random_trees_are_read_alike(tree, chunk):
    made = [
        file(path[:99], bytes(each["size"]), mode=each["mode"], mtime=each["mtime_ns"] // 10**9) if each["kind"] == "file"
        else directory(path[:99] + b"/") for path, each in tree.items()
    ]
    compare(MANY + b"".join(made * 3) + END, chunk)


def test_layers_unpacked_with_and_without_are_the_same_to_the_byte(layers, monkeypatch):  # noqa: F811
    def outcome(data, known):
        tree = layers(0)
        with monkeypatch.context() as patch:
            if not known:
                patch.setattr(plain.PlainHeaders, "read", lambda *_: None)
            try:
                made = unpack(chunks(data, 3000), DiffTarget(*tree.fds, overlay_form=FORM, limits=LIMITS), require_end=False, alone=0)
            except (ArchiveError, LimitExceededError) as error:
                return type(error), str(error)
        return made, look(tree)

    accepted = 0
    for data in list(archives())[::4]:
        first = outcome(data, known=True)
        assert first == outcome(data, known=False)
        accepted += not isinstance(first[1], str)
    assert accepted > 10


# -- negative controls: planted mistakes that the comparison must see ---------------------------------------------------

SEEN = {
    "a checksum that is not looked at": ("adler32", lambda data: 0),
    "a size that may be anything": ("_SIZE", type("Any", (), {"match": staticmethod(lambda field: True)})),
    "a prefix that is forgotten": ("prefix_of", lambda block: b""),
}


@pytest.mark.parametrize("mistake", SEEN)
def test_a_mistake_is_seen(monkeypatch, mistake):
    name, instead = SEEN[mistake]
    monkeypatch.setattr(plain, name, instead)
    if name == "adler32":
        class Equal(bytes):
            __eq__ = lambda self, other: True   # noqa: E731
            __ne__ = lambda self, other: False  # noqa: E731
            __hash__ = bytes.__hash__

        fields = plain._FIELDS

        class Fields:
            unpack = fields.unpack

            @staticmethod
            def unpack_from(buffer, at):
                *found, checksum, rest = fields.unpack_from(buffer, at)
                return *found, Equal(checksum), rest

        monkeypatch.setattr(plain, "_FIELDS", Fields)
    with pytest.raises((AssertionError, ValueError)):
        for data in archives():
            compare(data)


def test_what_is_kept_is_bounded():
    headers = plain.PlainHeaders()
    for n in range(3 * plain._MOST):
        headers.learn(header(b"f", uid=n, mtime=n), 0o644, n, 0, n)
        assert len(headers._owners) <= plain._MOST and len(headers._times) <= plain._MOST and len(headers._rests) <= plain._MOST
    assert headers.read(header(b"g", uid=n, mtime=n), 0) == (b"g", (0o644, n, 0), 0, n)


def test_every_plain_file_after_the_first_of_its_kind_is_known():
    data = b"".join(file(b"a/%d" % n, b"x") for n in range(50)) + END
    assert compare(data) == 49
