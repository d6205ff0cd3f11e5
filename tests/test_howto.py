"""What the pages show is run, block after block, or stands below with the reason why not; and the pages lead to each other."""

import importlib.util
import os
import posixpath
import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

import imagemaker
import layerstore
import signing

ROOT = Path(__file__).parent.parent
HOWTOS = {   # how many pieces of each are run: every sh block, and all Python as one
    "use-it": 1, "debug-a-crash": 5, "wiped-podman-store": 3, "verifying": 3, "beneath": 3, "operate": 4, "rebuild": 1,
    "observing": 1, "rootless": 1, "snapshots": 2,
}
RUN_ELSEWHERE = {   # page, kind: how many, and by which test
    ("README.md", "sh"): (4, "test_new_user.py, test_readme.py; the rest are make's"),
    ("README.md", "python"): (2, "test_readme.py"),
    ("docs/testing.md", "python"): (2, "crash/test_testing.py"),
    ("docs/podman.md", "sh"): (3, "test_readme.py"),
    ("journal/README.md", "python"): (1, "test_journal_readme.py"),
}
NOT_RUN = {   # page, kind: how many, and why
    ("CONTRIBUTING.md", "sh"): (2, "make's targets are what CI runs"),
    ("README.md", "make"): (2, "make's targets are what CI runs"),
    ("fuzz/README.md", "sh"): (1, "runs for hours; its shortest form is in test_fuzz.py"),
    ("docs/check.md", "sh"): (1, "runs for minutes; its shortest form is in test_corruption.py"),
    ("docs/testing.md", "sh"): (1, "its commands are killed, as they shall be; test_cli.py and test_concurrency.py set the same variables"),
    ("docs/beneath.md", "console"): (1, "makes file system images, and mounts them"),
    ("docs/operate.md", "console"): (3, "changes the machine"), ("docs/operate.md", "ini"): (2, "is no command"),
    ("docs/podman.md", "console"): (1, "podman's own; test_podman.py does the same"),
    ("docs/registry.md", "console"): (1, "wants a registry; test_push_registry.py has one"),
    ("docs/wiped-podman-store.md", "console"): (4, "podman's own, over this user's own store"),
}
SHOWN_ONLY = {"text", "json", "toml", "mermaid", ""}


def blocks(page):
    """What is to be run, in order: each sh block, and the Python blocks, which go on from each other, as one."""
    found = re.findall(r"```(\w+)\n(.*?)```", (ROOT / "docs" / f"{page}.md").read_text(), re.DOTALL)
    python = "\n".join(body for kind, body in found if kind == "python")
    first = next((n for n, (kind, _) in enumerate(found) if kind == "python"), None)
    return [(kind, python if kind == "python" else body) for n, (kind, body) in enumerate(found)
            if kind == "sh" or n == first]


@pytest.fixture
def place(tmp_path):
    """What the pages take for granted: an image that is signed, tars, a store with the image in it, the command line."""
    files = {"etc": imagemaker.Dir(), "etc/os-release": b"ID=test\n"}
    made = imagemaker.Image([imagemaker.Layer(files, compression="none")]).write_oci(tmp_path / "image", tag="latest")
    private, _public = signing.key_pair(tmp_path)
    signing.sign_with(private, made.path, made.manifest_digest)
    shutil.copy(ROOT / "examples" / "verify.py", tmp_path)
    for name in ("base", "top"):
        (tmp_path / f"{name}.tar.gz").write_bytes(imagemaker.Layer({name: b"1"}, compression="gzip").blob_bytes())
    (tmp_path / "tmp").mkdir()
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "layerstore").write_text(f'#!/bin/sh\nexec "{sys.executable}" -m layerstore "$@"\n')
    (tmp_path / "bin" / "layerstore").chmod(0o755)
    with layerstore.open(tmp_path / "layers") as store:
        store.pull(f"oci:{tmp_path}/image:latest", names=["app"])
    return tmp_path


@pytest.mark.parametrize("page", [pytest.param(page, marks=pytest.mark.root) if page == "snapshots" else page for page in HOWTOS])
def test_what_a_howto_shows_runs(page, place):
    environment = {**os.environ, "LAYERSTORE_ROOT": str(place / "layers"), "PATH": f"{place}/bin:{os.environ['PATH']}"}
    ran = 0
    for kind, body in blocks(page):
        text = body.replace("/tmp/", f"{place}/tmp/").replace("/srv/", f"{place}/")
        command = [sys.executable, "-c", text] if kind == "python" else ["bash", "-euo", "pipefail", "-c", text]
        done = subprocess.run(command, cwd=place, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, (text, done.stdout, done.stderr)
        ran += 1
    assert ran == HOWTOS[page]


def test_every_block_of_every_page_is_run_or_listed_with_the_reason_why_not():
    found = Counter()
    for page in sitepages().pages():
        for kind, body in re.findall(r"^```(\w*)\n(.*?)^```", (ROOT / page).read_text(), re.MULTILINE | re.DOTALL):
            if kind not in SHOWN_ONLY and not (kind in ("sh", "python") and Path(page).stem in HOWTOS):
                found[page, "make" if page == "README.md" and body.startswith("make ") else kind] += 1
    assert found == {key: count for key, (count, _) in {**RUN_ELSEWHERE, **NOT_RUN}.items()}


def test_no_command_is_indented_instead_of_in_a_block():
    """Nobody would notice that it is not run."""
    for page in sitepages().pages():
        outside = re.sub(r"^```.*?^```", "", (ROOT / page).read_text(), flags=re.MULTILINE | re.DOTALL)
        assert re.findall(r"^ {4,}(?:layerstore|pip|podman|make|python\d?) .*", outside, re.MULTILINE) == [], page


def sitepages():
    spec = importlib.util.spec_from_file_location("sitepages", ROOT / "tools" / "sitepages.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_link_of_the_sites_pages_leads_to_a_page_of_it(tmp_path):
    """``make site`` finds that, too, and takes longer."""
    sitepages().lay_out(tmp_path)
    pages = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.md")}
    assert {"README.md", "docs/crash-model.md", "docs/adr/README.md", "journal/README.md", "api/layerstore.md"} <= pages
    links = 0
    for page in pages:
        for target in re.findall(r"(?<!!)\[[^\]\n]*\]\(([^)#\s]+)", (tmp_path / page).read_text()):
            if "://" not in target:
                assert posixpath.normpath(posixpath.join(posixpath.dirname(page), target)) in pages, (page, target)
                links += 1
    assert links > 50
    for page in pages:
        for picture in re.findall(r"!\[[^\]\n]*\]\(([^)\s]+)\)", (tmp_path / page).read_text()):
            assert (tmp_path / page).parent.joinpath(picture).exists(), (page, picture)


def test_every_page_of_the_sites_contents_is_there_and_every_public_name_has_a_place(tmp_path):
    sitepages().lay_out(tmp_path)
    contents = re.findall(r": (\S+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.MULTILINE)
    assert len(contents) > 20
    assert [page for page in contents if not (tmp_path / page).exists()] == []
    reference = (tmp_path / "api" / "layerstore.md").read_text()
    missing = [name for name in layerstore.__all__ if not re.search(rf"\.{name}$", reference, re.MULTILINE)]
    assert set(missing) <= {"LayerstoreError", "errors", "fault_point"}      # on the pages of errors and of crash-testing
