"""Every short sequence of operations: which there are, and that none of those explored breaks a promise."""

import argparse
import itertools

import pytest

from crash import sequences as rig
from crash.sequences.alphabet import LETTERS, Known, renamed, sequences
from crash.state import collect

pytestmark = pytest.mark.timeout(3000)


def options(**given):
    names = ("states", "seconds", "workload", "out", "work", "sequence", "state")
    return argparse.Namespace(**{**dict.fromkeys(names), "seed": 1, "workers": 2, "each": 8, "kills": 2, **given})


def test_there_are_380_sequences():
    lengths = [len(each) for each in sequences()]
    assert [lengths.count(n) for n in (1, 2, 3)] == [6, 42, 332]


def test_no_sequence_is_another_with_its_layers_renamed():
    all_ = set(sequences())
    for sequence in all_:
        for order in itertools.permutations(LETTERS):
            other = renamed(sequence, dict(zip(LETTERS, order)))
            assert other == sequence or other not in all_, (sequence, other)


def test_every_sequence_of_any_layers_is_one_of_them_up_to_names():
    def anything(known, length):
        if length == 0:
            yield ()
            return
        for verb, letters in [("put", x) for x in LETTERS] + [("drop", x) for x in LETTERS] + [
            ("stage", x) for x in LETTERS] + [("both", "A B"), ("both", "A C"), ("both", "B C"), ("checkpoint", ""),
                                              ("collect", ""), ("pull", "")]:
            named = set(letters.split())
            if (verb == "drop" and not named <= known.present) or (verb in ("stage", "both") and named & known.present):
                continue
            operation = f"{verb} {letters}".strip()
            yield from ((operation, *rest) for rest in anything(known.after(operation), length - 1))

    known = set(sequences())
    for sequence in anything(Known(), 3):
        variants = {renamed(sequence, dict(zip(LETTERS, order))) for order in itertools.permutations(LETTERS)}
        assert variants & known, f"{sequence} is missing"


def test_no_crash_state_of_a_drawn_slice_breaks_a_promise(record_property):
    tally = collect(rig.states(options(states=1200)))
    record_property("states", tally.states)
    assert [(s.workload, s.fault, s.violations, s.reproduce) for s in tally.bad] == []
    assert tally.states == 1200
    assert len(tally.by_workload) >= 100, "too few sequences were explored"


def test_without_a_limit_every_sequence_is_explored(monkeypatch, tmp_path):
    chosen = [("put A",), ("put A", "drop A"), ("put A", "drop A", "put A")]
    monkeypatch.setattr(rig, "sequences", lambda: chosen)
    monkeypatch.setattr(rig, "explore", lambda sequence, *_: iter([",".join(sequence)]))
    found = list(rig.preloaded(options(work=str(tmp_path))))
    assert sorted(found) == sorted(",".join(each) for each in chosen)


def test_a_state_and_a_kill_are_shown_again_by_their_names():
    found = list(rig.states(options(sequence="put A,drop A,put A", each=4, kills=2)))
    for each in (found[0], found[-1]):
        shown = list(rig.states(options(sequence=each.workload, state=each.details["state"])))
        assert [s.line() for s in shown] == [each.line()]


def test_a_kill_that_does_not_land_is_an_error():
    with pytest.raises(RuntimeError):
        list(rig.states(options(sequence="put A", state="kill:publish.rename:before:9")))
