"""The fuzz targets over their hand-made seeds, a fixed set of mutations, and everything that was ever found.

Coverage-guided and long: ``make fuzz``.
"""

import importlib
import importlib.util
import itertools
import os
import re
import sys
import zlib
from pathlib import Path

import pytest

from fuzz import mutate, nasties, pieces, scratch, sums
from fuzz.campaign import Campaign
from fuzz.canary import Canary
from fuzz.targets import TARGETS
from layerstore.errors import CompressionError
from layerstore.trees.unpack.nodes import Dir

FINDINGS = Path(__file__).parent.parent / "fuzz" / "findings"
MUTATIONS = {"unpack": 3_000, "tar_split": 6_000, "journal_segment": 3_000, "manifest": 6_000,
             "chunked_toc": 3_000, "chunked_lines": 5_000, "podman_layer": 5_000}


def target(name):
    return importlib.import_module(f"fuzz.targets.{name}")


@pytest.mark.parametrize("name", TARGETS)
def test_the_invariant_holds_for_every_seed(name):
    for data in nasties.seeds(name):
        target(name).check(data)


@pytest.mark.parametrize("name", TARGETS)
def test_the_invariant_holds_for_mutations_of_the_seeds(name):
    for data in mutate.mutations(nasties.seeds(name), MUTATIONS.get(name, 10_000), seed=1):
        target(name).check(data)


@pytest.mark.parametrize("path", sorted(FINDINGS.rglob("*.bin")), ids=lambda p: f"{p.parent.name}-{p.stem}")
def test_what_was_found_once_stays_mended(path):
    target(path.parent.name).check(path.read_bytes())


def test_every_target_says_its_invariant_first():
    for name in TARGETS:
        assert "bytes" in target(name).__doc__.splitlines()[0], name


def test_every_target_has_a_dictionary_that_the_engine_can_read():
    for name in TARGETS:
        words = (FINDINGS.parent / "dictionaries" / f"{name}.dict").read_text().splitlines()
        assert len(words) >= 10, name
        for word in words:
            assert re.fullmatch(r'"(?:[^"\\]|\\x[0-9a-f]{2}|\\["\\])+"', word) or word.startswith("#"), (name, word)


def test_names_that_are_not_cleaned_are_seen(monkeypatch):
    monkeypatch.setattr("layerstore.formats.tar.names.Cleaner.name", lambda self, text, offset: text)
    with pytest.raises(AssertionError, match="unclean"):
        for data in nasties.seeds("tar_reader"):
            target("tar_reader").check(data)


def test_a_truncated_stream_that_is_taken_for_a_whole_one_is_seen(monkeypatch):
    from layerstore.formats.compression.decoders import DECODERS

    strict = DECODERS["gzip"]

    def swallowing(meter, chunks):
        try:
            yield from strict(meter, chunks)
        except CompressionError:
            return

    monkeypatch.setitem(DECODERS, "gzip", swallowing)
    with pytest.raises((AssertionError, zlib.error)):
        for data in nasties.seeds("decompress"):
            target("decompress").check(data)


