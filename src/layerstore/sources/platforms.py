"""Platforms (``os/arch[/variant]``): the machine's own, and which of several images suits one best.

Sources: OCI image-spec, image-index.md (platform); containerd's platforms package, for what a machine also
runs (arm/v7 runs v6 and v5, amd64/v3 runs v2 and v1) and for the variants that are meant when none is named.
"""

from __future__ import annotations

import platform as machine
import re
from collections.abc import Sequence
from dataclasses import dataclass

from layerstore.errors import InvalidArgumentError, NoMatchingPlatformError

__all__ = ["Platform", "best", "check_config", "parse_platform", "this_machine"]

_PART = re.compile(r"[a-z0-9][a-z0-9._-]*\Z")
_ALIASES = {
    "x86_64": ("amd64", ""), "x86-64": ("amd64", ""), "aarch64": ("arm64", ""), "armhf": ("arm", "v7"),
    "armel": ("arm", "v6"), "armv8l": ("arm", "v7"), "armv7l": ("arm", "v7"), "armv6l": ("arm", "v6"),
    "armv5l": ("arm", "v5"), "i386": ("386", ""), "i486": ("386", ""), "i586": ("386", ""),
    "i686": ("386", ""), "loongarch64": ("loong64", ""),
}
_IMPLIED = {"amd64": "v1", "arm": "v7", "arm64": "v8"}
_ALSO_RUNS = {
    "amd64": ("v4", "v3", "v2", "v1"), "arm": ("v8", "v7", "v6", "v5"), "arm64": ("v9", "v8"),
}


@dataclass(frozen=True, slots=True)
class Platform:
    """An operating system, an architecture (both in Go's spelling) and a variant, ``""`` if there is none."""

    os: str
    architecture: str
    variant: str = ""

    def __str__(self) -> str:
        return "/".join(part for part in (self.os, self.architecture, self.variant) if part)

    def normalized(self) -> Platform:
        """The same with the field's aliases resolved and the implied variant spelled out."""
        architecture, variant = _ALIASES.get(self.architecture, (self.architecture, ""))
        variant = self.variant or variant or _IMPLIED.get(architecture, "")
        if variant.isdigit():
            variant = f"v{variant}"
        return Platform(self.os, architecture, variant)


def parse_platform(text: str) -> Platform:
    """Parse ``os/arch`` or ``os/arch/variant``; raise InvalidArgumentError for anything else."""
    parts = text.lower().split("/") if isinstance(text, str) else []
    if len(parts) not in (2, 3) or not all(_PART.match(part) for part in parts):
        raise InvalidArgumentError(
            f"{text!r} is not a platform",
            hint="write os/arch or os/arch/variant, such as linux/amd64 or linux/arm/v7",
        )
    return Platform(*parts)


def this_machine() -> Platform:
    """The platform of the running machine, as its kernel names it (uname(2))."""
    return Platform(machine.system().lower(), machine.machine().lower()).normalized()


def best(wanted: Platform, offered: Sequence[Platform | None]) -> int | None:
    """The position in *offered* of what suits *wanted* best, of equals the first; None if nothing does."""
    wanted = wanted.normalized()
    variants = _runs(wanted.architecture, wanted.variant)
    found: tuple[int, int] | None = None
    for position, each in enumerate(offered):
        if each is None:
            continue
        have = each.normalized()
        if (have.os, have.architecture) == (wanted.os, wanted.architecture) and have.variant in variants:
            candidate = (variants.index(have.variant), position)
            found = candidate if found is None else min(found, candidate)
    return None if found is None else found[1]


def check_config(wanted: Platform | None, have: Platform | None, label: str) -> None:
    """NoMatchingPlatformError if a platform was asked for and the config says another.

    Variants are left out of it: many configs do not say them, and the index, which does, has been asked
    already.
    """
    if wanted is None:
        return
    want, got = wanted.normalized(), have.normalized() if have is not None else None
    if got is None or (got.os, got.architecture) != (want.os, want.architecture):
        raise NoMatchingPlatformError(
            f"the image in {label} is for {have or 'a platform that it does not name'}, not for {wanted}",
            hint="leave the platform out to take the image as it is",
        )


def _runs(architecture: str, variant: str) -> tuple[str, ...]:
    """The variants that a machine of *variant* runs, the best first."""
    known = _ALSO_RUNS.get(architecture, ())
    return known[known.index(variant):] if variant in known else (variant,)
