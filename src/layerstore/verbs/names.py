"""Names of layers and images: what may be one, and whether it is free. Reads only; giving and taking is the verbs'."""

from __future__ import annotations

import re

from layerstore.errors import DuplicateNameError, InvalidArgumentError
from layerstore.lifecycle import catalog

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/@+-]{0,254}\Z")


def check_name(name: str) -> str:
    """Names are 1 to 255 characters of ``[A-Za-z0-9._:/@+-]``, beginning with a letter or digit."""
    if not isinstance(name, str) or not _NAME.match(name):
        raise InvalidArgumentError(f"{name!r} is not a usable name", hint=check_name.__doc__)
    if re.fullmatch(r"[0-9a-f]{64}", name):
        raise InvalidArgumentError(f"the name {name!r} would look like an ID")
    return name


def check_name_free(path: catalog.Reader, name: str, owner: str, replace_names: bool) -> None:
    """DuplicateNameError if *name* belongs to something else, or is claimed by a transaction under way."""
    row = path.get("names", name)
    if row is not None and row["id"] != owner and not replace_names:
        raise DuplicateNameError(f"the name {name!r} belongs to {row['kind']} {row['id']}")
    if path.get("claims", name) is not None:
        raise DuplicateNameError(
            f"the name {name!r} is being given by another transaction", hint="try again when it is done",
        )
