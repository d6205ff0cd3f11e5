"""Named fault points: where a test, or a person who crash-tests, can make an effect fail.

Every effect passes ``before(name)`` and ``after(name)`` around it (or the ``point(name)`` context). With nothing
armed each costs one comparison. This module only keeps the hook; what to do at a point (kill, raise, delay,
record) is decided by ``layerstore.testing`` or by the environment variable ``LAYERSTORE_FAULT``::

    LAYERSTORE_FAULT=<point>:<when>:<action>[:<nth>[+]]   when: before | after
                                                          action: kill | stop | delay=SECONDS | errno NAME such as EIO
                                                          nth+: from the nth passing on
    LAYERSTORE_FAULT=publish.rename:after:kill:2          SIGKILL after the second publish.rename
    LAYERSTORE_FAULT=stage.sync:before:ENOSPC:1+          every syncfs finds the disk full
    LAYERSTORE_FAULT_LOG=FILE                             append a line "<point> <when>" for each passing

Nothing here imports anything of layerstore.
"""

from __future__ import annotations

import errno
import os
import signal
import time
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
    """Carry out *action* at *name*: ``kill``, ``stop`` (SIGSTOP), ``delay=SECONDS``, or an errno's name."""
    if action == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif action == "stop":
        os.kill(os.getpid(), signal.SIGSTOP)
    elif action.startswith("delay="):
        time.sleep(float(action.removeprefix("delay=")))
    else:
        number = getattr(errno, action)
        raise OSError(number, f"{os.strerror(number)} (injected at {name})")


def parse(spec: str) -> Hook:
    """The hook that *spec*, as in ``LAYERSTORE_FAULT``, stands for. ValueError if it cannot be understood.

    Strict, because a fault that was mistyped, and so never happens, would pass for a fault that did no harm.
    """
    name, when, action, *rest = spec.split(":")
    onward = bool(rest) and rest[0].endswith("+")
    nth, seen = int(rest[0].removesuffix("+")) if rest else 1, 0
    known = action in ("kill", "stop") or action.startswith("delay=") or isinstance(
        getattr(errno, action, None), int)
    if not name or when not in ("before", "after") or not known or nth < 1 or len(rest) > 1:
        raise ValueError(f"cannot understand the fault {spec!r}; it is POINT:before|after:ACTION[:NTH[+]]")

    def hook(passed: str, moment: str) -> None:
        nonlocal seen
        if (passed, moment) == (name, when):
            seen += 1
            if seen == nth or (onward and seen > nth):
                perform(action, passed)

    return hook


def _from_environment() -> Hook | None:
    spec, log = os.environ.get("LAYERSTORE_FAULT"), os.environ.get("LAYERSTORE_FAULT_LOG")
    if not spec and not log:
        return None
    fault = parse(spec) if spec else None
    log_fd = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600) if log else -1

    def hook(name: str, when: str) -> None:
        if log_fd >= 0:
            os.write(log_fd, f"{name} {when}\n".encode())
        if fault is not None:
            fault(name, when)

    return hook


install(_from_environment())
