"""Where images come from: layouts and archives on this machine, opened by reference. Nothing is written.

::

    with open_source("oci:./image:latest") as source:
        image = source.resolve()                  # documents verified; layers there, and not yet read
        with image.layers[0].open() as stream:    # any number of streams, in parallel
            ...

A source is trusted with nothing: whoever reads a layer checks it against its descriptor and diffID (a
``TarDiffer`` does).
"""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import Self

from layerstore.model import Limits, SourceImage
from layerstore.sources import docker_archive, oci
from layerstore.sources.archive import Archive
from layerstore.sources.files import Files
from layerstore.sources.layout import Layout
from layerstore.sources.platforms import parse_platform
from layerstore.sources.reference import parse_reference

__all__ = ["ImageSource", "open_source"]


class ImageSource:
    """An open source. Safe to use from several threads; leaving its ``with`` closes it."""

    def __init__(self, reference: str, files: Files, resolver: Callable[[], SourceImage]) -> None:
        self.reference = reference
        self._files, self._resolver = files, resolver

    def resolve(self) -> SourceImage:
        """Find the image that the reference means and verify its manifest and config.

        Its layers' ``open`` works until the source is closed; streams already open go on. Each gives the
        blob as stored, and raises SourceError when the file ends early. Raises SourceError (missing,
        malformed, ambiguous), NoMatchingPlatformError, UnsupportedMediaTypeError, DigestMismatchError,
        SizeMismatchError, LimitExceededError, ClosedError.
        """
        return self._resolver()

    def close(self) -> None:
        """Let go of the file or directory. Calling it again does nothing."""
        self._files.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def open_source(reference: str, *, platform: str | None = None, limits: Limits | None = None) -> ImageSource:
    """Open the source that *reference* names.

    The source is to be closed, or used as a context manager. Raises InvalidArgumentError for a reference or
    platform that is none, SourceError for what cannot be opened.

    Args:
        reference: ``oci:DIR[:TAG]``, ``oci-archive:FILE[:TAG]`` or ``docker-archive:FILE[:REPOSITORY:TAG]``
            (there, ``@n`` is the image at position n). Without a tag there must be one image only.
        platform: ``os/arch[/variant]``, which the image must then be for; None: where there is a choice, the
            running machine's.
        limits: ``max_manifest_json`` bounds each document in bytes, the others an archive's index.

    """
    parsed = parse_reference(reference)
    wanted = parse_platform(platform) if platform is not None else None
    bounds = limits or Limits()
    if parsed.kind == "oci":
        layout = Layout(parsed.path)
        return ImageSource(reference, layout, lambda: oci.resolve(layout, parsed, wanted, bounds))
    archive = Archive(parsed.path, bounds)
    if parsed.kind == "oci-archive":
        return ImageSource(reference, archive, lambda: oci.resolve(archive, parsed, wanted, bounds))
    return ImageSource(reference, archive, lambda: docker_archive.resolve(archive, parsed, wanted, bounds))
