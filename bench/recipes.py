"""Where the files of the layers come from: Debian's, Python's and npm's packages, through their ordinary clients.

A recipe writes one layer, and returns in words what it is made of. Where its tool is missing, or its registry cannot be
reached, it writes a generated tree of about the same shape instead, and says so: it is never left out in silence.
"""

from __future__ import annotations

import glob
import io
import os
import platform
import random
import re
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from bench import machine

TIME = 1_700_000_000         # of every entry
TINY_FILES = 100_000
_PYTHON = ["django==5.2.7", "boto3==1.40.50", "sympy==1.14.0", "sqlalchemy==2.0.44", "babel==2.17.0", "pygments==2.19.2",
           "jinja2==3.1.6", "requests==2.32.5", "pydantic==2.12.2", "mypy==1.18.2"]
_NEWER = ["django==5.2.8", *_PYTHON[1:]]   # what a rebuild some weeks later would have
_NODE = ["typescript@5.9.3", "webpack@5.102.1", "eslint@9.37.0", "react@19.2.0", "react-dom@19.2.0", "date-fns@4.1.0",
         "lodash@4.17.21", "rxjs@7.8.2", "core-js@3.46.0", "@babel/preset-env@7.28.3", "jest@30.2.0"]
_LARGE = ["torch==2.13.0", "numpy==2.3.4", "scipy==1.16.2"]
_LARGE_AT_LEAST = 1 << 20
_NOT_LARGE = ("cuda", "nvshmem")   # in some indexes' wheels of torch and in others not


class _NotHereError(Exception):
    """A tool is missing, or did not get what it was to get."""


def _run(command: list[str], **more: Any) -> str:
    if machine.which(command[0]) is None:
        raise _NotHereError(f"{command[0]} is not installed")
    environment = {**os.environ, "PATH": os.environ.get("PATH", os.defpath) + ":/usr/sbin:/sbin",
                   "DEBIAN_FRONTEND": "noninteractive", "SOURCE_DATE_EPOCH": str(TIME), "LC_ALL": "C.UTF-8"}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, **more)
    if done.returncode != 0:
        raise _NotHereError(f"{command[0]} failed: {done.stderr.strip()[-300:] or done.stdout.strip()[-300:]}")
    return done.stdout


def _or_generated(recipe: Callable[[str], tuple[str, str]], shape: Callable[[random.Random], int], files: int,
                  prefix: str = "", *, rebuilt: bool = False) -> Callable[[Any, str], str]:
    """*recipe* makes a tree in a directory and returns it and its description; else *files* files of a *shape*."""

    def write(writer: Any, work: str) -> str:
        os.makedirs(work)
        try:
            tree, made_of = recipe(work)
        except _NotHereError as error:
            generate(writer, files, shape, prefix or "srv/generated", rebuilt=rebuilt)
            return f"GENERATED ({error})"
        writer.add_tree(tree, prefix)
        return made_of

    return write


# -- a base system -------------------------------------------------------------------------------------------------------


def _base(work: str) -> tuple[str, str]:
    if os.geteuid() != 0:
        raise _NotHereError("debootstrap needs root")
    tree = os.path.join(work, "root")
    suite = platform.freedesktop_os_release().get("VERSION_CODENAME", "bookworm")
    _run(["debootstrap", "--variant=minbase", suite, tree, *_debian_mirror()])
    for left in ("var/cache/apt", "var/lib/apt/lists", "var/log"):   # differ from one making to the next
        shutil.rmtree(os.path.join(tree, left), ignore_errors=True)
        os.makedirs(os.path.join(tree, left))
    return tree, f"debootstrap --variant=minbase {suite}"


def _debian_mirror() -> list[str]:
    """Where this machine's apt gets its packages from; nothing, which is debootstrap's own default, if it does not say."""
    told = _run(["apt-get", "indextargets", "--format", "$(SITE) $(RELEASE)"])
    return re.findall(r"^(\S+/debian)/? ", told, re.MULTILINE)[:1]


# -- many small files ------------------------------------------------------------------------------------------------------


def _small(work: str, packages: Sequence[str] = _PYTHON) -> tuple[str, str]:
    tree = os.path.join(work, "root")
    target = os.path.join(tree, "usr/local/lib/python3/dist-packages")
    os.makedirs(target)
    debian = _debian_python(work, tree)
    _run([sys.executable, "-m", "pip", "install", "--quiet", "--compile", "--target", target, *packages])
    return tree, f"{debian}pip install {' '.join(packages)}, with .pyc"


def _newer(work: str) -> tuple[str, str]:
    return _small(work, _NEWER)


def _debian_python(work: str, tree: str) -> str:
    packages = _run(["apt-cache", "depends", "--recurse", "--no-recommends", "--no-suggests", "--no-conflicts",
                     "--no-breaks", "--no-replaces", "--no-enhances", "python3"])
    names = sorted(set(re.findall(r"^(\w*python3[\w.]*(?:-minimal|-stdlib)?)$", packages, re.MULTILINE)))
    _run(["apt-get", "download", *names], cwd=work)
    for package in sorted(glob.glob(os.path.join(work, "*.deb"))):
        _run(["dpkg-deb", "-x", package, tree])
    for library in glob.glob(os.path.join(tree, "usr/lib/python3.*")):
        subprocess.run([sys.executable, "-m", "compileall", "-q", library], capture_output=True, check=False)
    return f"Debian's {', '.join(names)}; "


