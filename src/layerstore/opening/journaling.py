"""The store's journal: how it is opened and made, and what its errors become.

Not here: what is written into it (``lifecycle``), and when.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

import layerjournal
from layerjournal import Journal, Salvaged
from layerstore.errors import (
    AlreadyOpenError,
    BusyError,
    ForkedError,
    IoError,
    JournalDamagedError,
    NoSpaceError,
    OutcomeUnknownError,
    PidNamespaceError,
    ReadOnlyError,
)
from layerstore.lifecycle.projection import CatalogProjector
from layerstore.system import faults

__all__ = ["create_journal", "fault_hook", "journal_errors", "open_journal", "rebuild_journal", "salvage_journal"]

T = TypeVar("T")


def fault_hook(point: str, when: str) -> None:
    """The journal's effects pass the store's fault points."""
    (faults.before if when == "before" else faults.after)(point)


def open_journal(
    path: str, *, readonly: bool = False, clock: Callable[[], int], hook: Callable[[str, str], None] = fault_hook,
    locks: bool = True,
) -> Journal:
    """The journal in the directory *path*; its own errors, untranslated. *hook* is told of its effects."""
    return Journal.open(path, CatalogProjector(), readonly=readonly, clock=clock, hook=hook, locks=locks)


def create_journal(path: str, *, uuid: str, clock: Callable[[], int]) -> Journal:
    """A new one. Durability: it is on disk, whole, when this returns; a crash before leaves none."""
    return Journal.create(path, CatalogProjector(), uuid=uuid, clock=clock, hook=fault_hook)


def salvage_journal(root: str, uuid: str, more: Sequence[str] = ()) -> Salvaged:
    """What can still be proven of the journal of the store at *root*; *more* are snapshots of it. Reads only."""
    path = os.path.join(root, "journal")
    return layerjournal.salvage(path, uuid, os.path.join(path, "segments"), more)


def rebuild_journal(
    path: str, left: Salvaged, then: Callable[[layerjournal.WriteTxn], T], *, clock: Callable[[], int],
) -> T:
    """A data file in the new directory *path* that goes on from what is *left*, and what *then* appends. Durable."""
    return Journal.rebuild(path, CatalogProjector(), left, then, clock=clock, hook=fault_hook)


@contextmanager
def journal_errors(set_poison: Callable[[str], None] | None) -> Iterator[None]:
    """Translate layerjournal's errors into ours, by the same fault; tell *set_poison* where the handle is good no more."""
    try:
        yield
    except layerjournal.AlreadyOpenError as error:
        raise AlreadyOpenError(str(error)) from error
    except layerjournal.ForkedError as error:
        raise ForkedError(str(error)) from error
    except layerjournal.PidNamespaceError as error:
        raise PidNamespaceError(str(error)) from error
    except layerjournal.BusyError as error:
        raise BusyError(str(error)) from error
    except layerjournal.NoSpaceError as error:
        raise NoSpaceError(str(error)) from error
    except layerjournal.ReadOnlyError as error:
        raise ReadOnlyError(str(error)) from error
    except (layerjournal.OutcomeUnknownError, layerjournal.PoisonedError) as error:
        if set_poison is not None:
            set_poison(str(error))
        raise OutcomeUnknownError(str(error)) from error
    except (layerjournal.DamagedError, layerjournal.MissingError) as error:
        raise JournalDamagedError(str(error)) from error
    except layerjournal.JournalError as error:
        raise IoError(str(error)) from error
