"""The command that makes an image of a writable mount; imported when it is named."""

from __future__ import annotations

import click

from layerstore.cli import output
from layerstore.cli.options import Settings, complete_references, json_option


@click.command()
@click.argument("target", type=click.Path())
@click.option("--name", "names", multiple=True, help="A name for the image.")
@click.option("--base", metavar="ID", shell_complete=complete_references,
              help="The image whose config it takes over, if several have the mounted layers.")
@click.option("--change", "changed", multiple=True, metavar="INSTRUCTION",
              help="Change the config, e.g. 'CMD [\"/app\"]', 'ENV A=1', 'WORKDIR /srv', 'USER 1000', 'LABEL a=b'.")
@click.option("--comment", default="", help="For the image's history.")
@click.option("--replace", is_flag=True, help="Move names that belong to another image.")
@json_option
@click.pass_obj
def commit(
    settings: Settings, target: str, names: tuple[str, ...], base: str | None, changed: tuple[str, ...], comment: str,
    replace: bool, as_json: bool,
) -> None:
    """Make an image of what was written to the writable mount at TARGET, and of the layers beneath it.

    What is mounted stays mounted. Pause what runs in it: if anything changes meanwhile, nothing is committed.
    """
    from layerstore.cli.changing import changes  # noqa: PLC0415
    from layerstore.verbs.commit import CommitOptions  # noqa: PLC0415

    options = CommitOptions(base, changes(changed), comment, replace)
    with settings.open(write=True) as store:
        image = store.commit(target, names=names, options=options)
    if as_json:
        output.as_json({**output.image_json(image), "created": image.created})
    else:
        click.echo(image.id)
