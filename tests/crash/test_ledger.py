"""The ledger of several programs at work at once: what each was told binds, what is shared proves nothing of either."""

from layerstore.testing import Ledger, expectation
from layerstore.testing.ledger import layer
from layerstore.testing.oracle import compare

A, B, SHARED = layer("a", "1"), layer("b", "2"), layer("s", "3")


def lines(*script):
    """The ledger after (ledger, "ask" | "told", facts...) steps of two programs."""
    written, running = [], {}
    ledgers = {who: Ledger(written.append) for who in {step[0] for step in script}}
    for who in ledgers:
        ledgers[who]._tag = who
    for who, what, *facts in script:
        if what == "ask":
            running[who] = ledgers[who].asking(*facts)
            running[who].__enter__()
        else:
            running.pop(who).__exit__(None, None, None)
    return written


def test_what_one_was_told_must_be_so_while_another_still_asks_for_the_same():
    expect = expectation(lines(("x", "ask", A, SHARED), ("y", "ask", B, SHARED), ("x", "told")))
    assert expect.value("layer:s") == {"3"}
    assert compare({"layer:a": "1"}, expect) == ["layer:s is None, but must be 3"]


def test_what_another_is_about_to_take_away_may_be_gone_already():
    expect = expectation(lines(("x", "ask", SHARED), ("y", "ask", layer("s", None)), ("x", "told")))
    assert expect.value("layer:s") == {"3", None}


def test_a_layer_that_two_ask_for_does_not_make_half_of_either():
    expect = expectation(lines(("x", "ask", A, SHARED), ("y", "ask", B, SHARED)))
    assert compare({"layer:s": "3", "layer:b": "2"}, expect) == []


def test_half_of_what_one_alone_asked_for_is_found():
    expect = expectation(lines(("x", "ask", A, SHARED)))
    assert compare({"layer:s": "3"}, expect) == ["half of what was asked for came about: ['layer:a', 'layer:s']"]
