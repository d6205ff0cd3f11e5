"""The templates, filled: the page for people, and the figures for the docs."""

from __future__ import annotations

import json
import os
from typing import Any

import jinja2

from crash.report.gather import OUTCOMES, Report
from crash.report.summary import share, summary


def write(report: Report, directory: str, *, figures: str | None = None) -> None:
    """``report.json`` and ``report.html`` into *directory*; with *figures*, the page of figures there."""
    with open(os.path.join(directory, "report.json"), "w", encoding="utf-8") as file:
        json.dump(report.as_json(), file, indent=1, sort_keys=True)
    _fill("report.html.j2", os.path.join(directory, "report.html"), report, autoescape=True)
    if figures:
        write_figures(summary(report), figures)


def write_figures(found: dict[str, Any], path: str) -> None:
    """The page of figures, of a summary."""
    _fill("figures.md.j2", path, found, autoescape=False)


def _fill(template: str, path: str, report: Report | dict[str, Any], *, autoescape: bool) -> None:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(os.path.dirname(__file__)), autoescape=autoescape, trim_blocks=True,
        lstrip_blocks=True, undefined=jinja2.StrictUndefined, keep_trailing_newline=True,
    )
    environment.filters |= {"number": _number, "share": share, "cell": _cell}
    text = environment.get_template(template).render(report=report, outcomes=OUTCOMES)
    with open(path, "w", encoding="utf-8") as file:
        file.write(text)


def _number(value: Any) -> str:
    """With thin spaces between thousands."""
    return f"{value:,}".replace(",", "\u202f") if isinstance(value, int) else str(value)


def _cell(value: str) -> str:
    """Text that may stand in a cell of a markdown table."""
    return str(value).replace("|", "\\|").replace("\n", "<br>")

