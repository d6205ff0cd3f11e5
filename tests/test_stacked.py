"""The look-up path over several catalogs: pure, over tables in memory."""

import pytest

from layerstore.lifecycle.stacked import STORE, Stacked, why_missing

A, B, C = (digit * 64 for digit in "abc")


class Tables:
    def __init__(self, **tables):
        self.tables = tables

    def get(self, table, key):
        return self.tables.get(table, {}).get(key)

    def scan(self, table, prefix=""):
        return ((key, row) for key, row in sorted(self.tables.get(table, {}).items()) if key.startswith(prefix))


def layers(**states):
    """Tables with a layer for each (ID digit, state): its tree is called after ID and state."""
    found = {digit * 64: (f"{digit}-{state}", state) for digit, state in states.items()}
    return {"ids": {key: {"txid": txid} for key, (txid, _) in found.items()},
            "layers": {txid: {"state": state, "layer_id": key} for key, (txid, state) in found.items()}}


def stacked(own, *beneath):
    return Stacked(own, [(f"uuid{n}", each) for n, each in enumerate(beneath, 1)], {"uuid9": "it is unmounted"})


@pytest.mark.parametrize("state", ["staging", "staged", "creating", "incomplete", "quarantined", "deleting", "gone"])
def test_what_is_not_committed_beneath_is_seen_by_no_key(state):
    view = stacked(Tables(), Tables(**layers(a=state), images={A: {"state": state}}))
    assert view.get("ids", A) is view.get("layers", f"a-{state}") is view.get("images", A) is None
    assert [*view.scan("ids"), *view.scan("layers"), *view.scan("images")] == []


@pytest.mark.parametrize(("own", "seen"), [
    ("committed", None), ("quarantined", None), ("creating", "uuid1"), ("incomplete", "uuid1"), ("deleting", "uuid1"),
])
def test_an_own_layer_hides_one_beneath_when_it_is_at_rest(own, seen):
    view = stacked(Tables(**layers(a=own)), Tables(**layers(a="committed")))
    assert view.get("ids", A).get(STORE) == seen
    assert [row.get(STORE) for _, row in view.scan("ids")] == [seen]


def test_an_own_layer_in_flight_is_seen_where_there_is_none_beneath():
    view = stacked(Tables(**layers(a="creating")), Tables())
    assert view.get("ids", A) == {"txid": "a-creating"} and [key for key, _ in view.scan("ids")] == [A]


def test_a_scan_is_in_order_and_each_key_comes_once_from_the_nearest():
    view = stacked(Tables(**layers(b="committed")), Tables(**layers(a="committed", b="committed")),
                   Tables(**layers(a="committed", c="committed")))
    assert [(key, row.get(STORE)) for key, row in view.scan("ids")] == [(A, "uuid1"), (B, None), (C, "uuid2")]
    assert [key for key, _ in view.scan("ids", "b")] == [B]


def test_names_beneath_belong_to_whom_the_nearest_store_gave_them():
    below = Tables(names={"one": {"id": A}, "two": {"id": A}}, named={f"{A}/one": {}, f"{A}/two": {}})
    view = stacked(Tables(names={"one": {"id": B}}, named={f"{B}/one": {}}), below)
    assert view.get("names", "one") == {"id": B} and view.get("names", "two")["id"] == A
    assert [key for key, _ in view.scan("named")] == [f"{A}/two", f"{B}/one"]


def test_a_digest_leads_to_the_layer_that_the_look_up_gives():
    key = f"diff/sha256:0/{A}"
    hidden = stacked(Tables(**layers(a="quarantined")), Tables(**layers(a="committed"), digests={key: {}}))
    assert list(hidden.scan("digests", "diff/")) == []
    shown = stacked(Tables(), Tables(**layers(a="committed"), digests={key: {}}))
    assert [each for each, _ in shown.scan("digests", "diff/")] == [key]


@pytest.mark.parametrize("table", ["users", "leases", "mounts", "open", "content", "claims"])
def test_who_uses_what_beneath_and_what_is_in_flight_there_are_not_seen(table):
    view = stacked(Tables(), Tables(**{table: {"key": {}}}))
    assert view.get(table, "key") is None and list(view.scan(table)) == []


def test_rows_beneath_are_marked_in_a_copy():
    below = Tables(**layers(a="committed"))
    assert stacked(Tables(), below).get("layers", "a-committed")[STORE] == "uuid1"
    assert STORE not in below.get("layers", "a-committed")


def test_a_row_from_beneath_says_what_it_stands_on_in_its_own_store():
    tables = layers(a="committed", b="committed")
    tables["layers"]["a-committed"]["output"] = {"diff_id": "sha256:1"}
    tables["layers"]["b-committed"]["parent"] = A
    image = {"state": "committed", "layers": [A, B, C], "beneath": {B: {"store": "uuid7", "diff_id": "sha256:2"}}}
    view = stacked(Tables(**layers(a="committed")), Tables(**tables, images={C: image}))
    said = {"store": "uuid1", "diff_id": "sha256:1"}
    assert view.get("layers", "b-committed")["beneath"] == said
    assert view.get("images", C)["beneath"] == {A: said, **image["beneath"], C: {"store": "uuid1", "diff_id": ""}}
    tables["layers"]["b-committed"]["beneath"] = {"store": "uuid7", "diff_id": "sha256:2"}
    assert view.get("layers", "b-committed")["beneath"]["store"] == "uuid7"


def test_why_something_is_missing_is_known_for_each_store():
    view = stacked(Tables())
    assert why_missing(view, "uuid9") == "it is unmounted"
    assert "not there any more" in why_missing(view, "uuid1") and "no store" in why_missing(Tables(), "uuid1")
