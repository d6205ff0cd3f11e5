"""Everybody who unpacks, as a command line: us, and the peers that this machine has.

A *contender* is one program in one setting. Its store (or directory) is new, empty, and made before the clock starts.
``sync`` after a command is part of it, in the same shell. Everything that a peer writes, temporary files as well, goes to
the private file system. Nothing here is measured; adding a peer is adding a row to ``contenders``.
"""

from __future__ import annotations

import glob
import os
import shlex
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import layerstore
from bench import machine
from bench.compiled import compiled
from bench.layers import COMPRESSIONS, Blob

_TARFILE = """
import sys, tarfile
path, target, compression = sys.argv[1:]
file = open(path, 'rb')
if compression == 'zstd':
    import zstandard
    archive = tarfile.open(fileobj=zstandard.ZstdDecompressor().stream_reader(file), mode='r|')
else:
    archive = tarfile.open(fileobj=file, mode='r:gz' if compression == 'gzip' else 'r:')
archive.extractall(target, filter='tar')
"""


@dataclass(frozen=True)
class Place:
    """Where one run works: a new directory on the private file system, and one in memory for what belongs in /run."""

    path: str
    run: str
    cache: str


@dataclass(frozen=True)
class Contender:
    """One row. ``core`` ones run in every round and compression, because a target is about them."""

    name: str
    label: str
    program: str                                     # what must be on PATH
    version: Callable[[], str | None]
    command: Callable[[Place, Blob], str]
    tree: Callable[[Place], str]                     # where the unpacked files then are
    prepare: Callable[[Place], None] = lambda _place: None
    environment: Callable[[Place], Mapping[str, str]] = lambda _place: {}
    core: bool = False
    synced: bool = False
    compressions: tuple[str, ...] = COMPRESSIONS
    needs: tuple[str, ...] = field(default=())       # other programs that it cannot do without

    def missing(self) -> str | None:
        """What it lacks here; None if it can run."""
        lacking = [each for each in (self.program, *self.needs) if machine.which(each) is None]
        return f"{', '.join(lacking)}: not installed" if lacking else None


def environment(place: Place, contender: Contender) -> dict[str, str]:
    """A plain environment, the same for all, and what the contender's setting changes in it."""
    path = os.environ.get("PATH", os.defpath)
    return {"PATH": path, "LC_ALL": "C.UTF-8", "HOME": place.run, "TMPDIR": place.path, "REGISTRY_AUTH_FILE": "/dev/null",
            "CONTAINERS_STORAGE_CONF": "/dev/null", **contender.environment(place)}


def _join(*words: str) -> str:
    return shlex.join(words)


def _then_sync(command: Callable[[Place, Blob], str]) -> Callable[[Place, Blob], str]:
    return lambda place, blob: f"{command(place, blob)} && {machine.which('sync')} -f {shlex.quote(place.path)}"


def _first_line(*command: str) -> Callable[[], str | None]:
    def ask() -> str | None:
        if machine.which(command[0]) is None:
            return None
        told = subprocess.run(command, capture_output=True, text=True, check=False).stdout
        return told.strip().split("\n")[0]
    return ask


# -- us ------------------------------------------------------------------------------------------------------------------


def _ours(place: Place, blob: Blob) -> str:
    return _join(sys.executable, "-P", "-m", "layerstore", "--root", f"{place.path}/store", "apply", blob.path)


def _our_store(place: Place) -> None:
    layerstore.open(f"{place.path}/store").close()


def _our_tree(place: Place) -> str:
    (tree,) = glob.glob(f"{place.path}/store/layers/*/diff")
    return tree


def _no_flush(place: Place) -> dict[str, str]:
    return {"LD_PRELOAD": compiled(place.cache, "noflush")}


def _our_synced(place: Place, blob: Blob) -> str:
    """Unsynced, and then a sync that is real: only our process has the library that does nothing."""
    sync = f"LD_PRELOAD= {machine.which('sync')} -f {shlex.quote(place.path)}"
    return f"{_ours(place, blob)} && {sync}"


_ORDINARY = ("unshare", "--user", "--map-root-user")   # may set no other owner, make no device, set no trusted attribute


def _ours_ordinary(place: Place, blob: Blob) -> str:
    return f"{_join(*_ORDINARY)} {_ours(place, blob)}"


def _our_ordinary_store(place: Place) -> None:
    """Made by the same user, who has another form of overlay's marks."""
    made = [*_ORDINARY, sys.executable, "-P", "-c", "import layerstore, sys; layerstore.open(sys.argv[1]).close()", f"{place.path}/store"]
    subprocess.run(made, check=True, capture_output=True)


# -- containers/storage ----------------------------------------------------------------------------------------------------


def _storage(place: Place) -> list[str]:
    return [machine.which("containers-storage") or "", "-s", "overlay", "-g", f"{place.path}/graph", "-R", f"{place.run}/run"]


def _import(place: Place, blob: Blob) -> str:
    return _join(*_storage(place), "import-layer", "-f", blob.path)


