"""A life told: the steps that the journal has of a layer, tree or image, as lines of text or as a page of HTML.

Only what is shown, and how. Which records belong to a life, and what the disk says, is ``explain``'s.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

__all__ = ["Life", "Step"]


@dataclass(frozen=True, slots=True)
class Step:
    """One record. ``effects`` are the effects on the disk that lie between it and the record before of the same thing.

    ``entity`` is ``<kind>:<key>``; records of one ``group`` are one transaction. ``meaning`` is in the words of the table
    of states. ``after`` are effects that follow it, where no later record tells of them.
    """

    seq: int
    group: int
    time_ns: int
    entity: str
    trigger: str
    source: str
    state: str
    meaning: str
    about: str = ""
    effects: tuple[str, ...] = ()
    after: tuple[str, ...] = ()

    @property
    def subject(self) -> str:
        kind, _, key = self.entity.partition(":")
        return f"{'tree' if kind == 'layer' else kind} {key[:12]}"


@dataclass(frozen=True, slots=True)
class Life:
    """What the journal has of one ``layer``, ``tree`` or ``image``, and what the disk says now, in sentences."""

    kind: str
    id: str
    steps: tuple[Step, ...]
    now: tuple[str, ...] = ()

    def as_json(self) -> dict[str, Any]:
        return {
            "kind": self.kind, "id": self.id, "now": list(self.now),
            "steps": [
                {name: getattr(step, name) for name in Step.__slots__} | {
                    "effects": list(step.effects), "after": list(step.after),
                } for step in self.steps
            ],
        }

    def text(self) -> str:
        """Lines for people: a record each, what it meant, and what lies between."""
        lines, before = [f"{self.kind} {self.id}"], None
        for step in self.steps:
            lines += ["", *_step_lines(step, before)]
            before = step
        return "\n".join([*lines, "", "now:", *(f"  {each}" for each in self.now)]) + "\n"

    def html(self) -> str:
        """A page that needs nothing else: a timeline, with what lies between."""
        from html import escape  # noqa: PLC0415 - costs every start otherwise

        rows, before = [], None
        for step in self.steps:
            rows.append(_step_html(step, before))
            before = step
        now = "".join(f"<li>{escape(each)}</li>" for each in self.now)
        return _PAGE.format(title=escape(f"{self.kind} {self.id}"), rows="\n".join(rows), now=now)


def _moment(time_ns: int) -> str:
    seconds = datetime.fromtimestamp(time_ns // 10**9, tz=UTC).strftime("%Y-%m-%d %H:%M:%S")
    return f"{seconds}.{time_ns // 10**6 % 1000:03d}"


def _passed(nanoseconds: int) -> str:
    """A time between two records; the clock may have been set back meanwhile."""
    seconds = nanoseconds / 1e9
    for unit, size in (("d", 86_400.0), ("h", 3_600.0), ("min", 60.0), ("s", 1.0)):
        if abs(seconds) >= size:
            return f"{seconds / size:+.1f} {unit}"
    return f"{seconds * 1e3:+.1f} ms"


def _between(step: Step, before: Step | None) -> Iterator[str]:
    if before is not None and step.group == before.group:
        yield "in the same transaction"
    elif before is not None:
        yield _passed(step.time_ns - before.time_ns)
    if step.effects:
        yield f"effects before it: {' · '.join(step.effects)}"


def _step_lines(step: Step, before: Step | None) -> Iterator[str]:
    gap = "; ".join(_between(step, before))
    if gap:
        yield f"    {gap}"
    yield f"{step.seq:>6}  {_moment(step.time_ns)}  {step.subject}: {step.trigger}, {step.source} → {step.state}"
    yield f"        {step.meaning}{f' ({step.about})' if step.about else ''}"
    if step.after:
        yield f"    effects after it: {' · '.join(step.after)}"


def _step_html(step: Step, before: Step | None) -> str:
    from html import escape  # noqa: PLC0415

    gap = "; ".join(_between(step, before))
    after = f'<p class="gap">effects after it: {escape(" · ".join(step.after))}</p>' if step.after else ""
    about = f'<p class="about">{escape(step.about)}</p>' if step.about else ""
    return (
        f'<li class="{escape(step.state)}">' + (f'<p class="gap">{escape(gap)}</p>' if gap else "")
        + f'<p><b>{escape(step.trigger)}</b> <span class="move">{escape(step.source)} → {escape(step.state)}</span> '
        f'<span class="of">{escape(step.subject)}</span></p><p>{escape(step.meaning)}</p>{about}'
        f'<p class="when">record {step.seq}, {_moment(step.time_ns)}</p>{after}</li>'
    )


_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title><style>
body {{ font: 15px/1.45 system-ui, sans-serif; max-width: 52rem; margin: 2rem auto; padding: 0 1rem; color: #222; }}
h1 {{ font-size: 1.1rem; overflow-wrap: anywhere; }}
ol {{ list-style: none; margin: 0; padding: 0 0 0 1.2rem; border-left: 3px solid #bbb; }}
ol li {{ position: relative; margin: 0 0 1.1rem; }}
ol li::before {{ content: ""; position: absolute; left: -1.65rem; top: .35rem; width: .75rem; height: .75rem;
  border-radius: 50%; background: #888; }}
li.committed::before {{ background: #2a7d2a; }} li.incomplete::before {{ background: #c98a00; }}
li.quarantined::before {{ background: #b00020; }} li.deleting::before, li.gone::before {{ background: #444; }}
p {{ margin: .1rem 0; overflow-wrap: anywhere; }}
.gap {{ color: #777; font-size: .85rem; margin-bottom: .4rem; }} .when, .about {{ color: #555; font-size: .85rem; }}
.move {{ font-family: ui-monospace, monospace; }} .of {{ color: #555; font-size: .85rem; }}
</style></head><body><h1>{title}</h1>
<ol>
{rows}
</ol>
<h2>Now</h2><ul>{now}</ul></body></html>
"""
