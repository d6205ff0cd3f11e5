"""What a name in a tar may be, and names as text. Pure."""

from __future__ import annotations

from layerstore.errors import ArchiveError, LimitExceededError
from layerstore.model import Limits

__all__ = ["NAME_MAX", "Cleaner", "checked_link", "os_text", "show"]

NAME_MAX = 255                           # bytes of one path component (Linux, every file system)


class Cleaner:
    """Makes names relative and plain; remembers the last directory, because files come directory by directory."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._parent = b"\0"             # as an archive had it; none has this
        self._clean_parent = b""         # the same, cleaned, with its slash
        self._room = -1                  # bytes that a base name in it may have

    def name(self, name: bytes, offset: int) -> bytes:
        """*name* without leading ``/``, ``.`` and empty parts. ``..`` is refused even where it would stay inside."""
        parent, _, base = name.rpartition(b"/")
        if parent == self._parent and 2 < len(base) <= self._room and base.find(0) < 0:
            return self._clean_parent + base
        clean = self.clean(name, "name", offset)
        if len(base) > 2:                # not a directory, and neither "." nor ".."
            self._parent, self._clean_parent = parent, clean[: len(clean) - len(base)]
            self._room = min(NAME_MAX, self._limits.max_path_length - len(self._clean_parent))
        return clean

    def clean(self, name: bytes, what: str, offset: int) -> bytes:
        """The same for any *what*, in full."""
        if b"\0" in name:
            raise ArchiveError(f"a NUL byte in the {what} {show(name)}", offset=offset)
        if not name:
            raise ArchiveError(f"an empty {what}", offset=offset)
        parts = [part for part in name.split(b"/") if part and part != b"."]
        if b".." in parts:
            raise ArchiveError(f"the {what} {show(name)} contains '..'", offset=offset)
        limits = self._limits
        if len(parts) > limits.max_depth:
            raise LimitExceededError(
                f"the {what} {show(name)} has {len(parts)} components", limit="max_depth", maximum=limits.max_depth,
            )
        clean = b"/".join(parts)
        if len(clean) > limits.max_path_length:
            raise LimitExceededError(
                f"the {what} {show(clean)} has {len(clean)} bytes", limit="max_path_length",
                maximum=limits.max_path_length,
            )
        if len(clean) > NAME_MAX and max(map(len, parts)) > NAME_MAX:
            raise ArchiveError(
                f"a component of the {what} {show(clean)} is longer than {NAME_MAX} bytes", offset=offset
            )
        return clean


def checked_link(link: bytes, name: bytes, limits: Limits, offset: int) -> bytes:
    """The target of the symbolic link *name*: verbatim, if the kernel can hold it."""
    if not link or b"\0" in link:
        raise ArchiveError(f"the symbolic link {show(name)} has the target {show(link)}", offset=offset)
    if len(link) >= limits.max_path_length:
        raise LimitExceededError(
            f"the target of the symbolic link {show(name)} has {len(link)} bytes", limit="max_path_length",
            maximum=limits.max_path_length - 1,
        )
    return link


def show(name: bytes) -> str:
    """*name* for a message: printable, and not endless."""
    text = repr(os_text(name[:200]))
    return text + "…" if len(name) > 200 else text


def os_text(name: bytes) -> str:
    r"""A path as text that can be printed and stored: UTF-8, every other byte as ``\xNN``."""
    return name.decode("utf-8", "backslashreplace")
