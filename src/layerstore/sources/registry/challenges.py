"""``WWW-Authenticate``: what a server wants to be told. Parsing only (RFC 9110 §11.6.1).

Several challenges in one header or in several (which are joined by commas) are told apart: an auth-scheme is a word that
no ``=`` follows. What other schemes than Basic and Bearer say in one word instead of parameters is left out.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

__all__ = ["Challenge", "parse_challenges"]

_WORD = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_PARAMETER = re.compile(rf'[\s,]*({_WORD})\s*=\s*(?:"((?:[^"\\]|\\.)*)"|({_WORD}))')
_SCHEME = re.compile(rf"[\s,]*({_WORD})(?=[\s,]|\Z)(?:\s+[0-9A-Za-z._~+/-]+=*(?=\s*(?:,|\Z)))?")   # "token68", too: skipped
_MAX_LENGTH = 16 << 10
_MAX_CHALLENGES = 16


@dataclass(frozen=True, slots=True)
class Challenge:
    """A scheme, in lower case, and its parameters, their names in lower case."""

    scheme: str
    parameters: Mapping[str, str] = field(default_factory=dict)


def parse_challenges(header: str) -> list[Challenge]:
    """The challenges of a header, in their order; as many as can be read, never an error."""
    found: list[Challenge] = []
    position = 0
    header = header[:_MAX_LENGTH]
    while len(found) < _MAX_CHALLENGES and (scheme := _SCHEME.match(header, position)):
        position = scheme.end()
        parameters: dict[str, str] = {}
        while parameter := _PARAMETER.match(header, position):
            name, quoted, plain = parameter.groups()
            parameters.setdefault(name.lower(), plain if quoted is None else re.sub(r"\\(.)", r"\1", quoted))
            position = parameter.end()
        found.append(Challenge(scheme[1].lower(), parameters))
    return found
