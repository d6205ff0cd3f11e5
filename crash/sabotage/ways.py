"""In what order rigs and tests are tried, each with a bound: what is quick and sees much comes first.

A way that does not exist here (a rig that is not in ``crash.__main__.RIGS``, or that this machine cannot run) is an
error and not skipped: a mistake must not survive because nobody looked.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Way:
    """Arguments of ``crash.sabotage.child``, by a name for people. ``seconds`` until it is given up as not noticing."""

    name: str
    arguments: tuple[str, ...]
    seconds: float = 900.0


RIGS = (
    Way("points", ("rig", "points", "--levels", "0.25,0.02,0")),
    Way("posix", ("rig", "posix", "--states", "600")),
    Way("block", ("rig", "block", "--each", "80", "--nested", "0", "--states", "1600"), seconds=1800.0),
    Way("calls", ("rig", "calls", "--every", "9", "--recovery-every", "0"), seconds=1800.0),
    Way("schedule", ("rig", "schedule", "--bound", "1", "--random", "20"), seconds=1800.0),
    Way("lines", ("rig", "lines", "--every", "20"), seconds=1800.0),
)

TESTS = tuple(
    Way("named test", ("pytest", path)) for path in (
        "journal/tests/test_journal_record.py",
        "journal/tests/test_journal_basics.py",
        "journal/tests/test_journal_archive.py",
        "journal/tests/test_journal_damage.py",
        "journal/tests/test_journal_mapped.py",
        "journal/tests/test_journal_safety.py",
        "journal/tests/test_journal_crash.py",
        "journal/tests/test_journal_lmdb_errors.py",
        "journal/tests/test_journal_forged.py",
        "journal/tests/test_journal_rare.py",
        "journal/tests/test_journal_note.py",
        "journal/tests/test_journal_salvage.py",
        "journal/tests/test_journal_pages.py",
        "tests/test_recovery.py",
        "tests/test_recovery_rare.py",
        "tests/test_repair.py",
        "tests/test_repair_rest.py",
        "tests/test_repair_verdicts.py",
        "tests/test_repair_whole.py",
        "tests/test_write_order.py",
        "tests/test_stage_apply.py",
        "tests/test_delete.py",
        "tests/test_interrupts.py",
        "tests/test_open.py",
        "tests/test_pull.py",
        "tests/test_signatures.py",
        "tests/test_concurrency.py",
        "tests/test_rebuild.py",
    )
)
"""The last resort: the ordinary tests of what the mistakes are in."""


def all_ways() -> tuple[Way, ...]:
    return (*RIGS, *TESTS)