def test_an_escape_is_seen_by_the_canary(monkeypatch):
    """Parents are not walked any more: the kernel follows a symbolic link of the archive, wherever it leads."""
    monkeypatch.setattr("layerstore.trees.dirfds.DIRECTORY", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    monkeypatch.setattr("layerstore.trees.unpack.tree.Tree.walk", lambda self, path, entry, *, make: (path, Dir()))
    escape = nasties.header(b"out", b"2", link=b"../../../canary") + nasties.file(b"out/evil") + nasties.END
    with pytest.raises(AssertionError, match="outside"):
        target("unpack").check(escape)


def test_what_is_lost_at_a_seam_is_seen(monkeypatch):
    def forgetful(pieces):
        for piece in pieces:
            yield from piece.split(b"\n")

    monkeypatch.setattr("layerstore.chunked.golines._lines", forgetful)
    with pytest.raises(AssertionError, match="pieces"):
        for data in nasties.seeds("chunked_lines"):
            target("chunked_lines").check(data)


def test_a_segment_with_more_rows_than_it_promises_is_seen_when_it_is_taken(monkeypatch):
    from layerjournal.segment import Segment, _read_items

    monkeypatch.setattr(Segment, "_items", lambda self: itertools.islice(_read_items(self.path), 1, None))
    with pytest.raises(AssertionError):
        for data in nasties.seeds("journal_segment"):
            target("journal_segment").check(data)


def test_a_file_from_outside_of_a_layer_of_podmans_is_seen(monkeypatch):
    monkeypatch.setattr("layerstore.sources.made_again._WAY", 0)   # links lead anywhere
    with pytest.raises(AssertionError, match="outside"):
        for data in nasties.seeds("podman_layer"):
            target("podman_layer").check(data)


def test_a_tar_that_comes_out_shorter_is_seen(monkeypatch):
    from layerstore.trees.assemble import assembled

    monkeypatch.setattr("fuzz.targets.unpack.assembled", lambda fd: (piece[:1_023] for piece in assembled(fd)))
    with pytest.raises(AssertionError, match="another tar came out$"):
        for data in nasties.seeds("unpack"):
            target("unpack").check(data)


def test_lines_for_the_go_tools_that_lack_the_end_are_seen(monkeypatch):
    from layerstore.trees.gotarsplit import lines

    monkeypatch.setattr("fuzz.targets.unpack.lines", lambda fd, told: list(lines(fd, told))[:-1])
    with pytest.raises(AssertionError, match="Go tools"):
        for data in nasties.seeds("unpack"):
            target("unpack").check(data)


def test_what_is_written_in_place_is_seen_by_the_canary():
    canary = Canary()
    canary.check()
    fd = os.open("canary/file", os.O_WRONLY, dir_fd=canary.outside.fd)
    os.write(fd, b"wrong")
    os.close(fd)
    with pytest.raises(AssertionError, match="outside"):
        canary.check()


def test_what_is_made_beside_the_tree_is_seen_by_the_canary():
    canary = Canary()
    os.mkdir("other", dir_fd=canary.tree.dir_fd)
    with pytest.raises(AssertionError, match="beside"):
        canary.check()


def test_a_layer_that_is_used_again_is_as_when_it_was_made(tmp_path):
    parent = os.open(tmp_path, os.O_RDONLY)
    layer = scratch.Layer("tree", parent)
    os.mkdir(tmp_path / "tree" / "diff" / "sub")
    (tmp_path / "tree" / "kept").mkdir()
    for name in ("manifest", "kept/1", "diff/sub/file"):
        (tmp_path / "tree" / name).write_bytes(b"x")
    os.fchmod(layer.diff_fd, 0)
    assert layer.emptied().names() == ["diff"]
    assert not os.listdir(layer.diff_fd)
    assert os.fstat(layer.diff_fd).st_mode & 0o7777 == 0o755
    os.close(layer.diff_fd)
    os.close(layer.dir_fd)
    os.close(parent)


def test_sums_are_set_right_wherever_a_header_is():
    sound = nasties.file(b"one", b"d" * 700) + nasties.pax({"path": b"two"}) + nasties.file(b"short") + nasties.END
    wrong = bytearray(sound)
    for at in (0, 1536, 2560):
        wrong[at + 148 : at + 156] = b"\0" * 8
    assert sums.with_right_sums(bytes(wrong)) == sound


def test_pieces_are_few_and_the_whole():
    for length in (0, 1, 15, 16, 17, 512, 10_240):
        data = bytes(range(256)) * 40
        found = pieces.in_pieces(data[:length], 61)
        assert b"".join(found) == data[:length]
        assert len(found) <= 16


# -- the runner


def test_the_target_that_is_done_soonest_is_next_and_one_with_a_finding_comes_no_more():
    rows = {"slow": (90, 1), "quick": (50, 5), "done": (100, 100)}
    figures = {name: {"executions": count, "rate": rate} for name, (count, rate) in rows.items()}
    plan = Campaign(rows, figures, 100)
    assert plan.next() == ("slow", 10)       # at one a second; the other lacks fifty, at five
    plan.ran("slow", 4, 8.0, failed=False)
    assert plan.next() == ("quick", 50)
    plan.ran("quick", 5, 1.0, failed=True)
    assert plan.next() == ("slow", 6)
    plan.ran("slow", 0, 8.0, failed=False)
    assert plan.next() is None


def test_executions_are_counted_without_the_replay_of_the_corpus():
    from fuzz.supervise import Told

    told = Told()
    for line in ("#12\tINITED cov: 1", "#512\tpulse  cov: 1", "#400\tREDUCE", "stat::number_of_executed_units: 1000"):
        told.line(line)
    assert told.executions == 988


def test_an_engine_that_dies_before_or_after_its_first_word_counts_never_too_many():
    from fuzz.supervise import Told

    told = Told()
    told.line("#7\tpulse")
    assert told.executions == 0
    told.line("#12\tINITED")
    told.line("#20\tNEW")
    assert told.executions == 8


def test_figures_add_up_and_keep_the_last_revision_last(monkeypatch, tmp_path):
    from fuzz import figures

    monkeypatch.setattr(figures, "_FIGURES", tmp_path / "figures.json")
    for revision, count in (("one", 5), ("two", 7), ("one", 1)):
        monkeypatch.setattr(figures, "_revision", lambda revision=revision: revision)
        figures.add("pax", count, 2.0)
    row = figures.read()["pax"]
    assert (row["executions"], row["seconds"], row["rate"]) == (13, 6, 0)   # a second, in the last run
    assert list(row["revisions"].items()) == [("two", 7), ("one", 6)]
    assert "| `pax` | 13 | 0.0 | one | 0 |" in figures.table(figures.read())


def test_the_readme_has_the_figures_that_the_runs_wrote():
    from fuzz import figures

    text = (FINDINGS.parent / "README.md").read_text()
    assert figures.table(figures.read()) in text, "run: python -m fuzz table"


def test_only_what_reads_the_input_guides_the_engine():
    from fuzz.engine import others

    left_out = set(others(("layerstore.formats.tar", "layerstore.errors")))
    assert {"layerstore.store", "layerstore.formats", "layerstore.formats.tarsplit", "layerjournal.segment"} <= left_out
    assert not {"layerstore.formats.tar", "layerstore.formats.tar.reader", "layerstore.errors"} & left_out


def test_what_guides_the_engine_is_there():
    for name, how in TARGETS.items():
        for module in how.followed:
            assert importlib.util.find_spec(module) is not None, (name, module)


@pytest.mark.parametrize(
    ("runs", "failed", "parts"),
    [(800, False, [(70, 700, ()), (10, 100, ("-max_len=16384",))]), (-1, False, [(70, -1, ()), (10, -1, ("-max_len=16384",))]),
     (800, True, [(70, 700, ())]), (7, False, [(70, 7, ())])],
    ids=["so many runs", "so many seconds", "a finding", "a few runs"],
)
def test_an_eighth_of_a_run_has_long_inputs_unless_something_was_found(monkeypatch, runs, failed, parts):
    from fuzz import supervise

    ran = []

    def part(_name, seconds, runs, _workers, _out, *more):
        ran.append((seconds, runs, more))
        return supervise.Ran(5, 1.0, failed)

    monkeypatch.setattr(supervise, "_part", part)
    told = supervise.run("pax", seconds=80, runs=runs, workers=1, out="nowhere")
    assert ran == parts
    assert told == supervise.Ran(5 * len(parts), 1.0 * len(parts), failed)


def test_without_its_engine_nothing_is_run_and_nothing_looks_like_a_finding(monkeypatch):
    from fuzz.__main__ import main

    monkeypatch.setitem(sys.modules, "atheris", None)
    monkeypatch.setattr(sys, "argv", ["fuzz", "pax", "--no-figures"])
    with pytest.raises(SystemExit, match="the engine is not installed"):
        main()
