"""The figures of a report without its states: small enough to be committed, and all that the page of figures is made from.

``crash/results/evidence.json`` is one; ``make figures`` makes ``docs/evidence.md`` of it. Counted is in ``gather``.
"""

from __future__ import annotations

import json
from typing import Any

from crash.report.gather import OUTCOMES, Report, RigReport

_OF = {   # of the rows of the other tools, what the page shows
    "models": ("scope", "broken", "states", "closed", "violation"),
    "sabotage": ("name", "caught_by", "after_states", "note"),
    "barriers": ("leave_out", "caught_by", "states", "reason"),
}
_OF_A_VIOLATION = ("workload", "fs", "fault", "violations", "seed", "reproduce")


def summary(report: Report) -> dict[str, Any]:
    """The figures of *report*, as JSON has them."""
    tables = {table: [{key: row.get(key) for key in keys} for row in getattr(report, table)] for table, keys in _OF.items()}
    return {"redo": share(report.redo, report.states), "rigs": [_rig(rig) for rig in report.rigs], **tables}


def _rig(rig: RigReport) -> dict[str, Any]:
    return {
        "name": rig.name, "about": rig.about, "states": rig.states, "redo": share(rig.redo, rig.states),
        "outcomes": {each: rig.outcomes[each] for each in OUTCOMES}, "by_fs": dict(sorted(rig.by_fs.items())),
        "seconds": rig.run.get("seconds"), "commit": rig.run.get("commit"),
        "violations": [{key: state[key] for key in _OF_A_VIOLATION} for state in rig.violations],
    }


def save(found: dict[str, Any], path: str) -> None:
    """Write a summary, a line for each row, so that a change of one shows as one."""
    with open(path, "w", encoding="utf-8") as file:
        file.write("{\n" + ",\n".join(f"{json.dumps(key)}: {_rows(value)}" for key, value in found.items()) + "\n}\n")


def _rows(value: Any) -> str:
    if not isinstance(value, list):
        return json.dumps(value, ensure_ascii=False)
    return "[" + ",".join(f"\n {json.dumps(row, ensure_ascii=False)}" for row in value) + "]"


def share(part: int, whole: int) -> str:
    """In percent."""
    if not whole:
        return "–"
    percent = 100 * part / whole
    return f"{percent:.0f} %" if percent in (0, 100) or percent >= 1 else "< 1 %"
