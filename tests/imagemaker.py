"""Makes container images for tests, in pure Python: OCI layouts, oci-archives and docker-archives, whole or broken.

::

    image = Image([Layer({"etc/os-release": b"ID=test\n", "bin": Dir(), "bin/sh": Symlink("busybox")}),
                   Layer({"etc/passwd": Whiteout()}, compression="zstd")])
    made = image.write_oci(tmp_path / "image", tag="latest")
    store.pull(made.reference)

The same arguments give the same bytes, on every machine. Nothing is held in memory that a layer streams from a
``Filler`` or a directory. To break an image: ``edit_config``, ``edit_manifest`` and ``edit_index`` change the documents
before they are digested (so the image stays consistent but for what was edited); ``blob_path`` finds a blob to damage.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import random
import shutil
import tarfile
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, BinaryIO

import zstandard

MTIME = 1_700_000_000
MIB = 1 << 20
OCI = "application/vnd.oci.image"
DOCKER = "application/vnd.docker"
INDEX, MANIFEST, CONFIG = f"{OCI}.index.v1+json", f"{OCI}.manifest.v1+json", f"{OCI}.config.v1+json"
DOCKER_LIST = f"{DOCKER}.distribution.manifest.list.v2+json"
DOCKER_MANIFEST = f"{DOCKER}.distribution.manifest.v2+json"
DOCKER_CONFIG = f"{DOCKER}.container.image.v1+json"
REF_NAME = "org.opencontainers.image.ref.name"
_SUFFIX = {"none": "", "gzip": "+gzip", "zstd": "+zstd"}
_DOCKER_SUFFIX = {"none": "", "gzip": ".gzip", "zstd": ".zstd"}


# -- what a layer holds ---------------------------------------------------------------------------------------------

@dataclass(frozen=True)
class Filler:
    """*size* bytes of reproducible data that does not compress, never in memory at once."""

    size: int
    seed: int = 0

    def open(self) -> BinaryIO:
        return io.BufferedReader(_FillerStream(self), MIB)


class _FillerStream(io.RawIOBase):
    def __init__(self, filler: Filler) -> None:
        self._random, self._left, self._block = random.Random(filler.seed), filler.size, b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        if not self._block:
            self._block = self._random.randbytes(min(MIB, self._left))
            self._left -= len(self._block)
        piece, self._block = self._block[:len(buffer)], self._block[len(buffer):]
        buffer[:len(piece)] = piece
        return len(piece)


@dataclass(frozen=True, kw_only=True)
class Node:
    """What every entry has; modes as of chmod, mtime in seconds since 1970 (fractions become PAX records)."""

    mode: int | None = None
    uid: int = 0
    gid: int = 0
    mtime: float = MTIME
    xattrs: Mapping[str, bytes | str] = field(default_factory=dict)


@dataclass(frozen=True)
class File(Node):
    data: bytes | Filler = b""


@dataclass(frozen=True)
class Dir(Node):
    pass


@dataclass(frozen=True)
class Symlink(Node):
    target: str


@dataclass(frozen=True)
class Hardlink(Node):
    target: str


@dataclass(frozen=True)
class Fifo(Node):
    pass


@dataclass(frozen=True)
class Device(Node):
    """*kind* is ``c`` or ``b``."""

    kind: str
    major: int
    minor: int


@dataclass(frozen=True)
class Whiteout(Node):
    """Removes the name that is its key: written as ``.wh.<name>``."""


@dataclass(frozen=True)
class Opaque(Node):
    """Hides what lower layers have in the directory that is its key: written as ``.wh..wh..opq`` in it."""


_TYPES = {Dir: tarfile.DIRTYPE, Symlink: tarfile.SYMTYPE, Hardlink: tarfile.LNKTYPE, Fifo: tarfile.FIFOTYPE}


def _member(name: str, node: Node) -> tuple[tarfile.TarInfo, BinaryIO | None]:
    head, _, tail = name.rstrip("/").rpartition("/")
    if isinstance(node, Whiteout):
        name = f"{head}/.wh.{tail}" if head else f".wh.{tail}"
    elif isinstance(node, Opaque):
        name = f"{name.rstrip('/')}/.wh..wh..opq"
    info = tarfile.TarInfo(name)
    info.type = _TYPES.get(type(node), tarfile.REGTYPE)
    info.mode = node.mode if node.mode is not None else (0o755 if isinstance(node, Dir) else 0o644)
    info.uid, info.gid, info.mtime = node.uid, node.gid, node.mtime
    for key, value in node.xattrs.items():
        info.pax_headers[f"SCHILY.xattr.{key}"] = (
            value if isinstance(value, str) else value.decode("utf-8", "surrogateescape")
        )
    if isinstance(node, (Symlink, Hardlink)):
        info.linkname = node.target
    if isinstance(node, Device):
        info.type = tarfile.CHRTYPE if node.kind == "c" else tarfile.BLKTYPE
        info.devmajor, info.devminor = node.major, node.minor
    if isinstance(node, File):
        info.size = node.data.size if isinstance(node.data, Filler) else len(node.data)
        return info, node.data.open() if isinstance(node.data, Filler) else io.BytesIO(node.data)
    return info, None


Spec = Mapping[str, "bytes | str | Filler | Node"]


def write_tar(spec: Spec, out: BinaryIO, *, format: int = tarfile.PAX_FORMAT) -> None:
    """Write *spec*, in its order, as a tar. Parents are not added: a spec says everything that the tar holds."""
    with tarfile.open(fileobj=out, mode="w|", format=format, bufsize=MIB) as archive:
        for name, value in spec.items():
            node = value if isinstance(value, Node) else File(value.encode() if isinstance(value, str) else value)
            archive.addfile(*_member(name, node))


def make_tar(spec: Spec, *, format: int = tarfile.PAX_FORMAT) -> bytes:
    """``write_tar`` into memory."""
    out = io.BytesIO()
    write_tar(spec, out, format=format)
    return out.getvalue()


def many_files(count: int, *, size: int = 100, prefix: str = "data", seed: int = 0) -> dict[str, bytes | Node]:
    """A spec of *count* small, different files of *size* bytes, a hundred to a directory."""
    source = random.Random(seed)
    spec: dict[str, bytes | Node] = {prefix: Dir()}
    for n in range(count):
        if n % 100 == 0:
            spec[f"{prefix}/{n // 100:04}"] = Dir()
        spec[f"{prefix}/{n // 100:04}/{n:06}"] = source.randbytes(size)
    return spec


# -- layers ---------------------------------------------------------------------------------------------------------

class _Tally:
    """A file that digests and counts what is written through it."""

    def __init__(self, out: BinaryIO) -> None:
        self._out, self._hash, self.size = out, hashlib.sha256(), 0

    def write(self, data: Any) -> int:
        self._hash.update(data)
        self.size += len(data)
        self._out.write(data)
        return len(data)

    def flush(self) -> None:
        self._out.flush()

    @property
    def digest(self) -> str:
        return f"sha256:{self._hash.hexdigest()}"


@contextmanager
def _compressor(out: Any, compression: str, level: int | None) -> Iterator[Any]:
    if compression == "none":
        yield out
    elif compression == "gzip":
        with gzip.GzipFile(filename="", mode="wb", compresslevel=level or 6, fileobj=out, mtime=0) as stream:
            yield stream
    elif compression == "zstd":
        with zstandard.ZstdCompressor(level=level or 3).stream_writer(out, closefd=False) as stream:
            yield stream
    else:
        raise ValueError(compression)


@dataclass(frozen=True)
class Blob:
    """A layer as it was written. Sizes in bytes."""

    digest: str
    size: int
    diff_id: str
    diff_size: int
    media_type: str
    annotations: Mapping[str, str]


@dataclass
class Layer:
    """A layer of *files*, or of a *tar* (bytes, or the path of one), or of what a *directory* holds.

    *compression* is ``gzip``, ``zstd`` or ``none``; *media_type* overrides the one that follows from it.
    """

    files: Spec | None = None
    compression: str = "gzip"
    tar: bytes | os.PathLike[str] | None = None
    directory: os.PathLike[str] | None = None
    level: int | None = None
    media_type: str | None = None
    annotations: Mapping[str, str] = field(default_factory=dict)
    format: int = tarfile.PAX_FORMAT

    def write_tar(self, out: BinaryIO) -> None:
        """Stream the uncompressed tar into *out*."""
        if isinstance(self.tar, bytes):
            out.write(self.tar)
        elif self.tar is not None:
            with open(self.tar, "rb") as source:
                shutil.copyfileobj(source, out, MIB)
        elif self.directory is not None:
            self._write_directory(out)
        else:
            write_tar(self.files or {}, out, format=self.format)

    def _write_directory(self, out: BinaryIO) -> None:
        assert self.directory is not None
        top = Path(self.directory)
        with tarfile.open(fileobj=out, mode="w|", format=self.format, bufsize=MIB) as archive:
            for path in sorted(top.rglob("*")):
                archive.add(path, str(path.relative_to(top)), recursive=False, filter=_nameless)

    def tar_bytes(self) -> bytes:
        out = io.BytesIO()
        self.write_tar(out)
        return out.getvalue()

    def blob_bytes(self) -> bytes:
        out = io.BytesIO()
        self.write_blob(out)
        return out.getvalue()

    def write_blob(self, out: BinaryIO, *, docker: bool = False) -> Blob:
        """Stream the (compressed) blob into *out* and say what was written."""
        stored = _Tally(out)
        with _compressor(stored, self.compression, self.level) as stream:
            plain = _Tally(stream)
            self.write_tar(plain)  # type: ignore[arg-type]
        kind = (f"{DOCKER}.image.rootfs.diff.tar{_DOCKER_SUFFIX[self.compression]}" if docker
                else f"{OCI}.layer.v1.tar{_SUFFIX[self.compression]}")
        return Blob(stored.digest, stored.size, plain.digest, plain.size, self.media_type or kind, self.annotations)

    @property
    def diff_id(self) -> str:
        tally = _Tally(_Nowhere())  # type: ignore[arg-type]
        self.write_tar(tally)  # type: ignore[arg-type]
        return tally.digest


class _Nowhere:
    def write(self, data: Any) -> int:
        return len(data)

    def flush(self) -> None:
        pass


def _nameless(info: tarfile.TarInfo) -> tarfile.TarInfo:
    info.uname = info.gname = ""   # the machine's user names would make the bytes differ
    return info


# -- images ---------------------------------------------------------------------------------------------------------

def digest_of(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def encode(document: Any) -> bytes:
    return json.dumps(document, separators=(",", ":"), sort_keys=True).encode()


def blob_path(layout: os.PathLike[str], digest: str) -> Path:
    """Where a layout keeps the blob of that digest."""
    return Path(layout, "blobs", *digest.split(":"))


@dataclass(frozen=True)
class Made:
    """What was written: how to name it, and what a reader must find in it. A docker-archive has no manifest."""

    reference: str
    path: Path
    manifest_digest: str
    config_digest: str
    diff_ids: tuple[str, ...]
    layers: tuple[Blob, ...]
    config: bytes
    manifest: bytes

    def layer_path(self, n: int) -> Path:
        """The blob file of layer *n* of an OCI layout."""
        return blob_path(self.path, self.layers[n].digest)

    @property
    def config_path(self) -> Path:
        return blob_path(self.path, self.config_digest)

    @property
    def manifest_path(self) -> Path:
        return blob_path(self.path, self.manifest_digest)


Edit = Callable[[dict[str, Any]], None]


@dataclass
class Image:
    """Layers, base first, and a config made of the defaults, *config* and *edit_config*, in this order."""

    layers: Sequence[Layer] = ()
    config: Mapping[str, Any] = field(default_factory=dict)
    docker: bool = False                # schema 2 media types instead of OCI's
    edit_config: Edit | None = None
    edit_manifest: Edit | None = None

    def _config(self, blobs: Sequence[Blob]) -> bytes:
        document: dict[str, Any] = {
            "architecture": "amd64", "os": "linux", "created": "2024-01-01T00:00:00Z",
            "config": {"Cmd": ["/bin/sh"]},
            "rootfs": {"type": "layers", "diff_ids": [blob.diff_id for blob in blobs]},
            "history": [{"created": "2024-01-01T00:00:00Z", "created_by": f"layer {n}"} for n in range(len(blobs))],
            **self.config,
        }
        if self.edit_config is not None:
            self.edit_config(document)
        return encode(document)

    def _manifest(self, config: bytes, blobs: Sequence[Blob]) -> bytes:
        document: dict[str, Any] = {
            "schemaVersion": 2,
            "mediaType": DOCKER_MANIFEST if self.docker else MANIFEST,
            "config": {"mediaType": DOCKER_CONFIG if self.docker else CONFIG, "digest": digest_of(config),
                       "size": len(config)},
            "layers": [
                {"mediaType": blob.media_type, "digest": blob.digest, "size": blob.size,
                 **({"annotations": dict(blob.annotations)} if blob.annotations else {})}
                for blob in blobs
            ],
        }
        if self.edit_manifest is not None:
            self.edit_manifest(document)
        return encode(document)

    def write_blobs(self, layout: os.PathLike[str]) -> tuple[bytes, bytes, tuple[Blob, ...]]:
        """Put the image's blobs into *layout*, made if need be; return config, manifest and layers."""
        start_layout(layout)
        blobs = tuple(_put_layer(layout, layer, docker=self.docker) for layer in self.layers)
        config = self._config(blobs)
        put_blob(layout, config)
        manifest = self._manifest(config, blobs)
        put_blob(layout, manifest)
        return config, manifest, blobs

    def write_oci(
        self, directory: os.PathLike[str] | str, tag: str | None = None, *, platform: str | None = None,
        edit_index: Edit | None = None,
    ) -> Made:
        """Write, or add to, an OCI layout. *platform* goes into the index entry."""
        directory = Path(directory)
        config, manifest, blobs = self.write_blobs(directory)
        entry = descriptor(manifest, DOCKER_MANIFEST if self.docker else MANIFEST, platform=platform, tag=tag)
        add_to_index(directory, entry, edit_index)
        return _made("oci", directory, tag, config, manifest, blobs)

    def write_oci_archive(self, file: os.PathLike[str] | str, tag: str | None = None, **options: Any) -> Made:
        """Write an OCI layout as one tar."""
        file = Path(file)
        with tempfile.TemporaryDirectory(dir=file.parent) as scratch:
            made = self.write_oci(Path(scratch, "layout"), tag, **options)
            pack_layout(made.path, file)
        return _made("oci-archive", file, tag, made.config, made.manifest, made.layers)

    def write_docker_archive(
        self, file: os.PathLike[str] | str, tag: str | None = None, *, compress: bool = False,
        others: Sequence[tuple[Image, str]] = (), edit_manifest: Callable[[list[dict[str, Any]]], None] | None = None,
        links: bool = False,
    ) -> Made:
        """Write what ``docker save`` does: plain layers, or as their compression says with *compress*.

        *tag* is the RepoTag (``debian:12``); *others* are further images with theirs. With *links*, a layer that
        comes twice is a symbolic link the second time, as old versions of Docker wrote it.
        """
        file = Path(file)
        listing: list[dict[str, Any]] = []
        with tempfile.TemporaryDirectory(dir=file.parent) as scratch, tarfile.open(file, "w") as archive:
            written: dict[str, str] = {}
            found = [_save(image, name, archive, scratch, written, compress, links)
                     for image, name in [(self, tag), *others]]
            listing = [entry for entry, _config, _blobs in found]
            if edit_manifest is not None:
                edit_manifest(listing)
            _add_bytes(archive, "manifest.json", encode(listing))
        _entry, config, blobs = found[0]
        return _made("docker-archive", file, tag, config, b"", blobs)


