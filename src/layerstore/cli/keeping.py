"""Keeping a store good: look at it, mend it, make its database anew, recover it, collect what nobody needs."""

from __future__ import annotations

import dataclasses
import re
import sys
import time
from contextlib import AbstractContextManager, nullcontext
from datetime import datetime
from typing import Any

import click

from layerstore.cli import output
from layerstore.cli.options import DAMAGE, OK, Settings, json_option
from layerstore.cli.registry import registry_options

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
        try:
            return time.time_ns() - int(seconds(text) * 1e9)
        except click.UsageError as error:
            raise click.UsageError(f"{text!r} is neither a time span nor a date: 12h, 7d, 2026-11-30") from error


@click.command()
@click.option("--depth", type=click.Choice(["structure", "metadata", "content"]), default=None,
              help="Look at parts and side files, every path's attributes, too, or every digest, too [default: structure].")
@click.option("--content", is_flag=True, help="The same as --depth content.")
@click.option("--since", "since_text", metavar="WHEN",
              help="Leave out what was found sound since then: 7d, 12h, 2026-11-30.")
@click.option("--budget", metavar="SECONDS",
              help="Begin nothing further after that time; the next check goes on: 30s, 5m.")
@click.option("--workers", type=click.IntRange(1, 64), help="Threads that hash (default: one a CPU, at most 8).")
@click.option("--rate", type=click.FloatRange(min=0, min_open=True), metavar="MB/S", help="Read at most so much a second.")
@click.option("--beneath", is_flag=True, help="Look at the stores beneath, too.")
@json_option
@click.pass_context
def check(
    context: click.Context, depth: str | None, content: bool, since_text: str | None, budget: str | None,
    workers: int | None, rate: float | None, beneath: bool, as_json: bool,
) -> None:
    """Look for damage, beside everything else that goes on. Exit status 3 if there is any.

    With --since or --budget the store is opened for writing (and recovered): when each layer was found sound is kept.
    """
    if content and depth not in (None, "content"):
        raise click.UsageError(f"--content is --depth content, and not --depth {depth}")
    depth = "content" if content else depth or "structure"
    if depth == "structure" and (since_text is not None or budget is not None):
        click.echo("note: structure is always looked at whole: --since and --budget are for --content and --depth metadata",
                   err=True)
    settings: Settings = context.obj
    with settings.open(write=since_text is not None or budget is not None) as store, _bar(as_json) as bar:
        report = store.check(
            depth=depth, workers=workers,
            since_ns=None if since_text is None else since(since_text),
            budget=None if budget is None else seconds(budget), rate=None if rate is None else rate * 1e6, beneath=beneath,
            progress=bar,
        )
    if as_json:
        output.as_json({"sound": report.sound, **dataclasses.asdict(report)})
    else:
        where = {f.store: "" if f.store is None else f" (in the store {f.store} beneath)" for f in report.findings}
        output.lines(f"{f.code} {f.subject}: {f.message}{where[f.store]}" for f in report.findings)
        click.echo(_summary(report))
    context.exit(OK if report.sound else DAMAGE)


def _bar(as_json: bool) -> AbstractContextManager[Any]:
    """Where somebody looks on, what shows how it goes; else None. What draws takes long to import."""
    if as_json or not sys.stderr.isatty():
        return nullcontext()
    from layerstore.cli.terminal import CheckBar  # noqa: PLC0415

    return CheckBar()


