"""The site is read without a network: its diagrams are pictures in it, and nothing is fetched from another host.

``make site`` builds it and looks at all of it; here is what looks.
"""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def tool(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / "tools" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


sitecheck, diagrams = tool("sitecheck"), tool("diagrams")


@pytest.fixture
def site(tmp_path):
    (tmp_path / "index.html").write_text(
        '<link rel="stylesheet" href="a.css"><link rel="canonical" href="https://layers.example/">'
        '<script src="../a.js"></script><a href="https://semver.example/">a link that a reader follows</a>'
        '<img src="a.svg"><script>var x = {"base": ".", "names": "a//b"}</script>')
    (tmp_path / "a.css").write_text("a { background: url(a.svg) } /* https://made.example/by */")
    (tmp_path / "a.js").write_text('// https://made.example/by\nload("https://unpkg.com/mermaid@11/dist/mermaid.min.js")')
    (tmp_path / "a.svg").write_text('<svg xmlns="http://www.w3.org/2000/svg"><use href="#a"/></svg>')
    return tmp_path


def test_a_site_that_has_all_it_needs_passes(site, capsys):
    assert sitecheck.main([str(site)]) == 0
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(("file", "text"), [
    ("index.html", '<script src="https://cdn.example/x.js"></script>'), ("index.html", '<link href="//cdn.example/x.css">'),
    ("index.html", '<img srcset="a.png 1x, https://cdn.example/b.png 2x">'), ("index.html", '<pre class="x mermaid">a</pre>'),
    ("index.html", '<div class="language-mermaid highlight"><pre>a</pre></div>'),
    ("index.html", "<style>@import 'https://cdn.example/x.css'</style>"), ("index.html", '<p style="background: url(//cdn.example/x)">'),
    ("index.html", '<script>fetch("https://cdn.example/x.json")</script>'), ("a.css", "@font-face { src: url('https://cdn.example/f.woff2') }"),
    ("a.js", 'import("https://cdn.example/x.js")'), ("a.svg", '<image xlink:href="https://cdn.example/x.png"/>'),
])
def test_what_a_browser_would_fetch_elsewhere_is_found(site, file, text, capsys):
    (site / file).write_text((site / file).read_text() + text)
    assert sitecheck.main([str(site)]) == 1
    assert file in capsys.readouterr().out


def test_a_directory_without_a_site_does_not_pass(tmp_path):
    assert sitecheck.main([str(tmp_path)]) == 2


def test_each_diagram_becomes_a_picture_beside_its_page(tmp_path, monkeypatch):
    monkeypatch.setattr(diagrams, "svg", lambda text: f"<svg>{text}</svg>")
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "states.md").write_text((ROOT / "docs" / "states.md").read_text())
    (tmp_path / "other.md").write_text("```text\nas it is\n```\n")
    count = diagrams.drawn(tmp_path)
    text = (tmp_path / "docs" / "states.md").read_text()
    assert count == 5
    assert "```" not in text
    for number in range(1, count + 1):
        assert f"(states-{number}.svg)" in text
        assert "stateDiagram-v2" in (tmp_path / "docs" / f"states-{number}.svg").read_text()
    assert (tmp_path / "other.md").read_text() == "```text\nas it is\n```\n"


FENCES = {   # what of it is a diagram that is not drawn
    "indented": "- item\n\n    ```mermaid\n    a\n    ```\n", "of tildes": "~~~mermaid\na\n~~~\n",
    "with attributes": '```{.mermaid title="x"}\na\n```\n', "with an option": '```mermaid title="x"\na\n```\n',
    "at the end": "```mermaid\na\n```", "after a space": "``` mermaid\na\n```\n", "longer": "````mermaid\na\n````\n",
    "quoted": "> ```mermaid\n> a\n> ```\n", "in an item": "- ```mermaid\n  a\n  ```\n", "open": "```mermaid\na\n",
}
DRAWN = "```mermaid\nstateDiagram-v2\n```\n"


@pytest.mark.parametrize("form", FENCES)
def test_a_diagram_that_was_not_drawn_is_refused(form, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(diagrams, "svg", lambda text: f"<svg>{text}</svg>")
    (tmp_path / "page.md").write_text(f"{DRAWN}\n{FENCES[form]}")
    assert diagrams.main([str(tmp_path)]) == 1
    assert "page.md:" in capsys.readouterr().out


def test_pages_of_which_none_has_a_diagram_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(diagrams, "svg", lambda text: f"<svg>{text}</svg>")
    (tmp_path / "page.md").write_text("text about `mermaid` and a mermaid\n")
    assert diagrams.main([str(tmp_path)]) == 1
    (tmp_path / "other.md").write_text(DRAWN)
    assert diagrams.main([str(tmp_path)]) == 0


def test_a_site_with_a_diagram_that_was_not_drawn_does_not_pass(tmp_path, capsys):
    """As the generator that ``make site`` runs lays it out, with its settings."""
    pytest.importorskip("mkdocs")
    (tmp_path / "pages").mkdir()
    (tmp_path / "pages" / "index.md").write_text(FENCES["indented"])
    (tmp_path / "mkdocs.yml").write_text(
        f"INHERIT: {ROOT / 'mkdocs.yml'}\ndocs_dir: pages\nsite_dir: site\nnav: [index.md]\nnot_in_nav: ''\n")
    subprocess.run([sys.executable, "-m", "mkdocs", "build", "--quiet", "--strict", "-f", tmp_path / "mkdocs.yml"], check=True,
                   cwd=ROOT, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"})
    assert sitecheck.main([str(tmp_path / "site")]) == 1
    assert capsys.readouterr().out == "index.html: a diagram that a script draws\n"


def test_make_site_draws_and_looks():
    recipe = (ROOT / "Makefile").read_text().partition("\nsite:")[2].partition("\n\n")[0]
    order = [recipe.index(step) for step in ("sitepages.py", "diagrams.py", "mkdocs build --strict", "sitecheck.py")]
    assert order == sorted(order)
    assert "font: false" in (ROOT / "mkdocs.yml").read_text()
