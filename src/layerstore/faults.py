"""Named fault points: where a test, or a person who crash-tests, can make an effect fail.

Every effect passes ``before(name)`` and ``after(name)`` around it (or the ``point(name)`` context). With nothing
armed each costs one comparison. This module only keeps the hook; what to do at a point (kill, raise, delay,
record) is decided by ``layerstore.testing`` or by the environment variable ``LAYERSTORE_FAULT``::

    LAYERSTORE_FAULT=<point>:<when>:<action>[:<nth>]      when: before | after
                                                          action: kill | errno NAME such as EIO | stop
    LAYERSTORE_FAULT=publish.rename:after:kill:2          SIGKILL after the second publish.rename
    LAYERSTORE_FAULT_LOG=FILE                             append a line "<point> <when>" for each passing

Nothing here imports anything of layerstore.
"""

from __future__ import annotations

import errno
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager

Hook = Callable[[str, str], None]

_hook: Hook | None = None


def install(hook: Hook | None) -> Hook | None:
    """Install *hook*, called as ``hook(point, "before" | "after")``; return the one that was there."""
    global _hook
    previous, _hook = _hook, hook
    return previous


def before(name: str) -> None:
    if _hook is not None:
        _hook(name, "before")


def after(name: str) -> None:
    if _hook is not None:
        _hook(name, "after")


@contextmanager
def point(name: str) -> Iterator[None]:
    """Wrap one effect. ``after`` is passed only when the effect succeeded."""
    if _hook is not None:
        _hook(name, "before")
    yield
    if _hook is not None:
        _hook(name, "after")


def perform(action: str, name: str) -> None:
    """Carry out *action* at *name*: ``kill``, ``stop`` (SIGSTOP, for a debugger or a race), or an errno's name."""
    if action == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif action == "stop":
        os.kill(os.getpid(), signal.SIGSTOP)
    else:
        number = getattr(errno, action)
        raise OSError(number, f"{os.strerror(number)} (injected at {name})")


def _from_environment() -> Hook | None:
    spec, log = os.environ.get("LAYERSTORE_FAULT"), os.environ.get("LAYERSTORE_FAULT_LOG")
    if not spec and not log:
        return None
    want: tuple[str, str] | None = None
    action, nth, seen = "", 1, 0
    if spec:
        name, when, action, *rest = spec.split(":")
        want, nth = (name, when), int(rest[0]) if rest else 1
    log_fd = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600) if log else -1

    def hook(name: str, when: str) -> None:
        nonlocal seen
        if log_fd >= 0:
            os.write(log_fd, f"{name} {when}\n".encode())
        if (name, when) == want:
            seen += 1
            if seen == nth:
                perform(action, name)

    return hook


install(_from_environment())
