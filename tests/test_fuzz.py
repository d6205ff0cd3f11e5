"""The fuzz targets over their hand-made seeds, a fixed set of mutations, and everything that was ever found.

Coverage-guided and long: ``make fuzz``.
"""

import importlib
import os
import zlib
from pathlib import Path

import pytest

from fuzz import mutate, nasties
from fuzz.targets import TARGETS
from layerstore.errors import CompressionError
from layerstore.unpack import _Dir

FINDINGS = Path(__file__).parent.parent / "fuzz" / "findings"
MUTATIONS = {"unpack": 3_000, "tar_split": 3_000, "journal_segment": 3_000, "manifest": 6_000}


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


def test_names_that_are_not_cleaned_are_seen(monkeypatch):
    monkeypatch.setattr("layerstore.tar.names.Cleaner.name", lambda self, text, offset: text)
    with pytest.raises(AssertionError, match="unclean"):
        for data in nasties.seeds("tar_reader"):
            target("tar_reader").check(data)


def test_a_truncated_stream_that_is_taken_for_a_whole_one_is_seen(monkeypatch):
    from layerstore.compression import Decompressed

    lenient = Decompressed._gunzip

    def swallowing(self, chunks):
        try:
            yield from lenient(self, chunks)
        except CompressionError:
            return

    monkeypatch.setattr(Decompressed, "_gunzip", swallowing)
    with pytest.raises((AssertionError, zlib.error)):
        for data in nasties.seeds("decompress"):
            target("decompress").check(data)


def test_an_escape_is_seen_by_the_canary(monkeypatch):
    """Parents are not walked any more: the kernel follows a symbolic link of the archive, wherever it leads."""
    monkeypatch.setattr("layerstore.dirfds.DIRECTORY", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    monkeypatch.setattr("layerstore.unpack._Unpacker._walk", lambda self, path, entry, *, make: (path, _Dir()))
    escape = nasties.header(b"out", b"2", link=b"../../canary") + nasties.file(b"out/evil") + nasties.END
    with pytest.raises(AssertionError, match="outside"):
        target("unpack").check(escape)
