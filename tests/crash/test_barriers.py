"""The matrix of barriers: what is left out is shown to be needed by a crash state, or has a written reason to stay."""

import argparse

import pytest

from crash import barriers
from crash.barriers import MatrixError, Row, reasoned
from crash.barriers.__main__ import page

pytestmark = pytest.mark.timeout(3000)


def options(**given):
    return argparse.Namespace(**{"states": 100, "seed": 1, "workers": 2, "pairs": False, "only": None, **given})


def test_a_row_that_is_neither_shown_nor_reasoned_is_an_error():
    with pytest.raises(MatrixError, match="neither shown"):
        reasoned([Row(["a.sync"], None, 40)], {})


def test_a_reason_for_what_is_shown_is_an_error():
    with pytest.raises(MatrixError, match="is shown to be needed by pull"):
        reasoned([Row(["a.sync"], "pull 3:none:0: lost", 4)], {"a.sync": "because"})


def test_one_that_only_a_long_look_shows_may_have_a_reason_for_short_ones(monkeypatch):
    monkeypatch.setattr(barriers, "SELDOM", frozenset({"a.sync"}))
    rows = [Row(["a.sync"], "pull 3:none:0: lost", 4), Row(["a.sync"], None, 4)]
    assert [row.reason for row in reasoned(rows, {"a.sync": "because"})] == [None, "because"]


def test_a_pair_that_is_not_shown_stays_for_the_reasons_of_both():
    (row,) = reasoned([Row(["a.sync", "b.sync"], None, 40)], {"a.sync": "This.", "b.sync": "That."})
    assert row.reason == "This. That."


def test_a_name_that_no_sync_has_is_an_error():
    with pytest.raises(RuntimeError):
        barriers.rows(options(only=["stage.sink"]))


def test_the_page_has_a_line_for_each_barrier():
    text = page([Row(["a.sync"], "pull 3:none:0: lost", 4), Row(["b.sync"], None, 40, "It stays.")])
    assert "| `a.sync` | pull 3:none:0: lost | 4 |  |" in text
    assert "| `b.sync` |  | 40 | It stays. |" in text


def test_every_barrier_is_shown_to_be_needed_or_has_a_reason(record_property):
    found = barriers.rows(options(states=40))
    record_property("states", sum(row.states for row in found))
    shown = {row.leave_out[0] for row in found if row.caught_by}
    assert shown >= {"stage.sync", "checkpoint.sync", "archive.sync", "txn.claim", "txn.seal", "txn.delete"}
    assert len(found) >= 55, "barriers are missing from the recordings"