def _their_store(place: Place) -> None:
    subprocess.run([*_storage(place), "layers"], check=True, capture_output=True,
                   env={**os.environ, "CONTAINERS_STORAGE_CONF": "/dev/null"})


def _their_tree(place: Place) -> str:
    (tree,) = glob.glob(f"{place.path}/graph/overlay/*/diff")
    return tree


def _path_of(*programs: str) -> Callable[[Place], dict[str, str]]:
    """A PATH with these and nothing else."""
    def make(place: Place) -> dict[str, str]:
        directory = os.path.join(place.run, "path")
        os.makedirs(directory, exist_ok=True)
        for program in programs:
            found = machine.which(program)
            if found is not None and not os.path.lexists(os.path.join(directory, program)):
                os.symlink(found, os.path.join(directory, program))
        return {"PATH": directory}
    return make


def _skopeo(place: Place, blob: Blob) -> str:
    return skopeo_copy(place, blob.layout)


def skopeo_copy(place: Place, layout: str) -> str:
    store = f"[overlay@{place.path}/graph+{place.run}/run]"
    return _join("skopeo", "--insecure-policy", "--tmpdir", place.path, "copy", "-q", f"oci:{layout}:t",
                 f"containers-storage:{store}localhost/bench:t")


# -- those who only extract ---------------------------------------------------------------------------------------------------


def _tar(place: Place, blob: Blob) -> str:
    return _join("tar", "--numeric-owner", "-xpf", blob.path, "-C", f"{place.path}/tree")


def _bsdtar(place: Place, blob: Blob) -> str:
    return _join("bsdtar", "--numeric-owner", "-xpf", blob.path, "-C", f"{place.path}/tree")


def _tarfile(place: Place, blob: Blob) -> str:
    return _join(sys.executable, "-P", "-c", _TARFILE, blob.path, f"{place.path}/tree", blob.compression)


def _umoci(place: Place, blob: Blob) -> str:
    return umoci_unpack(place, blob.layout)


def umoci_unpack(place: Place, layout: str) -> str:
    return _join("umoci", "raw", "unpack", "--image", f"{layout}:t", f"{place.path}/tree")


def _directory(place: Place) -> None:
    os.mkdir(f"{place.path}/tree")


def _tree(place: Place) -> str:
    return f"{place.path}/tree"


def _package(name: str) -> Callable[[], str | None]:
    def ask() -> str | None:
        version = machine.debian_version(name)
        return version and f"{name} {version} (Debian)"
    return ask


def contenders() -> dict[str, Contender]:
    """All rows, by name; ours first."""
    us = lambda: f"layerstore {layerstore.__version__}"   # noqa: E731
    storage = _package("containers-storage")
    empty, pigz = _path_of(), _path_of("pigz", "unpigz", "zstd")
    rows = [
        Contender("ours", "layerstore, durable", sys.executable, us, _ours, _our_tree, _our_store, core=True, synced=True),
        Contender("ours-unsynced", "layerstore, flushes made void", sys.executable, us, _ours, _our_tree, _our_store,
                  _no_flush, core=True),
        Contender("ours-unsynced+sync", "layerstore, flushes made void; sync", sys.executable, us, _our_synced, _our_tree,
                  _our_store, _no_flush, core=True, synced=True),
        Contender("ours-ordinary", "layerstore, durable, without privilege (a user namespace with one user)", sys.executable, us,
                  _ours_ordinary, _our_tree, _our_ordinary_store, synced=True, needs=("unshare",)),
        Contender("storage", "containers-storage import-layer", "containers-storage", storage, _import, _their_tree,
                  _their_store, empty, core=True),
        Contender("storage+sync", "containers-storage import-layer; sync", "containers-storage", storage,
                  _then_sync(_import), _their_tree, _their_store, empty, synced=True),
        Contender("storage-pigz", "containers-storage import-layer, pigz on PATH", "containers-storage", storage, _import,
                  _their_tree, _their_store, pigz, compressions=("gzip",), needs=("pigz",)),
        Contender("skopeo", "skopeo copy oci: containers-storage:", "skopeo", _package("skopeo"), _skopeo, _their_tree),
        Contender("umoci", "umoci raw unpack", "umoci", _package("umoci"), _umoci, _tree, compressions=("plain", "gzip")),
        Contender("tar", "GNU tar", "tar", _first_line("tar", "--version"), _tar, _tree, _directory),
        Contender("tar+sync", "GNU tar; sync", "tar", _first_line("tar", "--version"), _then_sync(_tar), _tree, _directory,
                  core=True, synced=True),
        Contender("bsdtar", "bsdtar", "bsdtar", _first_line("bsdtar", "--version"), _bsdtar, _tree, _directory),
        Contender("bsdtar+sync", "bsdtar; sync", "bsdtar", _first_line("bsdtar", "--version"), _then_sync(_bsdtar), _tree,
                  _directory, synced=True),
        Contender("tarfile", "Python's tarfile", sys.executable, _first_line(sys.executable, "--version"), _tarfile, _tree,
                  _directory),
    ]
    return {each.name: each for each in rows}