def _summary(report: Any) -> str:
    left = [
        (report.unread, "paths may not be read by this user"), (report.recent, "layers were looked at recently"),
        (report.left, "layers are left for the next check"),
        (report.left_unsound, "of them were not sound when last looked at"),
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
@click.option("--workers", type=click.IntRange(1, 64), help="Threads that hash (default: one a CPU, at most 8).")
@click.option("--rate", type=click.FloatRange(min=0, min_open=True), metavar="MB/S",
              help="Read at most so much a second while looking for damage.")
@click.option("--set-aside", is_flag=True, help="Of what nobody owns, what has the side file of a layer, too.")
@registry_options
@json_option
@click.pass_context
def repair(
    context: click.Context, source: str | None, depth: str, only: tuple[str, ...], dry_run: bool, wait: float,
    set_aside: bool, workers: int | None, rate: float | None, registry: Any, as_json: bool,
) -> None:
    """Put damage right from the nearest good copy, in other layers or SOURCE; quarantine what cannot be. Deletes nothing.

    Exit status 3 if anything is left that is damaged.
    """
    from layerstore.verbs.pull import PullOptions  # noqa: PLC0415

    settings: Settings = context.obj
    with settings.open(write=not dry_run) as store:
        report = store.repair(
            depth=depth, layers=[store.resolve(each)[1] for each in only], source=source, wait=wait, dry_run=dry_run,
            options=PullOptions(registry=registry), set_aside=set_aside, workers=workers,
            rate=None if rate is None else rate * 1e6,
        )
    if as_json:
        output.as_json({"clean": report.clean, **dataclasses.asdict(report)})
    else:
        _show(report)
    left = report.clean if not dry_run else all(step.do.value not in ("quarantine", "leave") for step in report.steps)
    context.exit(OK if left else DAMAGE)


def _show(report: Any) -> None:
    output.lines(f"{step.do.value} {step.subject} {step.path}: {step.why} (from: {step.source})" for step in report.steps)
    if report.dry_run:
        _show_mounts(report)
        click.echo(f"{len(report.steps)} steps; nothing was changed")
        return
    output.lines(f"mended {each}" for each in report.mended)
    output.lines(f"quarantined {each}" for each in report.quarantined)
    output.lines(f"left {each}: readers hold it" for each in report.busy)
    output.lines(f"failed {each}: {why}" for each, why in report.failed.items())
    output.lines(f"no help from the source for {each}: {why}" for each, why in report.refused.items())
    _show_mounts(report)
    output.lines(f"what was replaced is in {each}" for each in report.evidence)
    click.echo(f"{len(report.mended)} mended, {len(report.quarantined)} quarantined")


def _show_mounts(report: Any) -> None:
    output.lines(f"mount again: {each}" for each in report.remount)
    output.lines(f"shown by {each}: start its containers again" for each in report.views)


@click.command()
@click.option("--from", "source", type=click.Path(exists=True, dir_okay=False), metavar="FILE",
              help="A snapshot to go by where it reaches further than the archive.")
@click.option("--content", is_flag=True, help="Compare every file of the layers that are taken from disk.")
@click.option("--force", is_flag=True, help="Even if the database looks sound; do not believe that its log is whole.")
@click.option("--dry-run", is_flag=True, help="Only say what would be done; nothing is changed.")
@json_option
@click.pass_obj
def rebuild(
    settings: Settings, source: str | None, content: bool, force: bool, dry_run: bool, as_json: bool,
) -> None:
    """Make a lost or damaged database anew, from archive, log and what is on disk. The old one is kept."""
    from layerstore.recovery.rebuilding import rebuild as rebuild_store  # noqa: PLC0415

    report = rebuild_store(
        settings.root, source=source, content=content, force=force, dry_run=dry_run, allow_filesystem=settings.allow,
    )
    if as_json:
        output.as_json(report.as_json())
    else:
        output.lines(output.rebuild_lines(report))


@click.command()
@click.argument("file", type=click.Path())
@click.pass_obj
def snapshot(settings: Settings, file: str) -> None:
    """Write a consistent copy of journal and catalog (no layers) into FILE, while others write."""
    with settings.open() as store:
        store.snapshot(file)


@click.command()
@click.option("--dry-run", is_flag=True, help="Print the plan; touch nothing.")
@json_option
@click.pass_obj
def recover(settings: Settings, dry_run: bool, as_json: bool) -> None:
    """Finish or roll back what a crash interrupted (every other writing command does it first, too)."""
    from layerstore.store import open as open_store  # noqa: PLC0415

    store = open_store(
        settings.root, readonly=dry_run, create=False, allow_filesystem=settings.allow, observer=settings.watcher,
    )
    with store:
        report = store.recovery
    if as_json:
        output.as_json(report.as_json())
    else:
        output.lines(output.recovery_lines(report) or ["nothing to do"])


@click.command()
@click.option("--retention", type=float, default=7.0, show_default=True, help="Days to keep staged layers.")
@click.option("--grace", type=float, default=1.0, show_default=True, help="Hours to keep unreferenced layers.")
@click.option("--segments", type=click.IntRange(min=1), metavar="N", help="Keep the newest N segments of archived log.")
@click.option("--rate", type=click.FloatRange(min=0, min_open=True), metavar="N", help="Remove at most N files a second.")
@click.option("--dry-run", is_flag=True, help="Only say what would go.")
@json_option
@click.pass_obj
def gc(
    settings: Settings, retention: float, grace: float, segments: int | None, rate: float | None, dry_run: bool,
    as_json: bool,
) -> None:
    """Let go of old staged layers, of layers nothing needs, of the trash, and of old segments of the log."""
    with settings.open(write=not dry_run) as store:
        report = store.collect_garbage(
            retention=retention * 86_400, grace=grace * 3_600, segments=segments, rate=rate, dry_run=dry_run,
        )
    if as_json:
        output.as_json(dataclasses.asdict(report))
        return
    verb = "would go" if dry_run else "gone"
    output.lines([f"staged tree {each} {verb}" for each in report.staged])
    output.lines([f"layer {output.short(each)} {verb}" for each in report.layers])
    output.lines([f"layer {output.short(each)} hidden; its readers keep its tree" for each in report.deferred])
    output.lines([f"segment {each} {verb}" for each in report.segments])
    click.echo(
        f"{len(report.staged)} staged trees, {len(report.layers)} layers, {report.emptied} trees and files of trash, "
        f"{len(report.segments)} segments: {output.size(report.freed)} {'would be ' if dry_run else ''}freed",
    )
