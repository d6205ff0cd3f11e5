"""Markdown tables, and how numbers are written in them. Knows nothing of what is measured."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table. The first column is text, the others stand to the right."""
    lines = [f"| {' | '.join(head)} |", f"|{'|'.join(['---', *['---:'] * (len(head) - 1)])}|"]
    for row in rows:
        if len(row) != len(head):
            raise ValueError(f"{len(row)} cells under {len(head)} heads: {row}")
        lines.append(f"| {' | '.join(str(cell).replace('|', chr(92) + '|') for cell in row)} |")
    return "\n".join(lines) + "\n"


def seconds(value: float | None) -> str:
    """Three figures, as many as one believes."""
    if value is None:
        return "–"
    return f"{value:.3f}" if value < 1 else f"{value:.2f}" if value < 10 else f"{value:.1f}"


def spread(middle: float, low: float, high: float) -> str:
    return f"{middle:.2f} ({low:.2f}–{high:.2f})"


def promised(rows: Iterable[tuple[str, str, str, bool]]) -> str:
    """What was promised beside what is: rows of what, target, measured, and whether it is reached."""
    return table(("", "target", "measured", ""),
                 [(what, target, measured, "reached" if reached else "**not reached**")
                  for what, target, measured, reached in rows])
