"""What lies in a directory of results, gathered: every figure in the report is counted here, from the lines."""

from __future__ import annotations

import glob
import importlib
import json
import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from crash.report.places import place, story
from crash.state import State, read

OUTCOMES = ("committed", "rolled-back", "kept", "error", "violation")
_VIOLATIONS, _EXAMPLES = 50, 2   # shown in full, of each rig (counted are all); other states shown, per outcome


class NothingToReportError(Exception):
    """The directory has no lines of any rig."""


@dataclass
class RigReport:
    """What one rig explored. A rig without lines has 0 states: it was not run."""

    name: str
    about: str
    states: int = 0
    redo: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    by_fs: Counter[str] = field(default_factory=Counter)
    by_workload: Counter[str] = field(default_factory=Counter)
    places: defaultdict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    violations: list[dict[str, Any]] = field(default_factory=list)
    examples: list[dict[str, Any]] = field(default_factory=list)
    run: dict[str, Any] = field(default_factory=dict)

    def add(self, number: int, state: State) -> None:
        self.states += 1
        self.redo += state.redo
        self.outcomes[state.outcome] += 1
        self.by_fs[state.fs or "–"] += 1
        self.by_workload[state.workload] += 1
        self.places[place(state)][state.outcome] += 1
        alike = [each for each in self.examples if (each["outcome"], each["redo"]) == (state.outcome, state.redo)]
        if state.violations and len(self.violations) < _VIOLATIONS:
            self.violations.append(_shown(number, state))
        elif not state.violations and len(alike) < _EXAMPLES:
            self.examples.append(_shown(number, state))


def _shown(number: int, state: State) -> dict[str, Any]:
    return {"number": number, **asdict(state), "story": story(state)}


@dataclass
class Report:
    """Everything on the page."""

    rigs: list[RigReport]
    sabotage: list[dict[str, Any]] = field(default_factory=list)
    barriers: list[dict[str, Any]] = field(default_factory=list)
    models: list[dict[str, Any]] = field(default_factory=list)
    peer: dict[str, Any] | None = None

    @property
    def states(self) -> int:
        return sum(rig.states for rig in self.rigs)

    @property
    def violations(self) -> int:
        return sum(rig.outcomes["violation"] for rig in self.rigs)

    @property
    def redo(self) -> int:
        return sum(rig.redo for rig in self.rigs)

    @property
    def filesystems(self) -> list[str]:
        return sorted({fs for rig in self.rigs for fs in rig.by_fs})

    @property
    def caught(self) -> int:
        return sum(bool(row["caught_by"]) and row["caught_by"] != "equivalent" for row in self.sabotage)

    def as_json(self) -> dict[str, Any]:
        totals = {
            "states": self.states, "redo": self.redo, "violations": self.violations,
            "sabotages": len(self.sabotage), "sabotages_caught": self.caught,
        }
        return {"totals": totals, **vars(self), "rigs": [vars(rig) for rig in self.rigs]}


def gather(directory: str, rigs: Mapping[str, str]) -> Report:
    """Read *directory*. *rigs*: each rig's module by name; each has its place, whether it was run or not.

    NothingToReportError if there is not a single line.
    """
    found = [_rig(directory, name, module) for name, module in sorted(rigs.items())]
    for path in sorted(glob.glob(os.path.join(directory, "*.jsonl"))):
        name = os.path.basename(path).removesuffix(".jsonl")
        if name not in rigs:
            about = (_read(os.path.join(directory, f"{name}.run.json")) or {}).get("about")
            found.append(_lines(directory, RigReport(name, about or "not a rig of this version")))
    report = Report(
        [rig for rig in found if rig is not None],
        sabotage=[_mistake(row) for row in _rows(directory, "sabotage.json")],
        barriers=_rows(directory, "barriers.json"),
        models=[scope for path in sorted(glob.glob(os.path.join(directory, "model-*.json"))) for scope in _scopes(path)],
        peer=_read(os.path.join(directory, "peer.json")),
    )
    if report.states == 0:
        raise NothingToReportError(f"{directory} has no states; make some: python -m crash run RIG --out {directory}")
    return report


def _rig(directory: str, name: str, module: str) -> RigReport:
    about = (importlib.import_module(module).__doc__ or "").strip().split("\n")[0]
    return _lines(directory, RigReport(name, about))


def _lines(directory: str, rig: RigReport) -> RigReport:
    path = os.path.join(directory, f"{rig.name}.jsonl")
    if os.path.exists(path):
        for number, state in enumerate(read(path), 1):
            rig.add(number, state)
    rig.run = _read(os.path.join(directory, f"{rig.name}.run.json")) or {}
    return rig


def _read(path: str) -> Any:
    if not os.path.exists(path):
        return None
    with open(path, encoding="utf-8") as file:
        return json.load(file)


def _rows(directory: str, name: str) -> list[dict[str, Any]]:
    """The rows of a table: a list, or ``rows`` of a document."""
    found = _read(os.path.join(directory, name)) or []
    return list(found["rows"] if isinstance(found, dict) else found)


_DIRECTORIES = re.compile(r"(?<![\w>.-])/(?:[\w.+-]+/)+")   # of the machine that it was found on


def _mistake(row: dict[str, Any]) -> dict[str, Any]:
    patch = row.get("patch") or f"- {row.get('was', '')}\n+ {row.get('now', '')}"
    note = _DIRECTORIES.sub("", row.get("note") or "")
    return {**row, "note": note, "patch": patch, "caught_by": row.get("caught_by") or "",
            "after_states": row.get("after_states")}


def _scopes(path: str) -> Iterator[dict[str, Any]]:
    found = _read(path)
    for scope in found.get("scopes", [found]):
        yield {"scope": os.path.basename(path)[6:-5], **scope}
