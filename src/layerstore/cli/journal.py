"""The offline commands: what was journaled, from a copied store or journal, or from bare segments. Changes nothing."""

from __future__ import annotations

import click

import layerjournal
from layerjournal import Replay
from layerstore.cli import output
from layerstore.cli.looking import html_option, show_life
from layerstore.cli.options import DAMAGE, OK, json_option
from layerstore.lifecycle.catalog import images, layers
from layerstore.lifecycle.projection import CatalogProjector
from layerstore.lifecycle.states import OPEN
from layerstore.recovery.planner import possibilities
from layerstore.verbs.explain import offline

paths_argument = click.argument("paths", nargs=-1, required=True, metavar="ROOT|SEGMENT...")


@click.group()
def journal() -> None:
    """Look at a journal offline: a (copied) store, its journal/, or bare segment files."""


@journal.command()
@paths_argument
@click.option("--after", type=int, default=0, help="Only records after this one.")
@click.option("--at", "upto", type=int, help="Only records up to this one.")
@click.option("--tail", type=int, help="Only the last N records.")
@json_option
def log(paths: tuple[str, ...], after: int, upto: int | None, tail: int | None, as_json: bool) -> None:
    """Print the records."""
    with Replay.open(paths, CatalogProjector()) as replay:
        records = list(replay.records(after=after, upto=upto))
    records = records[-tail:] if tail else records
    if as_json:
        output.as_json([record.as_json() for record in records])
        return
    output.table(
        ("SEQ", "GROUP", "WHEN", "ENTITY", "TRIGGER", "FROM", "TO", "ABOUT"),
        [(str(r.seq), str(r.group), output.when(r.time_ns), _short_entity(r.entity), r.trigger, r.from_state or "-",
          r.to_state or "-", _about(r)) for r in records],
        right=(0, 1),
    )


def _short_entity(entity: str) -> str:
    kind, _, key = entity.partition(":")
    return f"{kind}:{key[:12]}" if key else kind


def _about(record: layerjournal.Record) -> str:
    payload = record.payload
    if "layer_id" in payload:
        return f"layer {output.short(payload['layer_id'])}"
    if "output" in payload:
        return f"{output.short(payload['output']['diff_id'])}, {payload['output']['entries']} entries"
    parts = [f"{key}={payload[key]}" for key in ("low_water", "why", "target", "first", "last", "kind") if key in payload]
    if payload.get("content_key"):
        parts.append(output.short(payload["content_key"]))
    return ", ".join(parts)


@journal.command()
@paths_argument
@click.option("--at", type=int, help="As it was after this record (default: the last).")
@json_option
def state(paths: tuple[str, ...], at: int | None, as_json: bool) -> None:
    """Print the catalog as the journal says it was."""
    with Replay.open(paths, CatalogProjector()) as replay:
        folded = replay.fold(at)
    view = layerjournal.DictView(folded.tables)
    found_layers, found_images = list(layers(view)), list(images(view))
    if as_json:
        output.as_json({
            "seq": folded.seq, "link": folded.link.hex(),
            "layers": [output.layer_json(layer) for layer in found_layers],
            "images": [output.image_json(image) for image in found_images],
            "in_flight": [{"txid": t, "state": r["state"]} for t, r in folded.tables["layers"].items()
                          if r["state"] in OPEN],
        })
        return
    click.echo(f"after record {folded.seq}: {len(found_images)} images, {len(found_layers)} layers")
    output.table(("ID", "NAMES"), [(output.short(i.id), " ".join(i.names) or "-") for i in found_images])
    output.table(
        ("TREE", "STATE", "LAYER"),
        [(t[:12], r["state"], output.short(r.get("layer_id", "-"))) for t, r in sorted(folded.tables["layers"].items())],
    )


@journal.command()
@paths_argument
@click.option("--at", type=int, help="As of this record (default: the last).")
@json_option
def replay(paths: tuple[str, ...], at: int | None, as_json: bool) -> None:
    """Replay the log into a catalog, compare it with the one on disk, and say what recovery would do."""
    with Replay.open(paths, CatalogProjector()) as opened:
        folded, low = opened.fold(at), opened.low_water()
        report = opened.verify() if at is None else None
        recent = [r.entity.partition(":")[2] for r in opened.records(after=low, upto=at) if r.entity.startswith("layer:")]
    again = layerjournal.canonical_dump(folded)
    plan = []
    for txid, row in sorted(folded.tables["layers"].items()):
        if row["state"] in OPEN or txid in recent:
            plan.append({
                "txid": txid, "layer_id": row.get("layer_id"), "state": row["state"],
                "if": [{"tree_in": place, "do": do.value, "why": why} for place, do, why in possibilities(row)],
            })
    identical = report.sound if report is not None else None
    if as_json:
        output.as_json({
            "seq": folded.seq, "low_water": low, "catalog_bytes": len(again), "identical": identical,
            "findings": [f"{f.code}: {f.message}" for f in report.findings] if report else [], "recovery": plan,
        })
    else:
        click.echo(f"replayed to record {folded.seq}; low-water mark {low}; canonical dump of {len(again)} bytes")
        if report is not None:
            click.echo("the catalog on disk is identical" if report.sound else "the catalog on disk DIFFERS:")
            output.lines(f"  {f.code}: {f.message}" for f in report.findings)
        click.echo(f"{len(plan)} trees that recovery would look at" + (":" if plan else ""))
        for each in plan:
            click.echo(f"  {each['txid'][:12]} {each['state']} {output.short(each['layer_id'] or '-')}")
            output.lines(f"    if its tree is in {c['tree_in']}: {c['do']} ({c['why']})" for c in each["if"])
    click.get_current_context().exit(DAMAGE if identical is False else OK)


@journal.command()
@click.argument("reference", metavar="TXID|LAYER|IMAGE")
@paths_argument
@html_option
@json_option
def explain(reference: str, paths: tuple[str, ...], html: str | None, as_json: bool) -> None:
    """Tell the life of a layer, tree or image; what the disk says is replaced by what recovery would do."""
    with Replay.open(paths, CatalogProjector()) as opened:
        life = offline(opened, reference)
    show_life(life, html, as_json)


@journal.command()
@paths_argument
@json_option
def verify(paths: tuple[str, ...], as_json: bool) -> None:
    """Verify the chain, every record and row, and that the catalog is what the log says. Exit status 3 if not."""
    with Replay.open(paths, CatalogProjector()) as opened:
        report = opened.verify()
    if as_json:
        output.as_json({
            "sound": report.sound, "records": report.records, "segments": report.segments, "head": report.head,
            "link": report.link.hex(), "findings": [f"{f.code}: {f.message}" for f in report.findings],
        })
    else:
        output.lines(f"{f.code}: {f.message}" for f in report.findings)
        click.echo(f"{report.records} records to {report.head} in the log and {report.segments} segments: "
                   + ("sound" if report.sound else f"{len(report.findings)} findings"))
    click.get_current_context().exit(OK if report.sound else DAMAGE)
