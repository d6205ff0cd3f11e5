"""Commands that only look: ``explain``. Imported when one of them is named."""

from __future__ import annotations

from typing import Any

import click

from layerstore.cli import output
from layerstore.timeline import Life

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
@click.argument("reference", metavar="TXID|LAYER|IMAGE")
@html_option
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
@click.pass_obj
def explain(settings: Any, reference: str, html: str | None, as_json: bool) -> None:
    """Tell the life of a layer, tree or image from the journal: each record, what lies between, what the disk says now."""
    with settings.open() as store:
        show_life(store.explain(reference), html, as_json)
