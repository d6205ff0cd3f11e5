"""``mount``, ``unmount``, ``extract`` and ``export``: content out of the store. Imported when one of them is named."""

from __future__ import annotations

import click

from layerstore.cli import output
from layerstore.cli.options import Settings, complete_references, damaged_option, reference_argument
from layerstore.errors import InvalidArgumentError


@click.command()
@reference_argument
@click.argument("target", type=click.Path(file_okay=False))
@click.option("--writable", is_flag=True, help="With a writable upper directory, removed at unmount.")
@click.option("--label", metavar="CONTEXT", help="The security context (SELinux) of all in it: user:role:type[:level].")
@damaged_option
@click.pass_obj
def mount(
    settings: Settings, reference: str, target: str, writable: bool, label: str | None, damaged: bool,
) -> None:
    """Mount an image or layer by overlayfs at the directory TARGET."""
    with settings.open(write=True) as store:
        store.mount(reference, target, writable=writable, damaged=damaged, label=label)


@click.command()
@click.argument("target", type=click.Path())
@click.option("--keep-upper", is_flag=True, help="Keep a writable mount's upper directory, to mount it again.")
@click.pass_obj
def unmount(settings: Settings, target: str, keep_upper: bool) -> None:
    """Unmount what was mounted at TARGET."""
    with settings.open(write=True) as store:
        store.unmount(target, keep_upper=keep_upper)


@click.command()
@reference_argument
@click.argument("directory", type=click.Path())
@damaged_option
@click.pass_obj
def extract(settings: Settings, reference: str, directory: str, damaged: bool) -> None:
    """Copy an image's or layer's content into the absent or empty directory DIRECTORY."""
    with settings.open() as store:
        report = store.extract(reference, directory, damaged=damaged)
    click.echo(f"{report.entries} entries extracted to {directory}" + (
        f"; {report.unset} owners, devices or attributes could not be set without privilege" if report.unset else ""
    ), err=True)


@click.command()
@click.argument("layer", shell_complete=complete_references)
@click.option("--tar", metavar="FILE", help="Write the layer's original uncompressed tar, byte for byte; - for stdout.")
@click.option("--tar-split", metavar="FILE", help="Write its tar-split, as the Go tools read it (JSON lines).")
@click.pass_obj
def export(settings: Settings, layer: str, tar: str | None, tar_split: str | None) -> None:
    """Write a LAYER as the tar that it came as."""
    if tar is None and tar_split is None:
        raise click.UsageError("say what to write: --tar FILE, or --tar-split FILE")
    with settings.open() as store:
        kind, layer_id = store.resolve(layer)
        if kind != "layer":
            raise InvalidArgumentError(
                f"{layer} is an image", hint="name one of its layers; 'layerstore images --json' lists them",
            )
        for target, reading in ((tar, store.diff), (tar_split, store.tar_split)):
            if target is not None:
                with reading(layer_id) as chunks:
                    output.write_file(target, chunks)
