"""How often each target was run, at which revision, and what was found: ``figures.json``, and the README's table of it.

Numbers are only added by runs; nobody writes them by hand. A revision that was changed since its commit ends in ``+``.
"""

from __future__ import annotations

import fcntl
import importlib
import json
import os
import subprocess
from typing import Any

from fuzz.targets import TARGETS

_HERE = os.path.dirname(os.path.abspath(__file__))
_FIGURES = os.path.join(_HERE, "figures.json")
_README = os.path.join(_HERE, "README.md")
_BEGIN, _END = "<!-- figures -->\n", "<!-- end of figures -->\n"


def add(name: str, executions: int, seconds: float) -> None:
    """Add a run of the target *name*."""
    revision = _revision()
    with open(_FIGURES, "a+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)   # two runs may end at once
        file.seek(0)
        figures = json.loads(file.read() or "{}")
        row = figures.setdefault(name, {"executions": 0, "seconds": 0, "open": 0, "revisions": {}})
        row["executions"] += executions
        row["seconds"] = round(row["seconds"] + seconds)
        row["rate"] = round(executions / max(seconds, 1.0))   # a second, in this run: what a campaign plans with
        row["revisions"][revision] = row["revisions"].pop(revision, 0) + executions   # the last one stands last
        file.truncate(0)
        file.write(json.dumps(figures, indent=1) + "\n")


def read() -> dict[str, Any]:
    try:
        with open(_FIGURES) as file:
            return dict(json.load(file))
    except FileNotFoundError:
        return {}


def write_table(out: str) -> None:
    """Look which findings below *out* are still open, and put the table into the README."""
    figures = read()
    for name in TARGETS:
        figures.setdefault(name, {"executions": 0, "seconds": 0, "open": 0, "revisions": {}})["open"] = _open(name, out)
    with open(_FIGURES, "w") as file:
        file.write(json.dumps(figures, indent=1) + "\n")
    with open(_README) as file:
        before, rest = file.read().split(_BEGIN)
    with open(_README, "w") as file:
        file.write(before + _BEGIN + table(figures) + _END + rest.split(_END)[1])


def table(figures: dict[str, Any]) -> str:
    """The table, as the README has it."""
    lines = ["| target | executions | hours | last revision | findings: open | settled |", "|---|--:|--:|---|--:|--:|"]
    for name in TARGETS:
        row = figures.get(name, {"executions": 0, "seconds": 0, "open": 0, "revisions": {}})
        mended = os.path.join(_HERE, "findings", name)
        count = len(os.listdir(mended)) if os.path.isdir(mended) else 0
        last = list(row["revisions"])[-1:] or ["-"]
        lines.append(
            f"| `{name}` | {row['executions']:,} | {row['seconds'] / 3600:.1f} | {last[0]} | {row['open']} | {count} |",
        )
    return "\n".join(lines) + "\n"


def _open(name: str, out: str) -> int:
    """How many of the inputs that broke the invariant still do."""
    where = os.path.join(out, "findings", name)
    check = importlib.import_module(f"fuzz.targets.{name}").check
    still = 0
    for found in sorted(os.listdir(where)) if os.path.isdir(where) else ():
        if not found.startswith("slow-unit"):
            with open(os.path.join(where, found), "rb") as file:
                data = file.read()
            try:
                check(data)
            except Exception as error:  # noqa: BLE001 - whatever broke it
                print(f"{name}: {found}: {type(error).__name__}: {error}")
                still += 1
    return still


def _revision() -> str:
    def git(*arguments: str) -> str:
        return subprocess.run(["git", "-C", _HERE, *arguments], capture_output=True, text=True, check=False).stdout.strip()

    changed = git("status", "--porcelain", "--untracked-files=no", "--", ":/src", ":/journal", ":/fuzz/targets")
    return (git("rev-parse", "--short=10", "HEAD") or "unknown") + ("+" if changed else "")
