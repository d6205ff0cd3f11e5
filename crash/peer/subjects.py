"""The two stores that are compared: how to make one, import a layer, list, clean up.

What is killed is always a command line. What lists afterwards is the command line too, or, where starting Python
would take most of the time, the same verb of the public API in a forked child.

What may live here: commands, and where each keeps what. How they are killed and judged is ``compare``'s.
"""

from __future__ import annotations

import hashlib
import json
import os
import shlex
import subprocess
import sys
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

import layerstore
from crash.content import Content
from layerstore.testing import ChildDiedError, telling

PARENT = "b" * 64


@dataclass(frozen=True)
class Look:
    """What a store says it has: layers; unfinished work that it keeps; the paths (relative) that belong to those."""

    listed: set[str]
    kept: list[str]
    paths: set[str]

    def knows(self, path: str) -> bool:
        return any(path == each or path.startswith(each + "/") for each in self.paths)


class Subject(ABC):
    """One store: a directory, and a command line."""

    name: str
    verb: str
    repair_verb: str

    def __init__(self, tars: Mapping[str, str], layer: Content) -> None:
        self.tars, self.layer = tars, layer

    @abstractmethod
    def version(self) -> str: ...

    @abstractmethod
    def prepare(self, root: str) -> None:
        """A store with one committed layer, opened once more since, so that all that any command makes is there."""

    @abstractmethod
    def load(self, root: str) -> list[str]:
        """The command that imports the layer on its parent."""

    @property
    @abstractmethod
    def layer_id(self) -> str: ...

    @abstractmethod
    def look(self, root: str) -> Look:
        """The next thing anybody does: open the store (which lets it heal itself), and list what it has."""

    @abstractmethod
    def tree(self, root: str, layer_id: str) -> str: ...

    @abstractmethod
    def mount(self, root: str, layer_id: str) -> None:
        """Mount a layer, and unmount it."""

    @abstractmethod
    def repair(self, root: str) -> None:
        """What its manual says to do about left-overs."""

    def environment(self) -> dict[str, str]:
        return {"PATH": os.environ["PATH"], "LC_ALL": "C.UTF-8", "HOME": "/nonexistent", "PYTHONDONTWRITEBYTECODE": "1"}

    def call(self, command: Sequence[str]) -> str:
        """Run a command of the store's, in a mount namespace of its own: what it mounts does not outlive it."""
        private = ["unshare", "--mount", "--propagation", "private", *command]
        done = subprocess.run(private, env=self.environment(), capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise CommandError(f"{' '.join(command)}: {done.stderr.strip() or done.stdout.strip()}")
        return done.stdout


class CommandError(Exception):
    """A command of a store under comparison failed."""


class ContainersStorage(Subject):
    """containers/storage by its command ``containers-storage``, with the driver and options that it has by default."""

    name = "containers-storage"
    verb = "import-layer"
    repair_verb = "shutdown"   # this version's command line has neither check nor gc

    def version(self) -> str:
        shown = self.call(["dpkg-query", "-W", "-f", "${Version}", "containers-storage"])
        return f"containers-storage {shown} (Debian)"

    def _run(self, root: str, *arguments: str) -> list[str]:
        return ["containers-storage", "-g", f"{root}/graph", "-R", f"{root}/run", *arguments]

    def environment(self) -> dict[str, str]:
        return {**super().environment(), "CONTAINERS_STORAGE_CONF": "/dev/null"}

    def prepare(self, root: str) -> None:
        self.call(self._run(root, "import-layer", "-i", PARENT, "-f", self.tars["parent"]))
        self.look(root)

    @property
    def layer_id(self) -> str:
        return "c" * 64

    def load(self, root: str) -> list[str]:
        return self._run(root, "import-layer", "-i", self.layer_id, "-f", self.tars["layer"], PARENT)

    def look(self, root: str) -> Look:
        listed = {each["id"] for each in json.loads(self.call(self._run(root, "layers", "--json"))) or []}
        names = {"graph/overlay-layers/layers.json", "run/overlay-layers/mountpoints.json"}
        for layer_id in listed:
            names |= {f"graph/overlay/{layer_id}", f"graph/overlay-layers/{layer_id}.tar-split.gz"}
            with suppress(FileNotFoundError), open(f"{root}/graph/overlay/{layer_id}/link", encoding="ascii") as file:
                names.add(f"graph/overlay/l/{file.read()}")
        return Look(listed, [], names)

    def tree(self, root: str, layer_id: str) -> str:
        return f"{root}/graph/overlay/{layer_id}/diff"

    def mount(self, root: str, layer_id: str) -> None:
        commands = (shlex.join(self._run(root, verb, layer_id)) for verb in ("mount", "unmount"))
        self.call(["sh", "-ec", "; ".join(commands)])

    def repair(self, root: str) -> None:
        self.call(self._run(root, "shutdown"))


class Layerstore(Subject):
    """This store, by ``python -m layerstore``."""

    name = "layerstore"
    verb = "apply"
    repair_verb = "gc --retention 0 --grace 0"

    def version(self) -> str:
        return self.call([sys.executable, "-m", "layerstore", "--version"]).strip().replace(", version", "")

    def _run(self, root: str, *arguments: str) -> list[str]:
        return [sys.executable, "-m", "layerstore", "--root", root, *arguments]

    def prepare(self, root: str) -> None:
        self.call(self._run(root, "apply", "--name", "parent", self.tars["parent"]))
        self.look(root)

    @property
    def layer_id(self) -> str:
        return hashlib.sha256(f"{self._parent()}+{self.layer.diff_id[7:]}".encode()).hexdigest()

    def _parent(self) -> str:
        with open(self.tars["parent"], "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    def load(self, root: str) -> list[str]:
        return self._run(root, "apply", "--parent", "parent", "--name", "layer", self.tars["layer"])

    def look(self, root: str) -> Look:
        def ask() -> Look:
            with layerstore.open(root) as store:
                listed = {each.id for each in store.layers()}
                kept = [f"staging/{each}" for each in store.collect_garbage(retention=0, dry_run=True).staged]
            return Look(listed, kept, {*(f"layers/{each}" for each in listed), *kept})

        try:
            return telling(ask)
        except ChildDiedError as error:
            raise CommandError(f"opening the store: {error}") from error

    def tree(self, root: str, layer_id: str) -> str:
        return f"{root}/layers/{layer_id}/diff"

    def mount(self, root: str, layer_id: str) -> None:
        with tempfile.TemporaryDirectory() as target:
            commands = (self._run(root, "mount", layer_id, target), self._run(root, "unmount", target))
            self.call(["sh", "-ec", "; ".join(map(shlex.join, commands))])

    def repair(self, root: str) -> None:
        def collect() -> None:
            with layerstore.open(root) as store:
                store.collect_garbage(retention=0, grace=0)

        telling(collect)
