"""Folding a manifest's records: the same as replaying all of them in memory, without keeping them."""

import tracemalloc

from hypothesis import given, settings
from hypothesis import strategies as st

from layerstore.formats.folding import folded
from layerstore.formats.manifest import ManifestEntry

NAMES = st.sampled_from([b"a", b"b", b"a/x", b"a/y", b"a/x/q", b"b/x", b"c", b"d"])


def link(path, to):
    return ManifestEntry(path, "hardlink", linkname=to)


def fold(records):
    pairs = [(path, record) for path, record in records]
    count = sum(record is not None for _, record in pairs)
    return list(folded(lambda: pairs, count, lambda record, path: record._replace(path=path), link))


def files(entries):
    """Which paths are one file, and what it is."""
    by_path = {entry.path: entry for entry in entries}
    assert len(by_path) == len(entries), "a path that comes twice"
    groups, before = {}, set()
    for entry in entries:
        assert entry.type != "hardlink" or entry.linkname in before, "a link that comes before its file"
        before.add(entry.path)
        root = entry.path
        while by_path[root].type == "hardlink":
            root = by_path[root].linkname
        groups.setdefault(root, []).append(entry.path)
    return sorted((sorted(paths), by_path[root].mode) for root, paths in groups.items())


def replayed(records):
    """The plain way: what each path is, one record after the other."""
    here = {}
    for path, record in records:
        if record is None:
            here = {p: m for p, m in here.items() if p != path and not p.startswith(path + b"/")}
        else:
            here[path] = here[record.linkname] if record.type == "hardlink" else record.mode
    return sorted((sorted(p for p in here if here[p] == mode), mode) for mode in set(here.values()))


@st.composite
def histories(draw):
    made, here = [], set()
    for number in range(draw(st.integers(1, 14))):
        path, kind = draw(NAMES), draw(st.sampled_from(["file", "file", "hardlink", "hardlink", "gone"]))
        others = sorted(here - {path})
        if kind == "gone":
            here = {p for p in here if p != path and not p.startswith(path + b"/")}
            made.append((path, None))
            continue
        made.append((path, link(path, draw(st.sampled_from(others))) if kind == "hardlink" and others
                     else ManifestEntry(path, "file", mode=number)))   # its mode says which file it is
        here.add(path)
    return made


@settings(max_examples=200, deadline=None, derandomize=True)
@given(histories())
def test_what_is_folded_is_what_all_records_together_come_to(history):
    assert files(fold(history)) == replayed(history)


def test_records_that_nothing_replaces_are_not_kept():
    count = 30_000

    def records():
        for number in range(count):
            path = b"directory/of/%d/file" % number
            yield path, ManifestEntry(path, "file", mode=number, sha256=b"d" * 32)
        yield path, ManifestEntry(path, "file", mode=7)

    tracemalloc.start()
    found = sum(1 for _ in folded(records, count + 1, lambda record, path: record._replace(path=path), link))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found == count
    assert peak < 20 * count, f"{peak / count:.0f} bytes a record"


def test_the_order_is_the_same_in_every_process():
    """Those that the filter takes for more are last, and it is no filter of this process's."""
    made = [(b"%d" % n, ManifestEntry(b"%d" % n, "file", mode=n)) for n in range(3_000)]
    found = [entry.path for entry in fold([*made, (b"7", ManifestEntry(b"7", "file"))])]
    assert found[found.index(b"2999") + 1 :] == [b"2085", b"2106", b"2208", b"2274", b"2721", b"2768", b"2877", b"2961", b"7"]