def _made(
    kind: str, path: Path, tag: str | None, config: bytes, manifest: bytes, blobs: Sequence[Blob]
) -> Made:
    reference = f"{kind}:{path}" + (f":{tag}" if tag is not None else "")
    return Made(reference, path, digest_of(manifest) if manifest else "", digest_of(config), tuple(b.diff_id for b in blobs),
                tuple(blobs), config, manifest)


# -- layouts and archives, in pieces for those who want them odd -------------------------------------------------------

def descriptor(
    document: bytes, media_type: str, *, platform: str | None = None, tag: str | None = None, **more: Any
) -> dict[str, Any]:
    """The descriptor of a document; *platform* as ``os/arch[/variant]``."""
    found: dict[str, Any] = {"mediaType": media_type, "digest": digest_of(document), "size": len(document), **more}
    if platform is not None:
        found["platform"] = dict(zip(("os", "architecture", "variant"), platform.split("/"), strict=False))
    if tag is not None:
        found["annotations"] = {REF_NAME: tag}
    return found


def start_layout(directory: os.PathLike[str] | str) -> None:
    Path(directory, "blobs", "sha256").mkdir(parents=True, exist_ok=True)
    Path(directory, "oci-layout").write_bytes(b'{"imageLayoutVersion":"1.0.0"}')


