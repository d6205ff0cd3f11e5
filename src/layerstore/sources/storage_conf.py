"""storage.conf: which stores podman uses, when it is run as this process is. Reads that file only, and no store.

Source: containers-storage.conf(5); containers/storage, types/options.go and types/utils.go, for which file is read by whom,
and what is taken where it says nothing; podman-unshare(1), for the environment within the namespace that it makes.
"""

from __future__ import annotations

import os
from typing import Any

from layerstore.errors import SourceError

__all__ = ["stores"]

_SYSTEM = ("/etc/containers/storage.conf", "/usr/share/containers/storage.conf")
_ROOTS = "/var/lib/containers/storage"
_TOLD = "CONTAINERS_STORAGE_CONF"


def stores() -> tuple[str, ...]:
    """The directory of podman's own store, then those of additional image stores. SourceError if a file is malformed."""
    uid = _rootless()
    own = _file(uid)
    options = _read(own)
    driver = str(options.get("driver") or "overlay")
    if driver not in ("overlay", "overlay2"):
        raise SourceError(f"{own} says that podman's store has the driver {driver!r}: only overlay can be read")
    root = options.get("graphroot")
    if uid and not os.geteuid():
        root = os.environ.get("CONTAINERS_GRAPHROOT") or root
    if uid:
        root = root or options.get("rootless_storage_path") or _read(_system()).get("rootless_storage_path") or (
            f"{_home('XDG_DATA_HOME', '.local/share')}/containers/storage")
    others = _table(options.get("options")).get("additionalimagestores")
    paths = [root or _ROOTS, *(others if isinstance(others, list) else [])]
    return tuple(_expanded(str(each), uid) for each in paths)


def _rootless() -> int:
    """Whose podman this process would be: a user's ID, also within the namespace that podman made for it; 0 for root."""
    inside = os.environ.get("_CONTAINERS_ROOTLESS_UID", "")
    return os.geteuid() or (int(inside) if inside.isdecimal() else 0)


def _file(uid: int) -> str:
    if uid and _TOLD not in os.environ:
        return f"{_home('XDG_CONFIG_HOME', '.config')}/containers/storage.conf"
    return _system()


def _system() -> str:
    return os.environ.get(_TOLD) or next(filter(os.path.exists, _SYSTEM), _SYSTEM[-1])


def _home(variable: str, otherwise: str) -> str:
    return os.environ.get(variable) or os.path.expanduser(f"~/{otherwise}")


def _read(path: str) -> dict[str, Any]:
    """Its table ``storage``; nothing if there is no such file."""
    import tomllib  # noqa: PLC0415 - slow to import, and hardly anybody needs it

    try:
        with open(path, "rb") as file:
            return _table(tomllib.load(file).get("storage"))
    except FileNotFoundError:
        return {}
    except ValueError as error:   # TOML or UTF-8
        hint = "name the store: containers-storage:[overlay@ROOT]NAME"
        raise SourceError(f"{path} is malformed: {error}", hint=hint) from error
    except OSError as error:
        raise SourceError(f"{path} cannot be read: {error.strerror}") from error


def _table(found: Any) -> dict[str, Any]:
    return found if isinstance(found, dict) else {}


def _expanded(path: str, uid: int) -> str:
    return os.path.normpath(os.path.expandvars(path.replace("$UID", str(uid))))