# -- very many very small files ----------------------------------------------------------------------------------------------


def _node(work: str) -> tuple[str, str]:
    tree = os.path.join(work, "app")
    os.makedirs(tree)
    with open(os.path.join(tree, "package.json"), "w", encoding="ascii") as file:
        file.write('{"name": "app", "version": "1.0.0", "private": true}\n')
    _run(["npm", "install", "--silent", "--no-audit", "--no-fund", "--ignore-scripts", *_NODE], cwd=tree)
    return tree, f"npm install {' '.join(_NODE)}"


# -- few large files ---------------------------------------------------------------------------------------------------------


def _large(work: str) -> tuple[str, str]:
    wheels, tree = os.path.join(work, "wheels"), os.path.join(work, "root")
    os.makedirs(os.path.join(tree, "opt/lib"))
    _run([sys.executable, "-m", "pip", "install", "--quiet", "--no-compile", "--no-deps", "--target", wheels, *_LARGE])
    for directory, _, names in os.walk(wheels):
        for name in names:
            path = os.path.join(directory, name)
            wanted = ".so" in name and not any(each in name for each in _NOT_LARGE) and not os.path.islink(path)
            if wanted and os.path.getsize(path) >= _LARGE_AT_LEAST:
                os.rename(path, os.path.join(tree, "opt/lib", name))
    versions = sorted(os.path.basename(each).removesuffix(".dist-info") for each in glob.glob(f"{wheels}/*.dist-info"))
    return tree, f"the shared objects of 1 MiB and more, but for CUDA's, of {', '.join(versions)}"


# -- generated ---------------------------------------------------------------------------------------------------------------


def generate(writer: Any, files: int, size: Callable[[random.Random], int], prefix: str, *, rebuilt: bool = False) -> None:
    """*files* files, a hundred to a directory, with words in them that compress about as text does.

    *rebuilt*: as they are after a rebuild: one in ten is another one, and one in ten begins otherwise, as ``.pyc`` do.
    """
    rng = random.Random(files)
    words = [bytes(rng.choices(b"abcdefghijklmnopqrstuvwxyz", k=rng.randint(2, 9))) for _ in range(5000)]
    text = b" ".join(rng.choices(words, k=400_000))
    writer.parents(f"{prefix}/x")
    for number in range(files):
        if number % 100 == 0:
            within = f"{prefix}/{number // 10_000:03d}/{number // 100:05d}"
            if number % 10_000 == 0:
                writer.add(directory(os.path.dirname(within)))
            writer.add(directory(within))
        info = tarfile.TarInfo(f"{within}/file-{number:07d}.txt")
        info.size, info.mode = size(rng), 0o644
        piece = _piece(text, rng, info.size)
        if rebuilt and number % 10 == 0:
            piece = piece[::-1]
        elif rebuilt and number % 10 == 5:
            piece = b"built again later"[:info.size] + piece[17:]
        writer.add(info, io.BytesIO(piece))


def _piece(text: bytes, rng: random.Random, size: int) -> bytes:
    start = rng.randrange(len(text) // 2)
    out = text[start:start + size]
    while len(out) < size:
        out += text[:size - len(out)]
    return out


def directory(name: str) -> tarfile.TarInfo:
    """The entry of a directory."""
    info = tarfile.TarInfo(name)
    info.type, info.mode = tarfile.DIRTYPE, 0o755
    return info


def _tiny(writer: Any, work: str) -> str:
    del work
    generate(writer, TINY_FILES, lambda rng: rng.randrange(200), "srv/tiny")
    return f"{TINY_FILES:,} generated files of 0 to 199 bytes, a hundred to a directory"


def _sample(writer: Any, work: str, *, rebuilt: bool = False) -> str:
    del work
    generate(writer, 300, lambda rng: rng.randrange(4000), "srv/sample", rebuilt=rebuilt)
    return "300 generated files, to try the command out" + rebuilt * ", rebuilt"


RECIPES: dict[str, Callable[[Any, str], str]] = {
    "base": _or_generated(_base, lambda rng: int(rng.paretovariate(0.8) * 900) % 4_000_000, 5_000),
    "small": _or_generated(_small, lambda rng: int(rng.paretovariate(0.9) * 2_000) % 1_000_000, 16_000),
    "node": _or_generated(_node, lambda rng: int(rng.paretovariate(1.0) * 300) % 500_000, 23_000, "srv/app"),
    "large": _or_generated(_large, lambda rng: rng.randrange(1 << 20, 60 << 20), 19),
    "tiny": _tiny,
    "sample": _sample,
    "newer": _or_generated(_newer, lambda rng: int(rng.paretovariate(0.9) * 2_000) % 1_000_000, 16_000, rebuilt=True),
    "sample-newer": partial(_sample, rebuilt=True),
}
REAL = ("base", "small", "node", "large", "tiny")
