"""Draw the mermaid blocks of the laid-out pages, in place: ``python tools/diagrams.py DIRECTORY``.

Each becomes a picture beside its page, so that no reader's browser fetches a program to draw it. The pages in the
repository keep their blocks: code forges draw them.
"""

import re
import sys
from pathlib import Path

BLOCK = re.compile(r"^```mermaid\n(.*?)^```\n", re.MULTILINE | re.DOTALL)


def drawn(directory: Path) -> int:
    """How many blocks were drawn."""
    count = 0
    for page in sorted(directory.rglob("*.md")):
        text = page.read_text()
        found = BLOCK.findall(text)
        for number, block in enumerate(found, 1):
            picture = page.with_name(f"{page.stem}-{number}.svg")
            picture.write_text(svg(block))
            text = text.replace(f"```mermaid\n{block}```\n", f"![State diagram; the table has the same]({picture.name})\n", 1)
        if found:
            page.write_text(text)
        count += len(found)
    return count


def svg(diagram: str) -> str:
    """As it is in a file of its own: with a size in place of what fills the page, and a common font."""
    import mmdr

    made = mmdr.render(diagram).svg()
    width, height = re.search(r'viewBox="\S+ \S+ (\S+) (\S+)"', made).groups()
    made = made.replace('width="100%"', f'width="{float(width):.0f}" height="{float(height):.0f}"', 1)
    return made.replace('"Recursive Variable",arial', "verdana,arial")


if __name__ == "__main__":
    print(f"{drawn(Path(sys.argv[1]))} diagrams")
