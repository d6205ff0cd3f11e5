"""``explain``, ``du``, ``space``, ``metrics`` and ``quota``: what a store is made of. Imported when one is named."""

from __future__ import annotations

import dataclasses
from typing import Any

import click

from layerstore.cli import output
from layerstore.cli.completing import references
from layerstore.cli.options import Settings, json_option
from layerstore.lifecycle.timeline import Life

html_option = click.option("--html", metavar="FILE", help="Write a timeline as a page of its own; - for stdout.")


def show_life(life: Life, html: str | None, as_json: bool) -> None:
    """As text, as JSON, or as a page."""
    if html is not None:
        output.write_file(html, [life.html().encode()])
    elif as_json:
        output.as_json(life.as_json())
    else:
        output.lines(life.text().splitlines())


@click.command()
@click.argument("reference", metavar="TXID|LAYER|IMAGE", shell_complete=references)
@html_option
@json_option
@click.pass_obj
def explain(settings: Settings, reference: str, html: str | None, as_json: bool) -> None:
    """Tell the life of a layer, tree or image from the journal: each record, what lies between, what the disk says now."""
    with settings.open() as store:
        show_life(store.explain(reference), html, as_json)


@click.command()
@json_option
@click.pass_obj
def du(settings: Settings, as_json: bool) -> None:
    """Show what each image takes, alone and with others, and what deleting it would free ('space' has the rest)."""
    with settings.open() as store:
        report = store.usage()
    if as_json:
        output.as_json(dataclasses.asdict(report))
        return
    rows = [[output.short(image.id), " ".join(image.names), *_sizes(image)] for image in report.images]
    total = ["total", f"{report.layers} layers", *_sizes(report)]
    columns = ["IMAGE", "NAMES", "LOGICAL", "ALLOCATED", "UNIQUE", "SHARED", "RECLAIMABLE", "REFLINKED"]
    output.table(columns, [*rows, total], right=range(2, 8))
    if report.loose:
        click.echo(f"{output.size(report.loose)} in layers of no image")
    if report.unread:
        click.echo(f"{report.unread} layers or directories could not be looked at", err=True)


def _sizes(of: Any) -> list[str]:
    return [*map(output.size, (of.logical, of.allocated, of.unique, of.shared, of.reclaimable, of.reflinked))]


@click.command()
@json_option
@click.pass_obj
def space(settings: Settings, as_json: bool) -> None:
    """Show what the store takes, and what is left on its file system ('du' has what images take)."""
    with settings.open() as store:
        found = dataclasses.asdict(store.space())
    if as_json:
        output.as_json(found)
        return
    output.table(
        ("WHAT", "SIZE"),
        [(name, value if isinstance(value, str) else output.size(value)) for name, value in found.items()], right=(1,),
    )


@click.command()
@click.pass_obj
def metrics(settings: Settings) -> None:
    """Print the store's gauges in Prometheus' text format. What commands count and find, --metrics-textfile gathers."""
    from layerstore.cli.watching import OpenedAgain, metrics_of  # noqa: PLC0415

    click.echo(metrics_of(OpenedAgain(settings.root, settings.allow), "metrics").text(), nl=False)


@click.command()
@click.argument("limit", required=False, metavar="[BYTES|none]")
@click.pass_obj
def quota(settings: Settings, limit: str | None) -> None:
    """Show the store's quota, or set it: bytes of layers, as 'layerstore layers' counts them (k, M, G, T: 1000s)."""
    wanted = None if limit in (None, "none") else _bytes(str(limit))
    with settings.open(write=limit is not None) as store:
        if limit is not None:
            store.set_quota(wanted)
        found, counted = store.quota(), store.space().counted
    click.echo(f"{counted} bytes of " + ("no quota" if found is None else str(found)))


def _bytes(text: str) -> int:
    number, factor = (text[:-1], _UNITS[text[-1]]) if text[-1:] in _UNITS else (text, 1)
    if not number.isdecimal():
        raise click.UsageError(f"{text!r} is no number of bytes")
    return int(number) * factor


_UNITS = {"k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
