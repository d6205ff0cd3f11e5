"""The differs: what fills a staging tree. One module each; a caller can write another (``model.Differ``).

Each is imported when it is asked for: a command needs one of them, and wants to start soon.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from layerstore.differs.chunked import ChunkedDiffer
    from layerstore.differs.directory import DirectoryDiffer
    from layerstore.differs.tar import TarDiffer

__all__ = ["ChunkedDiffer", "DirectoryDiffer", "TarDiffer"]

_MODULES = {"ChunkedDiffer": "chunked", "DirectoryDiffer": "directory", "TarDiffer": "tar"}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'layerstore.differs' has no attribute {name!r}")
    from importlib import import_module  # noqa: PLC0415

    return getattr(import_module(f"layerstore.differs.{_MODULES[name]}"), name)
