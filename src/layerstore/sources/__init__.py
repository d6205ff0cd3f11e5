"""Where images come from: layouts and archives on this machine, and registries, opened by reference. Nothing is written.

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
from typing import TYPE_CHECKING, Protocol, Self

from layerstore.model import Limits, SourceImage
from layerstore.signatures import Signature
from layerstore.sources import docker_archive, oci
from layerstore.sources.archive import Archive
from layerstore.sources.containers_storage import PREFIX as PODMAN
from layerstore.sources.containers_storage import PodmanStore
from layerstore.sources.layout import Layout
from layerstore.sources.platforms import Platform, parse_platform
from layerstore.sources.reference import parse_reference
from layerstore.sources.registry import RegistryOptions, connect
from layerstore.sources.registry.names import PREFIX, parse_name

if TYPE_CHECKING:
    from layerstore.sources.registry.client import Client

__all__ = ["ImageSource", "open_source"]


class _Opened(Protocol):
    def close(self) -> None: ...


class ImageSource:
    """An open source. Safe to use from several threads; leaving its ``with`` closes it."""

    def __init__(
        self, reference: str, opened: _Opened, resolver: Callable[[], SourceImage],
        finder: Callable[[SourceImage], tuple[Signature, ...]] = lambda _image: (),
    ) -> None:
        self.reference = reference
        self._opened, self._resolver, self._finder = opened, resolver, finder

    @property
    def fetched(self) -> int:
        """Bytes that came over the network so far, whatever they were good for. 0 for sources on this machine."""
        return getattr(self._opened, "fetched", 0)

    def resolve(self) -> SourceImage:
        """Find the image that the reference means and verify its manifest and config.

        Its layers' ``open`` works until the source is closed; streams already open go on. Each gives the
        blob as stored, and raises SourceError when the file ends early. Raises SourceError (missing,
        malformed, ambiguous), NoMatchingPlatformError, UnsupportedMediaTypeError, DigestMismatchError,
        SizeMismatchError, LimitExceededError, ClosedError; of registries, RegistryError and its kinds.
        """
        return self._resolver()

    def signatures(self, image: SourceImage) -> tuple[Signature, ...]:
        """What this source offers to vouch for *image*, which came from it: under cosign's tag, or by referring to it.

        For OCI layouts, archives and registries; elsewhere there are none. Digests are checked, and nothing is verified.
        Raises as ``resolve``.
        """
        return self._finder(image)

    def close(self) -> None:
        """Let go of the file, directory or connections. Calling it again does nothing."""
        self._opened.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def open_source(
    reference: str, *, platform: str | None = None, limits: Limits | None = None, registry: RegistryOptions | None = None,
) -> ImageSource:
    """Open the source that *reference* names.

    The source is to be closed, or used as a context manager. Raises InvalidArgumentError for a reference or
    platform that is none, SourceError for what cannot be opened.

    Args:
        reference: ``oci:DIR[:TAG]``, ``oci-archive:FILE[:TAG]`` or ``docker-archive:FILE[:REPOSITORY:TAG]``
            (there, ``@n`` is the image at position n). Without a tag there must be one image only. Or
            ``docker://HOST[:PORT]/REPOSITORY[:TAG|@DIGEST]``; there, ``latest`` is the tag when none is written. Or
            ``containers-storage:[overlay@ROOT]NAME``: of podman's store at ROOT; without ``[…]`` of this user's.
        platform: ``os/arch[/variant]``, which the image must then be for; None: where there is a choice, the
            running machine's.
        limits: ``max_manifest_json`` bounds each document in bytes, the others an archive's index.
        registry: how to speak with a registry, and as whom.

    """
    wanted = parse_platform(platform) if platform is not None else None
    bounds = limits or Limits()
    if isinstance(reference, str) and reference.startswith(PREFIX):
        client = connect(parse_name(reference), registry or RegistryOptions())
        return ImageSource(
            reference, client, lambda: _resolve_there(client, wanted, bounds),
            lambda image: _signatures_there(client, image, bounds),
        )
    if isinstance(reference, str) and reference.startswith(PODMAN):
        podman = PodmanStore.parse(reference)
        return ImageSource(reference, podman, lambda: podman.resolve(wanted, bounds))
    parsed = parse_reference(reference)
    if parsed.kind == "oci":
        layout = Layout(parsed.path)
        return ImageSource(reference, layout, lambda: oci.resolve(layout, parsed, wanted, bounds),
                           lambda image: oci.signatures(layout, image, bounds))
    archive = Archive(parsed.path, bounds)
    if parsed.kind == "oci-archive":
        return ImageSource(reference, archive, lambda: oci.resolve(archive, parsed, wanted, bounds),
                           lambda image: oci.signatures(archive, image, bounds))
    return ImageSource(reference, archive, lambda: docker_archive.resolve(archive, parsed, wanted, bounds))


def _resolve_there(client: Client, platform: Platform | None, limits: Limits) -> SourceImage:
    from layerstore.sources.registry.resolve import resolve  # noqa: PLC0415 - imports urllib3, as the client did

    return resolve(client, platform, limits)


def _signatures_there(client: Client, image: SourceImage, limits: Limits) -> tuple[Signature, ...]:
    from layerstore.sources.registry.resolve import signatures  # noqa: PLC0415 - imports urllib3, as the client did

    return signatures(client, image, limits)
