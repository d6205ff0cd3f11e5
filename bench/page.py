"""The page: one section for each result that lies in a directory, in the order of the measures.

Only the frame lives here; what a result looks like is the measure's own business.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bench.tables import promised

HEAD = """\
# Performance

Made by `make bench`, which anybody can run again; nothing on this page was written by hand. Times are of whole processes.
"""


def write_page(results: Path, page: Path, measures: Mapping[str, str]) -> str:
    """Write *page* (and its pictures, beside it in ``performance/``) from the JSON files in *results*."""
    pictures = page.parent / "performance"
    sections, targets = [HEAD], []
    for name, module in measures.items():
        found = results / f"{name}.json"
        if not found.exists():
            continue
        result = json.loads(found.read_text())
        if len(sections) == 1:
            first = result["machine"]
            sections.append(_machine(first))
        if "cannot" in result:
            sections.append(f"## {name}\n\nNot measured: {result['cannot']}.\n")
        else:
            pictures.mkdir(parents=True, exist_ok=True)
            other = _other_machine(result["machine"], first)
            targets += [(what + (f" ({other})" if other else ""), *rest) for what, *rest in promised_of(module, result)]
            quick = "*A quick run: fewer rounds than a figure to publish needs.*\n\n" if result.get("quick") else ""
            quick += f"*Measured on another machine or day than what is above: {other}.*\n\n" if other else ""
            quick += f"*Not finished: {result['unfinished']}.*\n\n" if "unfinished" in result else ""
            section = importlib.import_module(module).page(result, pictures)
            title, _, rest = section.partition("\n\n")
            sections.append(f"{title}\n\n{quick}{rest}")
    if targets:
        sections.insert(2, "## What was promised, and what is\n\n" + promised(targets))
    text = "\n".join(sections)
    page.write_text(text)
    return text


def promised_of(module: str, result: Mapping[str, Any]) -> list[tuple[str, str, str, bool]]:
    """The measure's targets and how they fare; none for a measure of which nothing was promised."""
    return list(getattr(importlib.import_module(module), "targets", lambda _result: [])(result))


def _other_machine(facts: Mapping[str, str], first: Mapping[str, str]) -> str:
    """What differs from the page's first section; nothing, if nothing does."""
    return "; ".join(value for key, value in facts.items() if value != first.get(key))


def _machine(facts: Mapping[str, object]) -> str:
    return "Measured on " + "; ".join(f"{value}" for value in facts.values()) + ".\n"
