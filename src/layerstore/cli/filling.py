"""``create``, ``pull`` and ``apply``: what makes a store, and puts layers into it. Imported when one of them is named."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import click

from layerstore.cli import output
from layerstore.cli.options import Settings, complete_references, json_option
from layerstore.cli.registry import registry_options
from layerstore.errors import InvalidArgumentError

if TYPE_CHECKING:
    from layerstore.model import Limits
    from layerstore.sources.registry import RegistryOptions

limit_option = click.option(
    "--limit", "limits", multiple=True, metavar="NAME=N",
    help="Another limit on what a layer may demand, e.g. max_entries=10000000; errors name the one that was passed.",
)


@click.command()
@click.option("--overlay-form", type=click.Choice(["trusted", "user"]),
              help="Attributes of opaque directories (default: what works here).")
@click.option("--uid-map", "uids", multiple=True, metavar="CONTAINER:HOST:SIZE", help="User ids on disk for a layer's.")
@click.option("--gid-map", "gids", multiple=True, metavar="CONTAINER:HOST:SIZE",
              help="The same for groups (default: --uid-map).")
@click.pass_obj
def create(settings: Settings, overlay_form: str | None, uids: tuple[str, ...], gids: tuple[str, ...]) -> None:
    """Make an empty store. Any writing command makes one, too, but with what is the default here."""
    from layerstore.store import open as open_store  # noqa: PLC0415

    uid_map, gid_map = [_range(each) for each in uids] or None, [_range(each) for each in gids] or None
    if os.path.exists(os.path.join(settings.root, "store.json")):
        raise InvalidArgumentError(f"there is a store at {settings.root} already")
    open_store(
        settings.root, allow_filesystem=settings.allow, overlay_form=overlay_form, uid_map=uid_map, gid_map=gid_map,
        beneath=settings.beneath,
    ).close()


def _range(text: str) -> tuple[int, int, int]:
    parts = text.split(":")
    if len(parts) != 3 or not all(part.isdecimal() for part in parts):
        raise click.UsageError(f"{text!r} is not CONTAINER:HOST:SIZE")
    return int(parts[0]), int(parts[1]), int(parts[2])


@click.command()
@click.argument("source")
@click.option("--name", "names", multiple=True, help="A name for the image (default: the source's own).")
@click.option("--platform", help="os/arch[/variant] to choose from an index (default: this machine's).")
@click.option("--workers", type=click.IntRange(1, 64), default=2, show_default=True, help="Layers staged at once.")
@click.option("--replace", is_flag=True, help="Move names that belong to another image.")
@click.option("--keep-blobs", is_flag=True, help="Keep compressed layers, too, so that a push sends just what came.")
@click.option("--verify", metavar="COMMAND", help="Ask COMMAND first, which gets a directory with what there is to verify.")
@click.option("--signatures/--no-signatures", default=True, help="Look for signatures, and keep them with the image.")
@click.option("--whole", is_flag=True, help="Fetch whole layers, also where parts of them are here.")
@click.option("--preflight/--no-preflight", default=True, help="Begin only if the layers seem to fit on the disk.")
@click.option("--wait", type=click.FloatRange(min=0), metavar="SECONDS",
              help="For another that stages the same layer (default: as long as it lives).")
@registry_options
@limit_option
@click.option("--quiet", "-q", is_flag=True, help="No progress.")
@json_option
@click.pass_obj
def pull(
    settings: Settings, source: str, names: tuple[str, ...], platform: str | None, workers: int, replace: bool,
    keep_blobs: bool, verify: str | None, signatures: bool, whole: bool, preflight: bool, wait: float | None,
    registry: RegistryOptions, limits: tuple[str, ...], quiet: bool, as_json: bool,
) -> None:
    """Pull an image: oci:DIR[:TAG], oci-archive:FILE[:TAG], docker-archive:FILE[:TAG] or docker://HOST/REPO[:TAG|@DIGEST].

    Or from a store of podman's: containers-storage:[overlay@ROOT]NAME.
    """
    from layerstore.cli import terminal  # noqa: PLC0415
    from layerstore.verbs.pull import PullOptions  # noqa: PLC0415

    hook = None
    if verify is not None:
        from layerstore.cli.verifying import by_command  # noqa: PLC0415

        hook = by_command(verify)
    options = PullOptions(
        workers=workers, platform=platform, replace_names=replace, limits=_limits(limits), partial=not whole,
        preflight=preflight, registry=registry, keep_blobs=keep_blobs, verify=hook, signatures=signatures,
        wait=wait,
    )
    with settings.open(write=True, verbs=("pull",)) as store, terminal.PullProgress(quiet=quiet or as_json) as progress:
        image = store.pull(source, names=names or None, options=options, progress=progress)
    if as_json:
        output.as_json({**output.image_json(image), "created": image.created, "transfer": progress.tally.as_json()})
    else:
        click.echo(image.id)


@click.command()
@click.argument("tar", type=click.Path(exists=True))
@click.option("--parent", metavar="ID", shell_complete=complete_references, help="The layer to stand on.")
@click.option("--name", "names", multiple=True)
@limit_option
@click.pass_obj
def apply(
    settings: Settings, tar: str, parent: str | None, names: tuple[str, ...], limits: tuple[str, ...],
) -> None:
    """Stage and apply one layer from a tar file, or from a directory."""
    from layerstore import differs  # noqa: PLC0415
    from layerstore.model import StageOptions  # noqa: PLC0415

    options = StageOptions(limits=_limits(limits))
    make = differs.DirectoryDiffer if os.path.isdir(tar) else differs.TarDiffer
    with settings.open(write=True, verbs=("stage", "apply")) as store:
        owner = None
        if parent is not None:
            kind, owner = store.resolve(parent)
            if kind != "layer":
                raise InvalidArgumentError(f"{parent!r} names an image, not a layer")
        with store.stage(make(tar), options=options) as staged:
            click.echo(store.apply_staged_layer(staged, parent=owner, names=names).id)


def _limits(given: tuple[str, ...]) -> Limits:
    """The limits with those of the command line put in."""
    from dataclasses import fields, replace  # noqa: PLC0415

    from layerstore.model import Limits  # noqa: PLC0415

    known = {each.name for each in fields(Limits)}
    changed = {}
    for text in given:
        name, _, number = text.partition("=")
        if name not in known or not number.isdecimal():
            raise click.UsageError(f"{text!r} is not NAME=N with one of {', '.join(sorted(known))}")
        changed[name] = int(number)
    return replace(Limits(), **changed)
