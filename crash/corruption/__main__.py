"""``python -m crash.corruption FILE.jsonl``: what a run of the rig came to, as the table of docs/check.md has it."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator

from crash.state import State, read

_DEPTHS = ("open", "recovery", "structure", "metadata", "content", "")
_OUTCOMES = ("mended", "mended with the source", "quarantined", "rebuilt", "left", "no effect")


def outcome(state: State) -> str:
    """In the words of the table: apart is what needed the source."""
    said = str(state.details["outcome"])
    return "mended with the source" if said == "mended" and "the source" in state.details.get("source", "") else said


def table(states: list[State]) -> Iterator[str]:
    """Lines of markdown: what was damaged, where it was found and what became of it; then why some had no effect."""
    count = Counter(state.workload for state in states)
    found = Counter((state.workload, state.details.get("depth", "")) for state in states)
    became = Counter((state.workload, outcome(state)) for state in states)
    heads = ["damaged", "seeds", *(each or "not found" for each in _DEPTHS), *_OUTCOMES, "violations"]
    yield f"| {' | '.join(heads)} |"
    yield "|---" + "|---:" * (len(_DEPTHS) + len(_OUTCOMES) + 2) + "|"
    for what, number in count.most_common():
        bad = sum(bool(state.violations) for state in states if state.workload == what)
        figures = [number, *(found[what, each] for each in _DEPTHS), *(became[what, each] for each in _OUTCOMES)]
        yield f"| {what} | {' | '.join(str(each or '') for each in figures)} | {bad} |"
    yield ""
    why = Counter((state.workload, state.details.get("why", "")) for state in states if outcome(state) == "no effect")
    for (what, reason), number in why.most_common():
        yield f"- {what}, {number}: {reason}"


if __name__ == "__main__":
    print("\n".join(table(list(read(sys.argv[1])))))
