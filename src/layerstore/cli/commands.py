"""The store's commands. Reading commands open the store read-only: they wait for nobody, and recover nothing.

Every command is a process of its own, so what one needs is imported where it is needed: the store when one is opened.
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
import traceback
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar

import click

from layerstore import __version__
from layerstore.cli import output
from layerstore.cli.options import (
    DAMAGE,
    FAILED,
    OK,
    USAGE,
    Settings,
    complete_references,
    damaged_option,
    json_option,
    reference_argument,
)
from layerstore.cli.registry import registry_options
from layerstore.errors import CallerError, DamagedError, InvalidArgumentError, LayerDamagedError, LayerstoreError

if TYPE_CHECKING:
    from layerstore.model import Limits
    from layerstore.sources.registry import RegistryOptions
    from layerstore.store import Store


class _Commands(click.Group):
    """The store's commands, and those of other modules (``elsewhere``: name → module), imported when they are named."""

    elsewhere: ClassVar[dict[str, str]] = {
        "journal": "journal", "du": "looking", "explain": "looking", "space": "looking", "quota": "looking",
        "metrics": "looking",
        "check": "keeping", "repair": "keeping", "rebuild": "keeping", "snapshot": "keeping", "recover": "keeping",
        "gc": "keeping", "view": "viewing", "push": "viewing",
        "commit": "committing", "completion": "completing",
        "tag": "holding", "untag": "holding", "leases": "holding", "mounts": "holding",
    }

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted([*super().list_commands(ctx), *self.elsewhere])

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in self.elsewhere:
            return super().get_command(ctx, cmd_name)
        from importlib import import_module  # noqa: PLC0415

        found: click.Command = getattr(import_module(f"layerstore.cli.{self.elsewhere[cmd_name]}"), cmd_name)
        return found


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="layerstore")
@click.option("--root", envvar="LAYERSTORE_ROOT", metavar="DIR", help="The store's directory.")
@click.option("--allow-filesystem", "allow", multiple=True, metavar="NAME",
              help="Accept this file system although it is not known to keep the promises.")
@click.option("--beneath", multiple=True, metavar="DIR",
              help="A store that is only read, beneath this one; a writing command records it. 'none' for none any more.")
@click.option("--metrics-textfile", envvar="LAYERSTORE_METRICS_TEXTFILE", metavar="FILE",
              help="Add the command's Prometheus metrics to FILE, and renew the store's, for node_exporter.")
@click.option("--log-json", metavar="FILE", help="Append what happens to FILE, a line of JSON each; - for standard error.")
@click.option("--debug", is_flag=True, help="Show tracebacks.")
@click.pass_context
def cli(
    context: click.Context, root: str | None, allow: tuple[str, ...], beneath: tuple[str, ...],
    metrics_textfile: str | None, log_json: str | None, debug: bool,
) -> None:
    """A container-layer store that a crash cannot cost you a layer of.

    An ID may be a name or an unambiguous prefix. Exit status: 0 ok, 1 failed, 2 usage, 3 damage found.
    """
    watcher = None
    if metrics_textfile is not None or log_json is not None:
        from layerstore.cli.watching import watcher_for  # noqa: PLC0415

        watcher = watcher_for(context, metrics_textfile, log_json, root, allow)
    context.obj = Settings(root, allow, debug, watcher, beneath)


@cli.command()
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


limit_option = click.option(
    "--limit", "limits", multiple=True, metavar="NAME=N",
    help="Another limit on what a layer may demand, e.g. max_entries=10000000; errors name the one that was passed.",
)


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


def _range(text: str) -> tuple[int, int, int]:
    parts = text.split(":")
    if len(parts) != 3 or not all(part.isdecimal() for part in parts):
        raise click.UsageError(f"{text!r} is not CONTAINER:HOST:SIZE")
    return int(parts[0]), int(parts[1]), int(parts[2])


@cli.command()
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


@cli.command()
@json_option
@click.pass_obj
def images(settings: Settings, as_json: bool) -> None:
    """List images."""
    with settings.open() as store:
        found = store.images()
        sizes = _sizes(store, {layer for image in found for layer in image.layers})
    if as_json:
        output.as_json([output.image_json(image) for image in found])
        return
    output.table(
        ("ID", "NAMES", "LAYERS", "SIZE", "CREATED"),
        [(output.short(i.id), " ".join(i.names) or "-", str(len(i.layers)),
          output.size(sum(sizes.get(each, 0) for each in i.layers)), output.when(i.created_ns)
          + (" (damaged)" if i.damaged else "") + (" (beneath)" if i.store else "")) for i in found],
        right=(2, 3),
    )


