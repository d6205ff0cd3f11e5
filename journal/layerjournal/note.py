"""The note that tells the next opener whether the data file must be looked at, page by page, before it is used.

That look costs what is stored, so it is not for every opening. It is for those at which the file may be another than the
one that was in use here: the first of a boot, because only then all of it comes from the disk anew; and whenever somebody
else changed it since it was closed. Here: the note's text, and what it says of a data file. ``namespace`` keeps it, in the
second line of ``pidns``; it is worth nothing in another boot, and is never synced.

============================================ ==========================================================================
``in use <dev>:<ino>``                       looked at in this boot, and used since; what is killed leaves it so, and
                                             damages no page
``left <dev>:<ino> <size> <mtime> <ctime>``  closed by the last who used it, in nanoseconds
anything else                                it must be looked at
============================================ ==========================================================================
"""

from __future__ import annotations

import os


def in_use(data: str) -> str:
    """The note while the file *data* is in use. OSError if it is not there."""
    return f"in use {_which(os.stat(data))}"


def left(data: str) -> str:
    """The note when nobody uses *data* any more, and all that was done to it was done by its users."""
    found = os.stat(data)
    return f"left {_which(found)} {found.st_size} {found.st_mtime_ns} {found.st_ctime_ns}"


def vouches(text: str, data: str) -> bool:
    """Whether the note *text*, of this boot, says that *data* need not be looked at."""
    try:
        return text in (in_use(data), left(data))
    except OSError:
        return False


def _which(found: os.stat_result) -> str:
    return f"{found.st_dev}:{found.st_ino}"
