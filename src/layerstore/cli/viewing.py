"""``view`` and ``push``: the store for other tools. Imported when one of them is named."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import click

from layerstore.cli import output
from layerstore.cli.options import Settings, complete_references, json_option
from layerstore.cli.registry import registry_options

if TYPE_CHECKING:
    from layerstore.sources.registry import RegistryOptions


@click.command()
@click.argument("directory", type=click.Path(file_okay=False))
@click.option("--remove", is_flag=True, help="Take the view away, and let go of the layers that it kept.")
@json_option
@click.pass_obj
def view(settings: Settings, directory: str, remove: bool, as_json: bool) -> None:
    """Publish the images at DIRECTORY, for podman and its like to read, or bring such a view up to date."""
    with settings.open(write=True) as store:
        if remove:
            store.remove_view(directory)
            return
        report = store.view(directory)
    if as_json:
        output.as_json(dataclasses.asdict(report))
        return
    output.lines([f"{len(report.images)} images, {len(report.layers)} layers at {report.directory}"])
    for image_id, why in report.left_out.items():
        click.echo(output.printable(f"left out: image {output.short(image_id)}: {why}"), err=True)
    for layer_id in report.incomplete:
        click.echo(f"note: layer {output.short(layer_id)} lacks owners, devices or attributes (docs/rootless.md)", err=True)


@click.command()
@click.argument("reference", metavar="IMAGE", shell_complete=complete_references)
@click.argument("target")
@click.option("--compression", type=click.Choice(["as-it-came", "none", "gzip", "zstd", "zstd:chunked"]),
              default="as-it-came", show_default=True, help="Of the layers.")
@click.option("--signatures/--no-signatures", default=True, help="Send signatures of the very manifest that is sent.")
@registry_options
@json_option
@click.pass_obj
def push(
    settings: Settings, reference: str, target: str, compression: str, signatures: bool, registry: RegistryOptions,
    as_json: bool,
) -> None:
    """Write IMAGE to oci:DIR[:TAG], oci-archive:FILE[:TAG], docker-archive:FILE[:NAME:TAG] or docker://HOST/NAME[:TAG]."""
    with settings.open() as store:
        report = store.push(reference, target, compression=compression, registry=registry, signatures=signatures)
        had = len(store.image(report.config_digest.removeprefix("sha256:")).signatures) if signatures else 0
    if had > report.signatures:
        click.echo(f"note: {had - report.signatures} of {had} signatures did not go out (docs/verifying.md)", err=True)
    if as_json:
        output.as_json(dataclasses.asdict(report))
    else:
        click.echo(report.manifest_digest or report.config_digest)
        for digest in report.plain:
            click.echo(f"note: {digest} is plain zstd: no table of contents can describe it (docs/chunked.md)", err=True)
