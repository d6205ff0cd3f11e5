"""``check`` and ``repair``: is the store still good, and what to do if not. Imported when one of them is named."""

from __future__ import annotations

import dataclasses
import re
import time
from datetime import datetime
from typing import Any

import click

from layerstore.cli import output
from layerstore.cli.registry import registry_options

DAMAGE = 3
_UNITS = {"s": 1, "m": 60, "h": 3_600, "d": 86_400}


def seconds(text: str) -> float:
    """``30``, ``30s``, ``5m``, ``12h`` or ``7d``, in seconds."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([smhd]?)", text)
    if found is None:
        raise click.UsageError(f"{text!r} is no time span: 30s, 5m, 12h, 7d")
    return float(found[1]) * _UNITS[found[2] or "s"]


def since(text: str) -> int:
    """A span before now, or a date and time, in nanoseconds since 1970."""
    try:
        return int(datetime.fromisoformat(text).timestamp() * 1e9)
    except ValueError:
        return time.time_ns() - int(seconds(text) * 1e9)


@click.command()
@click.option("--depth", type=click.Choice(["structure", "metadata", "content"]), default=None,
              help="Look at parts and side files, every path's attributes, too, or every digest, too [default: structure].")
@click.option("--content", is_flag=True, help="The same as --depth content.")
@click.option("--since", "since_text", metavar="WHEN",
              help="Leave out what was found sound since then: 7d, 12h, 2026-11-30.")
@click.option("--budget", metavar="SECONDS",
              help="Begin no further layer after that time; the next check goes on: 30s, 5m.")
@click.option("--workers", type=click.IntRange(1, 64), help="Threads that hash (default: one a CPU, at most 8).")
@click.option("--rate", type=click.FloatRange(min=0, min_open=True), metavar="MB/S", help="Read at most so much a second.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
@click.pass_context
def check(
    context: click.Context, depth: str | None, content: bool, since_text: str | None, budget: str | None,
    workers: int | None, rate: float | None, as_json: bool,
) -> None:
    """Look for damage, beside everything else that goes on. Exit status 3 if there is any.

    With --since or --budget the store is opened for writing (and recovered): when each layer was found sound is kept.
    """
    settings: Any = context.obj
    with settings.open(write=since_text is not None or budget is not None) as store:
        report = store.check(
            depth=depth or ("content" if content else "structure"), workers=workers,
            since_ns=None if since_text is None else since(since_text),
            budget=None if budget is None else seconds(budget), rate=None if rate is None else rate * 1e6,
        )
    if as_json:
        output.as_json({"sound": report.sound, **dataclasses.asdict(report)})
    else:
        output.lines(f"{f.code} {f.subject}: {f.message}" for f in report.findings)
        click.echo(_summary(report))
    context.exit(0 if report.sound else DAMAGE)


def _summary(report: Any) -> str:
    left = [
        (report.unread, "paths may not be read by this user"), (report.recent, "layers were looked at recently"),
        (report.left, "layers are left for the next check"),
    ]
    return (
        f"{report.layers} layers, {report.images} images: "
        + ("sound" if report.sound else f"{len(report.findings)} findings")
        + "".join(f"; {number} {what}" for number, what in left if number)
    )


@click.command()
@click.option("--from", "source", metavar="SOURCE", help="Where good copies are: as for pull.")
@click.option("--depth", type=click.Choice(["structure", "metadata", "content"]), default="content", show_default=True,
              help="How closely to look for damage.")
@click.option("--layer", "only", multiple=True, metavar="ID", help="Only this layer, by its ID in full, or a name.")
@click.option("--dry-run", is_flag=True, help="Show the plan; change nothing, fetch nothing.")
@click.option("--wait", type=float, default=10.0, show_default=True, help="Seconds to wait for readers of a damaged layer.")
@registry_options
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
@click.pass_context
def repair(
    context: click.Context, source: str | None, depth: str, only: tuple[str, ...], dry_run: bool, wait: float,
    registry: Any, as_json: bool,
) -> None:
    """Put damage right from the nearest good copy, in other layers or SOURCE; quarantine what cannot be. Deletes nothing.

    Exit status 3 if anything is left that is damaged.
    """
    from layerstore.pull import PullOptions  # noqa: PLC0415

    settings: Any = context.obj
    with settings.open(write=not dry_run) as store:
        report = store.repair(
            depth=depth, layers=[store.resolve(each)[1] for each in only], source=source, wait=wait, dry_run=dry_run,
            options=PullOptions(registry=registry),
        )
    if as_json:
        output.as_json({"clean": report.clean, **dataclasses.asdict(report)})
    else:
        _show(report)
    left = report.clean if not dry_run else all(step.do.value not in ("quarantine", "leave") for step in report.steps)
    context.exit(0 if left else DAMAGE)


def _show(report: Any) -> None:
    output.lines(f"{step.do.value} {step.subject} {step.path}: {step.why} (from: {step.source})" for step in report.steps)
    if report.dry_run:
        click.echo(f"{len(report.steps)} steps; nothing was changed")
        return
    output.lines(f"mended {each}" for each in report.mended)
    output.lines(f"quarantined {each}" for each in report.quarantined)
    output.lines(f"left {each}: readers hold it" for each in report.busy)
    output.lines(f"failed {each}: {why}" for each, why in report.failed.items())
    output.lines(f"mount again: {each}" for each in report.remount)
    output.lines(f"what was replaced is in {each}" for each in report.evidence)
    click.echo(f"{len(report.mended)} mended, {len(report.quarantined)} quarantined")
