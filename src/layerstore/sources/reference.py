"""References to images on this machine, as users write them, and the names that follow from them.

``oci:DIR[:TAG]``, ``oci-archive:FILE[:TAG]``, ``docker-archive:FILE[:REPOSITORY:TAG]``. Pure functions over
text. The path ends at the first colon, as everywhere in the field (containers/image, oci/internal
ParsePathTag), so a path that holds a colon cannot be named; the tag may hold further colons.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass

from layerstore.errors import InvalidArgumentError

__all__ = ["Reference", "parse_reference", "suggested_name", "usable_name"]

KINDS = ("oci", "oci-archive", "docker-archive")
_FORMS = (
    "write oci:DIR[:TAG], oci-archive:FILE[:TAG], docker-archive:FILE[:REPOSITORY:TAG] or "
    "docker://HOST/REPOSITORY[:TAG|@DIGEST], or containers-storage:[overlay@ROOT]NAME"
)
_TAG = re.compile(r"[!-~]{1,255}\Z")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/@+-]{0,254}\Z")   # what the store takes as a name
_ID = re.compile(r"[0-9a-f]{64}\Z")


@dataclass(frozen=True, slots=True)
class Reference:
    """A parsed reference. *tag* is None where none was written."""

    kind: str
    path: str
    tag: str | None

    def __str__(self) -> str:
        return f"{self.kind}:{self.path}" + (f":{self.tag}" if self.tag is not None else "")


def parse_reference(text: str) -> Reference:
    """Parse *text*; raise InvalidArgumentError, with the possible forms as its hint, for anything else."""
    if not isinstance(text, str):
        raise InvalidArgumentError(f"an image reference is text, not {text!r}", hint=_FORMS)
    kind, colon, rest = text.partition(":")
    if not colon or kind not in KINDS:
        raise InvalidArgumentError(f"{text!r} is not an image reference that can be pulled", hint=_FORMS)
    path, colon, tag = rest.partition(":")
    if not path or "\0" in path:
        raise InvalidArgumentError(f"{text!r} names no file or directory", hint=_FORMS)
    if colon and not _TAG.match(tag):
        raise InvalidArgumentError(f"{text!r} has an unusable tag {tag!r}", hint=_FORMS)
    return Reference(kind, path, tag if colon else None)


def suggested_name(reference: Reference, tag: str | None) -> str | None:
    """The name an OCI image suggests: ``<base>:<tag>``, or ``<base>``; None if that is not usable.

    ``<base>`` is the directory's own name, after ``.``, ``..`` and symbolic links were resolved, or the
    archive's file name without ``.tar``. A tag that is a whole reference by itself
    (``docker.io/library/debian:12``, as several tools write them) is the name, without the base.
    """
    if tag is not None and ("/" in tag or ":" in tag):
        return usable_name(tag)
    base = os.path.basename(os.path.realpath(reference.path) if reference.kind == "oci" else reference.path)
    if reference.kind != "oci":
        base = base.removesuffix(".tar")
    return usable_name(base if tag is None else f"{base}:{tag}")


def usable_name(name: str) -> str | None:
    """*name* if the store takes it, else None: a suggestion must not make a pull fail."""
    return name if _NAME.match(name) and not _ID.match(name) else None
