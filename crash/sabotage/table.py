"""The mistakes: read from ``patches.toml``, and planted in a copy of the product. Nothing is run here."""

from __future__ import annotations

import os
import shutil
import tomllib
from dataclasses import dataclass

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(os.path.dirname(HERE))
PACKAGES = ("src/layerstore", "journal/layerjournal")


class PatchError(AssertionError):
    """A patch does not apply: the product has changed, and the table must follow."""


@dataclass(frozen=True, slots=True)
class Sabotage:
    """One planted mistake. ``equivalent``: why nothing can notice it; empty for all others."""

    name: str
    file: str
    was: str
    now: str
    equivalent: str = ""


CONTROL = Sabotage("control", "", "", "")
"""No mistake at all: whatever is caught with this one is a false alarm."""


def load(path: str = os.path.join(HERE, "patches.toml")) -> list[Sabotage]:
    """All of them, in the table's order. PatchError for a name that is there twice."""
    with open(path, "rb") as file:
        made = [Sabotage(**row) for row in tomllib.load(file)["sabotage"]]
    names = [each.name for each in made]
    if twice := {name for name in names if names.count(name) > 1}:
        raise PatchError(f"{sorted(twice)} twice in {path}")
    return made


def plant(sabotage: Sabotage, directory: str) -> list[str]:
    """A copy of the product in *directory* with the mistake in it; what must be first in its ``PYTHONPATH``."""
    for package in PACKAGES:
        shutil.copytree(os.path.join(ROOT, package), os.path.join(directory, package))
    if sabotage.file:
        path = os.path.join(directory, sabotage.file)
        with open(path, encoding="utf-8") as file:
            text = file.read()
        patched = patch(text, sabotage)
        with open(path, "w", encoding="utf-8") as file:
            file.write(patched)
    return [os.path.join(directory, os.path.dirname(package)) for package in PACKAGES]


def patch(text: str, sabotage: Sabotage) -> str:
    """*text* with the mistake in it. PatchError unless the old text stands there exactly once."""
    if not sabotage.was or sabotage.was == sabotage.now or text.count(sabotage.was) != 1:
        raise PatchError(f"{sabotage.name}: the text to change is {text.count(sabotage.was)} times in {sabotage.file}")
    patched = text.replace(sabotage.was, sabotage.now)
    compile(patched, sabotage.file, "exec")
    return patched