def put_blob(layout: os.PathLike[str] | str, data: bytes) -> str:
    digest = digest_of(data)
    blob_path(Path(layout), digest).write_bytes(data)
    return digest


def _put_layer(layout: os.PathLike[str] | str, layer: Layer, *, docker: bool) -> Blob:
    partial = Path(layout, "blobs", "partial")
    with open(partial, "wb", MIB) as out:
        blob = layer.write_blob(out, docker=docker)
    partial.replace(blob_path(layout, blob.digest))
    return blob


def add_to_index(layout: os.PathLike[str] | str, entry: Mapping[str, Any], edit: Edit | None = None) -> None:
    path = Path(layout, "index.json")
    index = json.loads(path.read_bytes()) if path.exists() else {"schemaVersion": 2, "mediaType": INDEX, "manifests": []}
    tag = entry.get("annotations", {}).get(REF_NAME)
    index["manifests"] = [   # a tag moves, as with other tools, unless it stands for another platform
        old for old in index["manifests"]
        if tag is None or old.get("annotations", {}).get(REF_NAME) != tag or old.get("platform") != entry.get("platform")
    ] + [dict(entry)]
    if edit is not None:
        edit(index)
    path.write_bytes(encode(index))


def write_oci_multi(
    directory: os.PathLike[str] | str, images: Mapping[str, Image], tag: str | None = None, *, docker: bool = False,
    depth: int = 1, edit: Edit | None = None,
) -> dict[str, Made]:
    """Write a layout of one image for many platforms: *depth* indexes below ``index.json``. Keys are platforms."""
    start_layout(directory)
    made, entries = {}, []
    for platform, image in images.items():
        config, manifest, blobs = image.write_blobs(directory)
        made[platform] = _made("oci", Path(directory), tag, config, manifest, blobs)
        entries.append(descriptor(manifest, DOCKER_MANIFEST if image.docker else MANIFEST, platform=platform))
    kind = DOCKER_LIST if docker else INDEX
    for n in range(depth):
        document = {"schemaVersion": 2, "mediaType": kind, "manifests": entries}
        if edit is not None and n == 0:
            edit(document)
        put_blob(directory, encode(document))
        entries = [descriptor(encode(document), kind)]
    for entry in entries:
        if tag is not None:
            entry["annotations"] = {REF_NAME: tag}
        add_to_index(directory, entry)
    return made


