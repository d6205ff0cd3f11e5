"""Around every call of a verb: the store stays open, the reserve helps what frees space, no bare OSError gets out."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Concatenate, ParamSpec, Protocol, TypeVar

from layerstore.errors import NoSpaceError
from layerstore.observe import verb
from layerstore.opening import reserve
from layerstore.opening.handle import Handle
from layerstore.system.fs import host_error

__all__ = ["as_verb"]

_FREEING = frozenset({
    "delete_layer", "delete_image", "collect_garbage", "checkpoint", "recover", "drop_name", "drop_lease", "unmount",
})
"""Verbs that free space, or are needed for it: they may use the reserve."""


class Callee(Protocol):
    """Whose methods are verbs: the store."""

    _handle: Handle

    @property
    def root(self) -> str: ...


P = ParamSpec("P")
S = TypeVar("S", bound=Callee)
T = TypeVar("T")


def as_verb(method: Callable[Concatenate[S, P], T]) -> Callable[Concatenate[S, P], T]:
    """Make *method* a verb: it is told to the observer, too."""

    @functools.wraps(method)
    def call(self: S, /, *args: P.args, **options: P.kwargs) -> T:
        handle = self._handle
        with handle.in_use(), verb(handle.observer, method.__name__):
            try:
                if method.__name__ in _FREEING and not handle.readonly:
                    return _freeing(handle, lambda: method(self, *args, **options))
                return method(self, *args, **options)
            except NoSpaceError:
                from layerstore.verbs import checkpoint  # noqa: PLC0415 - slow to import, and a command that reads needs it not

                checkpoint.relieve(handle)   # so that the next attempt finds what was deleted before
                raise
            except OSError as error:
                raise host_error(error, f"{method.__name__} in {self.root}", at=handle.root_fd) from error

    return call


def _freeing(handle: Handle, call: Callable[[], T]) -> T:
    """With the reserve, if the disk is nearly full; once more with it, if a quota was, which the disk says nothing of."""
    reserve.open_up(handle.root_fd)
    try:
        return call()
    except NoSpaceError:   # nothing happened yet, so it may be done again
        if not reserve.held(handle.root_fd):
            raise
        reserve.open_up(handle.root_fd, always=True)
        return call()
