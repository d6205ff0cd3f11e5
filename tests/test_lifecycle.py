"""The machine is the only way a state changes, and every row of its table is needed."""

import subprocess
import sys
from pathlib import Path

import pytest

from layerstore.lifecycle import states
from layerstore.lifecycle.machine import IllegalTransitionError, fire
from layerstore.lifecycle.states import TRANSITIONS, Kind, State, Trigger

SCENARIO = Path(__file__).parent / "all_transitions.py"


class FakeTxn:
    def __init__(self, state):
        self.state, self.appended = state, []

    def get(self, table, key):
        return None if self.state == "absent" else {"state": self.state}

    def append(self, **record):
        self.appended.append(record)


@pytest.mark.parametrize("row", TRANSITIONS, ids=lambda r: f"{r.kind}-{r.source}-{r.trigger}")
def test_each_row_of_the_table_journals_before_the_state_has_changed(row):
    txn = FakeTxn(row.source.value)
    fire(txn, row.kind, "key", row.trigger, txid="t", payload={"a": 1})
    (record,) = txn.appended
    assert (record["from_state"], record["to_state"], record["trigger"]) == (row.source, row.dest, row.trigger)
    assert record["entity"] == f"{row.kind.value}:key"


def test_what_the_table_lacks_is_refused_and_nothing_is_journaled():
    legal = {(t.kind, t.trigger, t.source) for t in TRANSITIONS}
    tried = 0
    for kind in Kind:
        for trigger in Trigger:
            for state in State:
                if (kind, trigger, state) in legal:
                    continue
                txn = FakeTxn(state.value)
                with pytest.raises(IllegalTransitionError):
                    fire(txn, kind, "key", trigger, txid="t")
                assert not txn.appended
                tried += 1
    assert tried > 500


def test_when_journaling_fails_the_transition_did_not_happen():
    class Broken(FakeTxn):
        def append(self, **record):
            raise OSError("no journal")

    with pytest.raises(OSError, match="no journal"):
        fire(Broken("staged"), Kind.LAYER, "key", Trigger.CLAIM, txid="t")


def test_no_transition_leads_back_from_the_commit_point():
    forward = {State.COMMITTED, State.QUARANTINED}
    assert {t.dest for t in TRANSITIONS if t.kind is Kind.LAYER and t.source is State.INCOMPLETE} == forward


@pytest.mark.timeout(120)
def test_the_scenario_that_walks_every_transition_passes(tmp_path):
    done = run(tmp_path)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("number", range(len(TRANSITIONS)), ids=lambda n: f"{TRANSITIONS[n].kind}-"
                         f"{TRANSITIONS[n].source}-{TRANSITIONS[n].trigger}")
def test_without_any_one_row_product_and_recovery_fail(tmp_path, number):
    row = TRANSITIONS[number]
    done = run(tmp_path, str(number))
    assert done.returncode != 0, f"nothing needs {row}"
    assert "IllegalTransition" in done.stderr or "has no attribute" in done.stderr or "not pass" in done.stderr, done.stderr


def run(tmp_path, *arguments):
    return subprocess.run(
        [sys.executable, SCENARIO, tmp_path, *arguments], capture_output=True, text=True, check=False,
        env={**__import__("os").environ},
    )


def test_the_diagram_shows_every_transition():
    for kind in Kind:
        arrows = [line.strip().replace("[*]", "absent").split(": ") for line in states.diagram(kind).splitlines()[1:]]
        drawn = [(*ends.split(" --> "), trigger) for ends, triggers in arrows for trigger in triggers.split(", ")]
        assert sorted(drawn) == sorted(
            (row.source.value, row.dest.value, row.trigger.value) for row in TRANSITIONS if row.kind is kind)
        assert len(arrows) == len({ends for ends, _ in arrows})
