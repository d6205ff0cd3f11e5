"""Completion in the shell: the script that is printed, and what can stand where a command takes an image or layer.

What is completed comes from the store that the line names, opened read-only; where that fails, nothing is completed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import click
from click.shell_completion import CompletionItem, get_completion_class

if TYPE_CHECKING:
    from layerstore.model import Image, Layer

VARIABLE = "_LAYERSTORE_COMPLETE"   # as click derives it from the command's name


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion(context: click.Context, shell: str) -> None:
    """Print a script that completes this command line in a shell.

    \b
    bash:  eval "$(layerstore completion bash)"           in ~/.bashrc
    zsh:   eval "$(layerstore completion zsh)"            in ~/.zshrc
    fish:  layerstore completion fish > ~/.config/fish/completions/layerstore.fish
    """  # noqa: D301 - click's own mark for lines that stay as they are
    found = get_completion_class(shell)
    assert found is not None
    click.echo(found(context.find_root().command, {}, "layerstore", VARIABLE).source())


def references(context: click.Context, _parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Names of images and layers that begin so; IDs, too, once two digits of one are there."""
    from layerjournal import JournalError  # noqa: PLC0415
    from layerstore.errors import LayerstoreError  # noqa: PLC0415
    from layerstore.store import open as open_store  # noqa: PLC0415

    given = context.find_root().params
    if given.get("root") is None:
        return []
    try:
        with open_store(
            given["root"], readonly=True, allow_filesystem=given.get("allow") or (),
            beneath=[each for each in given.get("beneath") or () if each != "none"] or None,
        ) as store:
            found: list[Image | Layer] = [*store.images(), *store.layers()]
    except (LayerstoreError, JournalError):
        return []
    known = [name for each in found for name in each.names] + ([each.id for each in found] if len(incomplete) > 1 else [])
    return [CompletionItem(each) for each in known if each.startswith(incomplete)]