def _sizes(store: Store, layer_ids: set[str]) -> dict[str, int]:
    """Looked up one by one: most of what a store holds may belong to no image. Damaged ones only a listing shows."""
    try:
        return {layer_id: store.layer(layer_id).diff_size for layer_id in layer_ids}
    except LayerDamagedError:
        return {layer.id: layer.diff_size for layer in store.layers()}


@cli.command()
@json_option
@click.pass_obj
def layers(settings: Settings, as_json: bool) -> None:
    """List committed (and quarantined) layers; those of stores beneath have the state 'beneath'."""
    with settings.open() as store:
        found = store.layers()
    if as_json:
        output.as_json([output.layer_json(layer) for layer in found])
        return
    output.table(
        ("ID", "PARENT", "STATE", "ENTRIES", "SIZE", "NAMES"),
        [(output.short(layer.id), output.short(layer.parent) if layer.parent else "-",
          "beneath" if layer.store else layer.state, str(layer.entries),
          output.size(layer.diff_size), " ".join(layer.names) or "-") for layer in found],
        right=(3, 4),
    )


@cli.command()
@reference_argument
@json_option
@click.pass_obj
def show(settings: Settings, reference: str, as_json: bool) -> None:
    """Show an image or layer."""
    with settings.open() as store:
        kind, owner = store.resolve(reference)
        if kind == "image":
            image = store.image(owner)
            manifest, config = store.image_documents(owner)
            found: dict[str, Any] = {
                "kind": kind, **output.image_json(image), "manifest": json.loads(manifest), "config": json.loads(config),
            }
        else:
            found = {"kind": kind, **output.layer_json(store.layer(owner)),
                     "chain": [layer.id for layer in store.chain(owner)]}
    if as_json:
        output.as_json(found)
    else:
        output.lines(f"{key}: {_plain(value)}" for key, value in found.items() if key not in ("manifest", "config"))


def _plain(value: Any) -> str:
    if isinstance(value, list):
        return " ".join(each["digest"] if isinstance(each, dict) else str(each) for each in value) or "-"
    return "-" if value in (None, {}) else str(value)


@cli.command()
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


@cli.command()
@click.argument("target", type=click.Path())
@click.option("--keep-upper", is_flag=True, help="Keep a writable mount's upper directory, to mount it again.")
@click.pass_obj
def unmount(settings: Settings, target: str, keep_upper: bool) -> None:
    """Unmount what was mounted at TARGET."""
    with settings.open(write=True) as store:
        store.unmount(target, keep_upper=keep_upper)


@cli.command()
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


@cli.command()
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


@cli.command()
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


@cli.command("apply")
@click.argument("tar", type=click.Path(exists=True))
@click.option("--parent", metavar="ID", shell_complete=complete_references, help="The layer to stand on.")
@click.option("--name", "names", multiple=True)
@limit_option
@click.pass_obj
def apply_command(
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


def run(arguments: list[str] | None) -> int:
    """Run a command; errors as one line what and one line what to do, a traceback only with ``--debug``."""
    given = sys.argv[1:] if arguments is None else arguments
    return _guarded(lambda: cli.main(args=given, prog_name="layerstore", standalone_mode=False), "--debug" in given)


def _guarded(call: Callable[[], Any], debug: bool) -> int:
    try:
        status = call()
    except click.UsageError as error:
        error.show()
        return USAGE
    except click.ClickException as error:
        error.show()
        return FAILED
    except (click.Abort, KeyboardInterrupt):
        click.echo("layerstore: interrupted; nothing is lost", err=True)
        return 130
    except BrokenPipeError:
        sys.stderr.close()
        return FAILED
    except Exception as error:  # noqa: BLE001 - the last line of defence of a command line
        if debug:
            traceback.print_exc()
        return _explain(error)
    return status if isinstance(status, int) else OK


def _explain(error: Exception) -> int:
    import layerjournal  # noqa: PLC0415

    known = isinstance(error, LayerstoreError | layerjournal.JournalError)
    what = str(error) if known or isinstance(error, OSError) else f"an error in layerstore itself: {error!r}"
    hint = getattr(error, "hint", None) or ("see the message" if isinstance(error, OSError) else
                                            "please report it, with the traceback that --debug shows")
    click.echo(f"layerstore: {output.printable(what)}", err=True)
    click.echo(f"  hint: {output.printable(hint)}", err=True)
    if isinstance(error, DamagedError | layerjournal.DamagedError):
        return DAMAGE
    return USAGE if isinstance(error, InvalidArgumentError) and isinstance(error, CallerError) else FAILED
