"""Fixtures for the journal's tests. Nothing is set up behind a test's back."""

import pathlib
import sys

import pytest
from hypothesis import settings

sys.path.insert(0, str(pathlib.Path(__file__).parent))

import parcels  # noqa: E402


# how long an example takes says how busy the machine is
settings.register_profile("any load", deadline=None)
settings.load_profile("any load")


@pytest.fixture
def path(tmp_path):
    return tmp_path / "journal"


@pytest.fixture
def journal(path):
    with parcels.create(path) as opened:
        yield opened


@pytest.fixture
def written(path):
    """A closed journal with an archived segment and a log."""
    with parcels.create(path) as journal:
        parcels.pack(journal, *(f"p{n}" for n in range(20)))
        parcels.mark(journal)
        journal.archive()
        parcels.pack(journal, "q", "r")
        journal.update("send", lambda txn: parcels.move(txn, "q", "sent"))
    return path
