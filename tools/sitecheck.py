"""Whether a built site can be read without a network: ``python tools/sitecheck.py DIRECTORY``; exit status 1 if not.

Nothing that a browser fetches by itself may come from another host: scripts, styles, fonts, pictures, frames. Links that
a reader follows may lead anywhere.
"""

import re
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

FETCHED = {   # element: the attributes that make a browser fetch
    "script": ("src",), "img": ("src", "srcset"), "iframe": ("src",), "source": ("src", "srcset"),
    "video": ("src", "poster"),
    "audio": ("src",), "embed": ("src",), "object": ("data",), "link": ("href",), "use": ("href", "xlink:href"),
    "image": ("href", "xlink:href"), "input": ("src",), "track": ("src",),
}
ELSEWHERE = re.compile(r"^\s*(?:https?:)?//", re.IGNORECASE)
IN_STYLE = re.compile(r"""(?:url\(\s*|@import\s+)["']?((?:https?:)?//[^"')\s;]+)""", re.IGNORECASE)
IN_SCRIPT = re.compile(r"""["'`]((?:https?:)?//[\w-]+(?:\.[\w-]+)+[^"'`\s]*)""", re.IGNORECASE)
NEVER = {   # what the theme's program would fetch, and why it never does on this site
    "https://unpkg.com/mermaid@": "drawn by tools/diagrams.py: no page has a block of it (checked here)",
    "https://unpkg.com/resize-observer-polyfill": "every browser since 2020 has a ResizeObserver",
    "https://api.github.com/": "of a repository that mkdocs.yml does not name",
}


class _Page(HTMLParser):
    """What one page fetches."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self._style = self._script = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        wanted = [given.get(name, "") for name in FETCHED.get(tag, ())]
        if tag == "link" and given.get("rel") == "canonical":
            wanted = []
        self.found += [each for each in wanted if any(ELSEWHERE.match(one) for one in each.split(","))]
        self.found += IN_STYLE.findall(given.get("style", ""))
        if {"mermaid", "language-mermaid"} & set(given.get("class", "").split()):   # mkdocs.yml gives a block its class
            self.found.append("a diagram that a script draws")
        self._style, self._script = tag == "style", tag == "script"

    def handle_data(self, data: str) -> None:
        self.found += IN_STYLE.findall(data) if self._style else IN_SCRIPT.findall(data) if self._script else []

    def handle_endtag(self, tag: str) -> None:
        self._style = self._script = False


def elsewhere(directory: Path) -> Iterator[tuple[str, str]]:
    """Each file, and what in it is fetched from another host."""
    for path in sorted(directory.rglob("*")):
        if path.suffix not in (".html", ".css", ".js", ".svg"):
            continue
        text = path.read_text()
        if path.suffix == ".css":
            found = IN_STYLE.findall(text)
        elif path.suffix == ".js":
            found = [each for each in IN_SCRIPT.findall(text) if not each.startswith(tuple(NEVER))]
        else:
            page = _Page()
            page.feed(text)
            found = page.found
        yield from ((str(path.relative_to(directory)), each) for each in found)


def main(argv: list[str]) -> int:
    directory = Path(argv[0])
    if not (directory / "index.html").exists():
        print(f"{directory} is no site")
        return 2
    found = list(elsewhere(directory))
    for file, what in found:
        print(f"{file}: {what}")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