def pack_layout(layout: os.PathLike[str] | str, file: os.PathLike[str] | str, *, prefix: str = "") -> None:
    """Tar a layout, sorted; *prefix* (``./``) is how some tools write the names."""
    top = Path(layout)
    with tarfile.open(file, "w") as archive:
        for path in sorted(top.rglob("*")):
            info = archive.gettarinfo(path, prefix + str(path.relative_to(top)))
            info.uid = info.gid = 0
            info.uname = info.gname = ""
            info.mtime, info.mode = MTIME, 0o755 if info.isdir() else 0o644
            if info.isreg():
                with open(path, "rb") as source:
                    archive.addfile(info, source)
            else:
                archive.addfile(info)


def _add_bytes(archive: tarfile.TarFile, name: str, data: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size, info.mtime, info.mode = len(data), MTIME, 0o644
    archive.addfile(info, io.BytesIO(data))


def _save(
    image: Image, tag: str | None, archive: tarfile.TarFile, scratch: str, written: dict[str, str], compress: bool,
    links: bool,
) -> tuple[dict[str, Any], bytes, tuple[Blob, ...]]:
    """Add one image's layers and config to a docker-archive; return its entry for ``manifest.json``."""
    blobs, names = [], []
    for n, layer in enumerate(image.layers):
        plain = layer if compress else replace(layer, compression="none")
        path = Path(scratch, "layer")
        with open(path, "wb", MIB) as out:
            blob = plain.write_blob(out)
        blobs.append(blob)
        name = f"{blob.digest.removeprefix('sha256:')}.tar"
        if blob.digest not in written:
            info = tarfile.TarInfo(name)
            info.size, info.mtime, info.mode = blob.size, MTIME, 0o644
            with open(path, "rb") as source:
                archive.addfile(info, source)
            written[blob.digest] = name
        elif links:
            info = tarfile.TarInfo(f"{n:064x}/layer.tar")
            info.type, info.linkname, info.mtime = tarfile.SYMTYPE, f"../{name}", MTIME
            archive.addfile(info)
            name = info.name
        names.append(name)
    config = image._config(blobs)
    config_name = f"{digest_of(config).removeprefix('sha256:')}.json"
    if digest_of(config) not in written:
        _add_bytes(archive, config_name, config)
        written[digest_of(config)] = config_name
    return {"Config": config_name, "RepoTags": [tag] if tag else None, "Layers": names}, config, tuple(blobs)
