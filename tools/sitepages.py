"""Lay the repository's pages out for the site: ``python tools/sitepages.py DIRECTORY``; then ``mkdocs build --strict``.

Every page keeps its path, so that links between pages stay. A link to what is no page (a program, a directory of them)
becomes its name: the site has no copy of the source. The pages of the reference are made from the tables of public names.
"""

import posixpath
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parent.parent
PAGES = ("*.md", "docs/**/*.md", "journal/*.md", "crash/**/*.md", "fuzz/**/*.md", "bench/**/*.md")
PICTURES = "docs/**/*.svg"
LINK = re.compile(r"(?<!!)\[([^\]\n]*)\]\(([^)\s]+)\)")


def pages() -> dict[str, Path]:
    found = {str(path.relative_to(ROOT)): path for pattern in PAGES for path in sorted(ROOT.glob(pattern))}
    return dict(sorted(found.items()))


def relinked(text: str, page: str, known: set[str]) -> str:
    """The page's text with links that lead to pages, or to nowhere at all."""
    def link(match: re.Match[str]) -> str:
        words, target = match.groups()
        path, hash_, anchor = target.partition("#")
        if "://" in target or not path:
            return match[0]
        found = posixpath.normpath(posixpath.join(posixpath.dirname(page), path))
        if found not in known and f"{found}/README.md" in known:
            found = f"{found}/README.md"
        if found in known:
            return f"[{words}]({posixpath.relpath(found, posixpath.dirname(page) or '.')}{hash_}{anchor})"
        return words if words.startswith("`") else f"`{words}`"

    return LINK.sub(link, text)


def decisions(directory: Path) -> str:
    """A list of the ADRs with their titles."""
    lines = ["# Decisions", ""]
    pages = sorted(directory.glob("0*.md"))
    lines += [f"- [{path.read_text().splitlines()[0].lstrip('# ')}]({path.name})" for path in pages]
    return "\n".join(lines) + "\n"


def reference() -> dict[str, str]:
    """The pages of the reference: one directive a name."""
    import layerjournal
    import layerstore
    from layerstore import errors, testing

    def page(title: str, names: list[str], level: int = 2) -> str:
        return f"# {title}\n\n" + "".join(f"::: {name}\n    options: {{heading_level: {level}}}\n\n" for name in names)

    def homes(package: ModuleType, names: list[str]) -> list[str]:
        found = [getattr(package, name) for name in names]
        return [f"{each.__module__}.{each.__qualname__}" for each in found if hasattr(each, "__qualname__")
                and each.__module__.startswith(package.__name__)]

    public = ["open", "Store", *(name for name in layerstore.__all__ if name not in ("open", "Store", "LayerstoreError"))]
    return {
        "api/commands.md": commands(),
        "api/layerstore.md": page("layerstore", homes(layerstore, public)),
        "api/errors.md": page("layerstore.errors", [
            f"layerstore.errors.{name}" for name, each in vars(errors).items()
            if isinstance(each, type) and issubclass(each, errors.LayerstoreError)
        ]),
        "api/testing.md": page("layerstore.testing", [*homes(testing, testing.__all__), "layerstore.system.faults.point"]),
        "api/observing.md": page("layerstore.observing", ["layerstore.observing.logs", "layerstore.observing.metrics",
                                                          "layerstore.observing.tracing"]),
        "api/layerjournal.md": page("layerjournal", homes(layerjournal, list(vars(layerjournal)))),
    }


def commands() -> str:
    """The command line, as its own help says it."""
    import click

    from layerstore.cli.commands import cli

    def each(command: click.Command, path: str, above: click.Context | None) -> Iterator[str]:
        context = click.Context(
            command, info_name=path.rpartition(" ")[2], parent=above, terminal_width=100, max_content_width=100,
        )
        yield f"## {path}\n\n```text\n{command.get_help(context)}\n```\n"
        if isinstance(command, click.Group):
            for name in command.list_commands(context):
                found = command.get_command(context, name)
                assert found is not None
                yield from each(found, f"{path} {name}", context)

    return "# The command line\n\n" + "\n".join(each(cli, "layerstore", None))


def lay_out(directory: Path) -> None:
    shutil.rmtree(directory, ignore_errors=True)
    found = pages()
    texts = {page: path.read_text() for page, path in found.items()}
    texts["docs/adr/README.md"] = decisions(ROOT / "docs" / "adr")
    made = reference()
    known = {*texts, *made}
    for page, text in {**{page: relinked(text, page, known) for page, text in texts.items()}, **made}.items():
        (directory / page).parent.mkdir(parents=True, exist_ok=True)
        (directory / page).write_text(text)
    for path in ROOT.glob(PICTURES):
        to = directory / path.relative_to(ROOT)
        to.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, to)


if __name__ == "__main__":
    lay_out(Path(sys.argv[1]))
