"""Draw the mermaid blocks of the laid-out pages, in place: ``python tools/diagrams.py DIRECTORY``.

Each becomes a picture beside its page, so that no reader's browser fetches a program to draw it. The pages in the
repository keep their blocks: code forges draw them. Exit status 1 if none was drawn, or if one is left: only the plain form
of a block is drawn, and any other that the site's generator would take for one is named.
"""

import re
import sys
from pathlib import Path

BLOCK = re.compile(r"^```mermaid\n(.*?)^```\n", re.MULTILINE | re.DOTALL)
ARROW = re.compile(r"\s*(\S+) --> (\S+): (.*)")
FENCE = re.compile(r"^(?:[ \t>]|[-*+][ \t]|\d+[.)][ \t])*(?:`{3,}|~{3,})[^\n`]*\bmermaid\b")   # in lists and quotes, too


def drawn(directory: Path) -> int:
    """How many blocks were drawn."""
    count = 0
    for page in sorted(directory.rglob("*.md")):
        text = page.read_text()
        found = BLOCK.findall(text)
        for number, block in enumerate(found, 1):
            picture = page.with_name(f"{page.stem}-{number}.svg")
            picture.write_text(svg(block))
            shown = f"![State diagram; the table has the same]({picture.name})\n"
            text = text.replace(f"```mermaid\n{block}```\n", shown, 1)
        if found:
            page.write_text(text)
        count += len(found)
    return count


def left(directory: Path) -> list[str]:
    """Where a block begins that was not drawn: page and line."""
    return [
        f"{page.relative_to(directory)}:{number}"
        for page in sorted(directory.rglob("*.md"))
        for number, line in enumerate(page.read_text().splitlines(), 1) if FENCE.match(line)
    ]


def svg(diagram: str) -> str:
    """A state diagram as it is in a file of its own. AssertionError for what is none."""
    import pygraphviz

    head, *lines = diagram.strip().splitlines()
    assert head == "stateDiagram-v2", f"not a state diagram: {head}"
    graph = pygraphviz.AGraph(directed=True, strict=False, bgcolor="transparent", fontname="sans-serif")
    graph.node_attr.update(shape="box", style="rounded,filled", fillcolor="#ececff", color="#9370db", fontname="sans-serif")
    graph.edge_attr.update(color="#555555", fontcolor="#333333", fontname="sans-serif", fontsize="11", arrowsize="0.7")
    graph.add_node("[*]", shape="circle", style="filled", fillcolor="#333333", color="#333333", label="", width="0.18")
    for line in lines:
        source, target, label = ARROW.fullmatch(line).groups()
        graph.add_edge(source, target, label=f" {label} ")
    return graph.draw(format="svg", prog="dot").decode()


def main(argv: list[str]) -> int:
    directory = Path(argv[0])
    count, undrawn = drawn(directory), left(directory)
    print(f"{count} diagrams")
    for place in undrawn:
        print(f"{place}: a diagram that is not drawn; ```mermaid must begin its line, and ``` end the block")
    return 0 if count and not undrawn else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
