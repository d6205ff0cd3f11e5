"""The differs: what fills a staging tree. One module each; a caller can write another (``model.Differ``)."""

from __future__ import annotations

from layerstore.differs.chunked import ChunkedDiffer
from layerstore.differs.directory import DirectoryDiffer
from layerstore.differs.tar import TarDiffer

__all__ = ["ChunkedDiffer", "DirectoryDiffer", "TarDiffer"]
