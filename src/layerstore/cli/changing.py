"""What ``commit --change`` says, as members of an image's config. The instructions are those of a Dockerfile.

Pure. Members and their forms: OCI image specification, config.md.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import click

__all__ = ["changes"]

_Config = dict[str, Any]


def changes(given: Sequence[str]) -> Callable[[Mapping[str, Any]], Mapping[str, Any]]:
    """What makes the new config of the base's. UsageError for what is no change."""
    steps = [_step(text) for text in given]

    def change(config: Mapping[str, Any]) -> Mapping[str, Any]:
        new = {**config}
        for member, put, value in steps:
            put(new, member, value)
        return new

    return change


def _step(text: str) -> tuple[str, Callable[[_Config, str, str], None], str]:
    name, at = text, len(text)
    for sign in (" ", "="):              # CMD ["a"] as well as CMD=["a"]
        found = text.find(sign)
        if 0 <= found < at:
            name, at = text[:found], found
    if name.upper() not in _INSTRUCTIONS or at == len(text):
        raise click.UsageError(f"{text!r} is not one of {', '.join(_INSTRUCTIONS)} and what it shall be")
    member, put = _INSTRUCTIONS[name.upper()]
    value = text[at + 1:].strip()
    if put in (_pair, _assignment) and not value.partition("=")[0]:
        raise click.UsageError(f"{text!r}: {name} wants NAME=VALUE")
    return member, put, value


def _text(config: _Config, member: str, value: str) -> None:
    config[member] = value


def _words(config: _Config, member: str, value: str) -> None:
    """A JSON array as it is; anything else is for the shell."""
    try:
        found = json.loads(value)
    except ValueError:
        found = None
    whole = isinstance(found, list) and all(isinstance(each, str) for each in found)
    config[member] = found if whole else ["/bin/sh", "-c", value]


def _assignment(config: _Config, member: str, value: str) -> None:
    """The last one of a name counts; the others keep their order."""
    name = value.partition("=")[0] + "="
    kept = [each for each in config.get(member) or [] if not each.startswith(name)]
    config[member] = [*kept, value if "=" in value else name]


def _pair(config: _Config, member: str, value: str) -> None:
    name, _, text = value.partition("=")
    config[member] = {**(config.get(member) or {}), name: text}


def _element(config: _Config, member: str, value: str) -> None:
    config[member] = {**(config.get(member) or {}), value: {}}


_INSTRUCTIONS: dict[str, tuple[str, Callable[[_Config, str, str], None]]] = {
    "CMD": ("Cmd", _words), "ENTRYPOINT": ("Entrypoint", _words), "ENV": ("Env", _assignment),
    "EXPOSE": ("ExposedPorts", _element), "LABEL": ("Labels", _pair), "STOPSIGNAL": ("StopSignal", _text),
    "USER": ("User", _text), "VOLUME": ("Volumes", _element), "WORKDIR": ("WorkingDir", _text),
}
