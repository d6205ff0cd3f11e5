"""The comparison as a page of markdown: the counts, then every kill point, neighbours with the same end as one row."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby
from typing import Any

_HEAD = """# The same kills, beside containers/storage

{subjects}. Found by `python -m crash.peer crash/results` as root; {fs}; {every}; at commit {commit}.
`make figures` makes this page of it.

One layer is imported on a parent that is there already: the same two tars, the same file system, each store with its
own defaults. The kernel stops the program before every change that it makes to the disk (and to its mounts), whichever
of its threads or child processes makes it, and all of it is killed there. Then the store is opened and listed, as the
next command would, and its trees are compared with the tar; the same import is made again; at last the clean-up that
the store's command line has is run. It is about kills only: what a loss of power leaves is not compared here.

* **torn**: listed and not whole, or the parent damaged. **left behind**: files that belong to nothing the store
  lists, after the next open; then after the same import again; then after its clean-up.
* **kept**: unfinished work that the store lists and has a rule for.
"""


def page(found: dict[str, Any]) -> str:
    """The page, from what ``python -m crash.peer`` found."""
    subjects = found["subjects"]
    every = "each change" if found["every"] == 1 else f"every {found['every']}th change only"
    head = _HEAD.format(
        subjects=" and ".join(f"{each['version']}, `{each['verb']}`" for each in subjects),
        fs=f"on {found['fs']}", every=every, commit=found["commit"],
    )
    return "\n".join([head, *_counts(subjects), *(line for each in subjects for line in _points(each))]) + "\n"


def _counts(subjects: list[dict[str, Any]]) -> Iterator[str]:
    yield "| | " + " | ".join(each["name"] for each in subjects) + " |"
    yield "|---|" + "---:|" * len(subjects)
    rows: list[tuple[str, Any]] = [
        ("kill points", lambda p: bool(p["number"])),
        ("committed", lambda p: p["outcome"] == "committed"),
        ("rolled back", lambda p: p["outcome"] == "rolled back"),
        ("… of which with the finished layer kept", lambda p: p["outcome"] == "rolled back" and p["kept"]),
        ("torn", lambda p: p["outcome"] == "torn"),
        ("does not open", lambda p: p["outcome"] == "unusable"),
        ("something of the older layer's lost", lambda p: p["lost"]),
        ("the same import again fails", lambda p: not p["again"]),
        ("files left behind after the next open", lambda p: p["left"]),
        ("… of which only in the run directory, which a reboot empties",
         lambda p: p["left"] and all(each.startswith("run/") for each in p["left"])),
        ("… after the same import again", lambda p: p["left_after"]),
        ("… after its clean-up", lambda p: p["left_repaired"]),
    ]
    for title, holds in rows:
        yield f"| {title} | " + " | ".join(str(sum(bool(holds(p)) for p in s["points"])) for s in subjects) + " |"
    yield "| its clean-up | " + " | ".join(f"`{each['repair']}`" for each in subjects) + " |"


def _points(subject: dict[str, Any]) -> Iterator[str]:
    yield f"\n## {subject['name']}, point by point\n"
    yield "| killed before change | | outcome | left behind | kept, lost, said |"
    yield "|---|---|---|---|---|"
    for _, group in groupby(subject["points"], key=_end):
        points = list(group)
        first, last = points[0], points[-1]
        numbers = f"{first['number']}" if first is last else f"{first['number']}–{last['number']}"
        changes = f"`{first['change']}`" if first is last else f"`{first['change']}` … `{last['change']}`"
        said = [*(f"kept `{each}`" for each in first["kept"]), *(f"lost `{each}`" for each in first["lost"]),
                *first["detail"]]
        left = ", ".join(f"`{each}`" for each in first["left"])
        yield f"| {numbers} | {changes} | {first['outcome']} | {left} | {'; '.join(said)} |"


def _end(point: dict[str, Any]) -> tuple[object, ...]:
    return (point["outcome"], *(tuple(point[key]) for key in ("left", "kept", "lost", "detail")), point["again"])
