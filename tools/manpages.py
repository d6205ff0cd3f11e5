"""Write the man pages of the command line: ``python tools/manpages.py DIRECTORY``. Needs the extra ``man`` (click-man).

One page a command, from the commands themselves. They are committed, so that a package has them without this tool.
"""

import re
import sys
from pathlib import Path

import click
from click_man.core import write_man_pages

from layerstore import __version__
from layerstore.cli.commands import cli


def whole(group: click.Group) -> click.Group:
    """The group with its commands of other modules in ``commands``, where the generator looks for them."""
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        command.short_help = " ".join((command.help or "").partition("\n\n")[0].split()).rstrip(".")   # not cut off
        group.add_command(whole(command) if isinstance(command, click.Group) else command, name)
    return group


def write(directory: Path) -> None:
    """Write all pages into *directory*; pages of commands that are no more go."""
    for page in directory.glob("*.1"):
        page.unlink()
    # the version stands for the date: the same commands give the same pages on any day
    cli.short_help = "container layers that a crash cannot cost you"
    write_man_pages(
        "layerstore", whole(cli), version=__version__, target_dir=str(directory), date=f"layerstore {__version__}",
    )
    for page in directory.glob("*.1"):
        # what click leaves as it is between \b and the next empty line, troff is told to leave as it is
        text = re.sub(r"\x08\n(.*?)(?=\n\.PP|\n\.SH|\n*\Z)", ".nf\n\\1\n.fi", page.read_text(), flags=re.DOTALL)
        page.write_text(text.rstrip("\n") + "\n")


if __name__ == "__main__":
    write(Path(sys.argv[1]))
