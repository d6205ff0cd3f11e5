"""Tried as a new user would: in a fresh clone and a fresh virtual environment, by the README's section "Try it" alone.

Only the image is ours: the README tells to bring one. ``make demo``, the step before, is run by CI.
"""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

import imagemaker

ROOT = Path(__file__).parent.parent


def section(title):
    return (ROOT / "README.md").read_text().partition(f"## {title}\n")[2].partition("\n## ")[0]


@pytest.fixture(scope="module")
def clone(tmp_path_factory):
    """What git would give to others; of an unpacked sdist, a copy of it."""
    place = tmp_path_factory.mktemp("user") / "layerstore"
    if (ROOT / ".git").exists():
        subprocess.run(["git", "clone", "--quiet", "--depth", "1", ROOT.as_uri(), place], check=True)
    else:
        shutil.copytree(ROOT, place, ignore=shutil.ignore_patterns(".venv*", "build", "__pycache__"))
    files = {"etc": imagemaker.Dir(), "etc/os-release": b"ID=mine\n", "bin": imagemaker.Dir(), "bin/tool": b"x" * 5000}
    imagemaker.Image([imagemaker.Layer(files), imagemaker.Layer({"etc/motd": b"hello\n"})]).write_oci_archive(place / "app.tar")
    return place


def test_every_command_of_the_section_works_as_it_stands(clone):
    blocks = re.findall(r"^```sh\n(.*?)^```", section("Try it"), re.MULTILINE | re.DOTALL)
    assert len(blocks) == 3
    environment = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "VIRTUAL_ENV", "LAYERSTORE_ROOT")}
    done = subprocess.run(["bash", "-euo", "pipefail", "-c", "\n".join(blocks)], cwd=clone, env=environment, capture_output=True,
                          text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    *_, last = lines = done.stdout.splitlines()
    assert re.fullmatch(r"\d+ kills, 0 of them cost something", last), lines
    assert int(last.split()[0]) >= 5
    assert sum(line.endswith(" entries") for line in lines) == 2       # a line for each layer, by the code of one's own
    assert (clone / "try-it" / "rootfs" / "etc" / "os-release").read_text() == "ID=mine\n"
    assert (clone / "try-it" / "rootfs" / "etc" / "motd").read_text() == "hello\n"
