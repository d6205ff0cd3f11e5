"""What the how-tos show is run, block after block; and the site's pages lead to each other.

``console`` blocks want programs that are not the project's, and are not run. docs/testing.md has a test of its own.
"""

import importlib.util
import os
import posixpath
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import imagemaker
import layerstore
import signing

ROOT = Path(__file__).parent.parent
HOWTOS = ("use-it", "debug-a-crash", "wiped-podman-store", "verifying", "beneath")


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


@pytest.mark.parametrize("page", HOWTOS)
def test_what_a_howto_shows_runs(page, place):
    environment = {**os.environ, "LAYERSTORE_ROOT": str(place / "layers"), "PATH": f"{place}/bin:{os.environ['PATH']}"}
    ran = 0
    for kind, body in blocks(page):
        text = body.replace("/tmp/", f"{place}/tmp/").replace("/srv/", f"{place}/")
        command = [sys.executable, "-c", text] if kind == "python" else ["bash", "-euo", "pipefail", "-c", text]
        done = subprocess.run(command, cwd=place, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, (text, done.stdout, done.stderr)
        ran += 1
    assert ran == {"use-it": 1, "debug-a-crash": 5, "wiped-podman-store": 3, "verifying": 3, "beneath": 3}[page]


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
