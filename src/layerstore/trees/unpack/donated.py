"""A regular file that has its content before the archive's stream gives it: checked against the stream, then given a name.

Such a file shares its blocks with one of another layer, so that nothing is written. Where it comes from is the differ's.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator

from layerstore.errors import DigestMismatchError
from layerstore.formats.tar import Entry
from layerstore.partial import Donor
from layerstore.system import fs
from layerstore.trees.dress import Dresser, entry_text

__all__ = ["check_donor", "link_in"]


def check_donor(donor: Donor, entry: Entry, data: Iterator[memoryview], check: Callable[[], None]) -> bytes:
    """The digest of the stream's *data*. DigestMismatchError unless it is what *donor* holds: it stands for no other."""
    digest = hashlib.sha256()
    for piece in data:
        check()
        digest.update(piece)
    if (entry.size, digest.digest()) != (donor.size, donor.sha256):
        raise DigestMismatchError(
            f"{entry_text(entry)} is not what was found for it", expected=f"sha256:{donor.sha256.hex()}",
            actual=f"sha256:{digest.hexdigest()}",
        )
    return donor.sha256


def link_in(donor: Donor, dir_fd: int, name: bytes, entry: Entry, dress: Dresser) -> int:
    """Give *donor* its name and attributes; bits of what could not be set. FileExistsError if something is there."""
    fs.link_nameless(donor.file.fd, dir_fd, name, point="unpack.donor.link")
    return dress.open_file(donor.file.fd, entry)
