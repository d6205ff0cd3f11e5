"""What keeps images and layers, names, leases and mounts, and letting go of them: ``rm``. Imported when one is named."""

from __future__ import annotations

import dataclasses

import click

from layerstore.cli import output
from layerstore.cli.options import Settings, complete_references, json_option, reference_argument
from layerstore.errors import InvalidArgumentError


@click.command()
@reference_argument
@click.argument("name")
@click.option("--replace", is_flag=True, help="Move the name if it belongs to something else.")
@click.pass_obj
def tag(settings: Settings, reference: str, name: str, replace: bool) -> None:
    """Give an image or layer one more NAME."""
    with settings.open(write=True) as store:
        store.set_name(name, reference, replace=replace)


@click.command()
@click.argument("name", shell_complete=complete_references)
@click.pass_obj
def untag(settings: Settings, name: str) -> None:
    """Take a NAME away. What it named stays until 'gc' finds that nothing needs it."""
    with settings.open(write=True) as store:
        store.drop_name(name)


@click.command()
@click.option("--drop", metavar="NAME", help="Let go of what the lease NAME holds, whoever took it.")
@json_option
@click.pass_obj
def leases(settings: Settings, drop: str | None, as_json: bool) -> None:
    """List leases: what keeps layers beyond the life of who took it. A view's is named view:DIRECTORY."""
    with settings.open(write=drop is not None) as store:
        if drop is not None:
            store.drop_lease(drop)
        found = store.leases()
    if as_json:
        output.as_json([dataclasses.asdict(each) for each in found])
        return
    output.table(
        ("NAME", "LAYERS", "SINCE"),
        [(each.name, " ".join(map(output.short, each.layers)), output.when(each.since_ns)) for each in found],
    )


@click.command()
@json_option
@click.pass_obj
def mounts(settings: Settings, as_json: bool) -> None:
    """List mounts of this store's, and writable ones that are mounted no more but whose upper directory is kept."""
    with settings.open() as store:
        found = store.mounts()
    if as_json:
        output.as_json([dataclasses.asdict(each) for each in found])
        return
    output.table(
        ("TARGET", "STATE", "LAYERS", "SINCE"),
        [(each.target, ("writable" if each.writable else "mounted") if each.mounted else "kept",
          " ".join(map(output.short, each.layers)), output.when(each.since_ns)) for each in found],
    )


@click.command()
@reference_argument
@click.option("--keep-layers", is_flag=True, help="Keep the layers that nothing else uses.")
@click.option("--wait", type=float, default=10.0, show_default=True, help="Seconds to wait for readers.")
@json_option
@click.pass_obj
def rm(settings: Settings, reference: str, keep_layers: bool, wait: float, as_json: bool) -> None:
    """Delete an image (and the layers nothing else uses) or a layer. ID in full, or a name."""
    with settings.open(write=True) as store:
        kind, owner = store.resolve(reference)
        if reference != owner and len(reference) < 64 and owner.startswith(reference):
            raise InvalidArgumentError(f"{reference!r} is only the beginning of an ID",
                                       hint=f"where something is written, give it in full: {owner}")
        if kind == "image":
            report = store.delete_image(owner, keep_layers=keep_layers, wait=wait)
        else:
            report = store.delete_layer(owner, wait=wait)
    if as_json:
        output.as_json(dataclasses.asdict(report))
        return
    output.lines([f"deleted {output.short(each)}" for each in report.layers])
    output.lines([f"deferred {output.short(each)}: readers still hold it" for each in report.deferred])
