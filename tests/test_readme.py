"""What the README shows is run: its Python as it stands, its commands in order; and its links lead somewhere."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

import layerstore

import imagemaker

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", README, re.DOTALL)


def prepared(tmp_path):
    imagemaker.Image([imagemaker.Layer({"etc/os-release": b"ID=test\n"})]).write_oci(tmp_path / "image", tag="latest")
    (tmp_path / "base.tar.gz").write_bytes(imagemaker.Layer({"a": b"1"}, compression="gzip").blob_bytes())
    (tmp_path / "upper").mkdir()
    (tmp_path / "upper" / "b").write_text("2")
    (tmp_path / "mnt").mkdir()


def here(text, tmp_path):
    for name in ("/srv/layers", "/srv/view", "/tmp/rootfs", "/tmp/upper", "/mnt/image", "/copy/of/journal"):
        text = text.replace(name, str(tmp_path / name.rpartition("/")[2]))
    return text


def test_the_python_of_the_readme_runs(tmp_path, monkeypatch):
    prepared(tmp_path)
    monkeypatch.chdir(tmp_path)
    code = "\n".join(body for kind, body in BLOCKS if kind == "python")
    assert "store.pull" in code
    assert "DirectoryDiffer" in code
    done = subprocess.run([sys.executable, "-c", here(code, tmp_path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "rootfs" / "etc" / "os-release").exists()


def test_the_commands_of_the_readme_run(tmp_path):
    prepared(tmp_path)
    script = README.partition("## On the command line")[2].partition("```sh\n")[2].partition("```")[0]
    lines = [line.partition(" #")[0].strip() for line in script.splitlines()]
    ran = 0
    environment = {**os.environ, "LAYERSTORE_ROOT": str(tmp_path / "layers")}
    for line in lines:
        if not line.startswith("layerstore ") or (re.search(r" (mount|commit|unmount) ", line) and os.geteuid() != 0):
            continue
        line = here(line.replace(" /mnt", f" {tmp_path}/mnt"), tmp_path)
        if " ID " in line:
            with layerstore.open(tmp_path / "layers", readonly=True) as store:
                line = line.replace(" ID ", f" {store.layers()[0].id} ")
        if "journal replay" in line:
            subprocess.run(["cp", "-a", tmp_path / "layers" / "journal", tmp_path / "journal"], check=True)
        done = subprocess.run([sys.executable, "-m", *line.split()], cwd=tmp_path, env=environment, capture_output=True,
                              text=True, check=False)
        assert done.returncode == 0, (line, done.stderr)
        ran += 1
    of_root = sum(bool(re.search(r" (mount|commit|unmount) ", line)) for line in lines)
    assert of_root == 3
    assert ran == len(lines) - 1 - (0 if os.geteuid() == 0 else of_root)      # but for the export of the variable


def test_the_commands_of_the_page_on_podman_run(tmp_path):
    prepared(tmp_path)
    blocks = re.findall(r"```sh\n(.*?)```", (ROOT / "docs" / "podman.md").read_text(), re.DOTALL)
    lines = [line.partition(" #")[0].strip() for block in blocks for line in block.splitlines()]
    # a registry, podman itself and its default store are for test_push_registry.py and test_podman.py
    lines = [line for line in lines if line.startswith("layerstore ") and "docker://" not in line and "storage:docker" not in line]
    environment = {**os.environ, "LAYERSTORE_ROOT": str(tmp_path / "layers")}
    for line in lines:
        line = here(line, tmp_path).replace("/var/lib/containers/storage", str(tmp_path / "view"))
        done = subprocess.run([sys.executable, "-m", *shlex.split(line)], cwd=tmp_path, env=environment, capture_output=True,
                              text=True, check=False)
        assert done.returncode == 0, (line, done.stderr)
    assert len(lines) == 6, lines


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", "docs/crash-model.md", "docs/on-disk.md", "docs/check.md",
                                  "docs/observing.md", "docs/podman.md"])
def test_links_lead_somewhere(page):
    path = ROOT / page
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", path.read_text()):
        if "://" not in target:
            assert (path.parent / target).exists(), f"{page} links to {target}"


@pytest.mark.parametrize("page", ["regressions.md", "registry.md"])
def test_every_row_of_a_table_of_tests_names_tests_that_exist(page):
    text = (ROOT / "docs" / page).read_text()
    files = [*(ROOT / "tests").rglob("test_*.py"), *(ROOT / "journal").rglob("test_*.py")]
    everything = "".join(p.read_text() for p in files)
    names = re.findall(r"`(test_\w+)`", text)
    assert len(names) >= 12
    for name in names:
        assert f"def {name}(" in everything, name
