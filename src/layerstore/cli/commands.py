"""The command itself: where each of its commands is, the options before them, and what becomes of errors.

Every command is a process of its own, so what one needs is imported where it is needed: the command's module when it is
named, the store when one is opened. Reading commands open it read-only: they wait for nobody, and recover nothing.
"""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable
from importlib import import_module
from typing import Any

import click

from layerstore import __version__
from layerstore.cli import output
from layerstore.cli.options import DAMAGE, FAILED, OK, USAGE, Settings
from layerstore.errors import CallerError, DamagedError, InvalidArgumentError, LayerstoreError

_MODULES = {
    "filling": ("create", "pull", "apply"),
    "listing": ("images", "layers", "show"),
    "looking": ("du", "explain", "space", "quota", "metrics"),
    "taking": ("mount", "unmount", "extract", "export"),
    "committing": ("commit",),
    "viewing": ("view", "push"),
    "holding": ("tag", "untag", "leases", "mounts", "rm"),
    "keeping": ("check", "repair", "rebuild", "snapshot", "recover", "gc"),
    "journal": ("journal",),
    "completing": ("completion",),
}
_WHERE = {command: module for module, commands in _MODULES.items() for command in commands}


class _Commands(click.Group):
    """The commands, each imported when it is named."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted({*super().list_commands(ctx), *_WHERE})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _WHERE:
            return super().get_command(ctx, cmd_name)
        found: click.Command = getattr(import_module(f"layerstore.cli.{_WHERE[cmd_name]}"), cmd_name)
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
