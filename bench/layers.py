"""What is unpacked: real layers, made here once and kept in a cache, each plain and compressed with gzip and zstd.

Every layer and compression is an OCI image layout of one layer, so that every program under comparison reads the very
same blob; the five together are one more layout. ``recipes`` has where the files come from. A cache that is there is
used as it is: a layer that was made anew would be another layer. Knows nothing of who unpacks.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import shutil
import tarfile
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

import zstandard

from bench import recipes

COMPRESSIONS = ("plain", "gzip", "zstd")
_FORMAT = "layers-1"         # another name whenever what is made changes
_GZIP_LEVEL, _ZSTD_LEVEL = 6, 3   # what the tools that push images use by default
_MEDIA = {"plain": "", "gzip": "+gzip", "zstd": "+zstd"}
_COPY = 1 << 20


@dataclass(frozen=True)
class Blob:
    """One layer in one compression."""

    layer: str
    compression: str
    layout: str    # an OCI image layout that has it as its only layer, tagged ``t``
    path: str      # the blob itself, in that layout
    size: int
    digest: str


@dataclass(frozen=True)
class Layer:
    """A layer, and what it is made of."""

    name: str
    made_of: str
    files: int
    directories: int
    tar_size: int
    median_size: int
    diff_id: str
    blobs: dict[str, Blob]


def cached(cache: str, names: Iterable[str], say: Callable[[str], None] = print) -> list[Layer]:
    """The layers *names*, from the directory *cache*; what it lacks is made first (a few minutes, and the registries)."""
    base = Path(cache, _FORMAT)
    base.mkdir(parents=True, exist_ok=True)
    found = []
    for name in names:
        described = base / name / "layer.json"
        if not described.exists():
            say(f"   making the layer {name}")
            _make(base, name)
        facts = json.loads(described.read_text())
        blobs = {c: Blob(name, c, str(base / name / c), str(base / name / c / b["path"]), b["size"], b["digest"])
                 for c, b in facts.pop("blobs").items()}
        found.append(Layer(**facts, blobs=blobs))
    return found


def image(cache: str, layers: Iterable[Layer], compression: str) -> str:
    """An OCI layout, tagged ``t``, of all *layers* one on the other; its blobs are hard links."""
    layers = list(layers)
    which = hashlib.sha256("".join(each.diff_id for each in layers).encode()).hexdigest()[:16]
    layout = Path(cache, _FORMAT, f"image-{compression}-{which}")
    if not (layout / "index.json").exists():
        blobs = [each.blobs[compression] for each in layers]
        shutil.rmtree(layout, ignore_errors=True)
        directory = layout / "blobs" / "sha256"
        directory.mkdir(parents=True)
        for blob in blobs:
            os.link(blob.path, directory / os.path.basename(blob.path))
        _write_layout(layout, compression, [(b.digest, b.size) for b in blobs], [each.diff_id for each in layers])
    return str(layout)


def one_layout(layout: Path, tars: Iterable[Path]) -> None:
    """An OCI layout, tagged ``t``, of plain *tars* one on the other; they are moved into it."""
    directory = layout / "blobs" / "sha256"
    directory.mkdir(parents=True)
    blobs = []
    for tar in tars:
        with open(tar, "rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        blobs.append(("sha256:" + digest, tar.stat().st_size))
        tar.rename(directory / digest)
    _write_layout(layout, "plain", blobs, [digest for digest, _ in blobs])


def _make(base: Path, name: str) -> None:
    with tempfile.TemporaryDirectory(prefix=f"making-{name}-", dir=base) as scratch:
        plain = Path(scratch, "layer.tar")
        with Writer(str(plain)) as writer:
            made_of = recipes.RECIPES[name](writer, os.path.join(scratch, "work"))
        kept = Path(scratch, name)
        blobs = {compression: _encode(plain, kept / compression, compression, writer) for compression in COMPRESSIONS}
        facts = {"name": name, "made_of": made_of, **writer.facts(), "blobs": blobs}
        (kept / "layer.json").write_text(json.dumps(facts, indent=1) + "\n")
        os.sync()   # half a layer must not be taken for one after a power cut
        os.rename(kept, base / name)


def _encode(plain: Path, layout: Path, compression: str, writer: Writer) -> dict[str, Any]:
    directory = layout / "blobs" / "sha256"
    directory.mkdir(parents=True)
    with open(plain, "rb") as source, _hashed(directory / "making") as (hashed, write):
        if compression == "gzip":
            with gzip.GzipFile("", "wb", _GZIP_LEVEL, fileobj=hashed, mtime=0) as packed:
                shutil.copyfileobj(source, packed, _COPY)
        elif compression == "zstd":
            with zstandard.ZstdCompressor(level=_ZSTD_LEVEL).stream_writer(hashed, closefd=False) as packed:
                shutil.copyfileobj(source, packed, _COPY)
        else:
            shutil.copyfileobj(source, hashed, _COPY)
    digest, size = write.digest.hexdigest(), (directory / "making").stat().st_size
    (directory / "making").rename(directory / digest)
    _write_layout(layout, compression, [("sha256:" + digest, size)], [writer.diff_id()])
    return {"path": f"blobs/sha256/{digest}", "size": size, "digest": "sha256:" + digest}


class _Hashing:
    """A file that is only written, and hashed as it is."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file, self.digest = file, hashlib.sha256()

    def write(self, data: bytes) -> int:
        self.digest.update(data)
        return self.file.write(data)

    def flush(self) -> None:
        self.file.flush()

    def tell(self) -> int:
        return self.file.tell()


@contextmanager
def _hashed(path: Path) -> Iterator[tuple[Any, _Hashing]]:
    with open(path, "wb") as file:
        hashing = _Hashing(file)
        yield hashing, hashing


def _write_layout(layout: Path, compression: str, blobs: list[tuple[str, int]], diff_ids: list[str]) -> None:
    def document(value: Any) -> tuple[str, int]:
        data = json.dumps(value).encode()
        digest = hashlib.sha256(data).hexdigest()
        (layout / "blobs" / "sha256" / digest).write_bytes(data)
        return "sha256:" + digest, len(data)

    def descriptor(kind: str, found: tuple[str, int], **more: Any) -> dict[str, Any]:
        return {"mediaType": f"application/vnd.oci.image.{kind}", "digest": found[0], "size": found[1], **more}

    config = document({"architecture": _architecture(), "os": "linux", "config": {},
                       "rootfs": {"type": "layers", "diff_ids": diff_ids}, "history": [{} for _ in diff_ids]})
    manifest = document({
        "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": descriptor("config.v1+json", config),
        "layers": [descriptor(f"layer.v1.tar{_MEDIA[compression]}", blob) for blob in blobs],
    })
    tagged = descriptor("manifest.v1+json", manifest, annotations={"org.opencontainers.image.ref.name": "t"})
    (layout / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
    (layout / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [tagged]}))


def _architecture() -> str:
    machine = os.uname().machine
    return {"x86_64": "amd64", "aarch64": "arm64"}.get(machine, machine)


class Writer:
    """A deterministic tar: what is added comes sorted, with one time, and is counted."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._sizes: list[int] = []
        self._directories = 0

    def __enter__(self) -> Writer:
        self._tar = tarfile.open(self._path, "w", format=tarfile.PAX_FORMAT)
        return self

    def __exit__(self, *_exc: object) -> None:
        self._tar.close()

    def add_tree(self, directory: str, prefix: str = "") -> None:
        """All of *directory* as ``prefix/…``, sorted; owners as they are in it, attributes left out."""
        self.parents(os.path.join(prefix, "x"))
        for name in sorted(os.listdir(directory)):
            self._tar.add(os.path.join(directory, name), os.path.join(prefix, name), filter=self._plain)

    def parents(self, path: str) -> None:
        """The directories above *path*: whoever unpacks must not have to invent them."""
        parts = path.split("/")[:-1]
        for depth in range(1, len(parts) + 1):
            self.add(recipes.directory("/".join(parts[:depth])))

    def add(self, info: tarfile.TarInfo, data: IO[bytes] | None = None) -> None:
        self._tar.addfile(self._plain(info), data)

    def _plain(self, info: tarfile.TarInfo) -> tarfile.TarInfo:
        info.mtime, info.uname, info.gname = recipes.TIME, "", ""
        if info.isfile():
            self._sizes.append(info.size)
        self._directories += info.isdir()
        return info

    def diff_id(self) -> str:
        with open(self._path, "rb") as file:
            return "sha256:" + hashlib.file_digest(file, "sha256").hexdigest()

    def facts(self) -> dict[str, Any]:
        sizes = sorted(self._sizes)
        return {"files": len(sizes), "directories": self._directories, "tar_size": os.path.getsize(self._path),
                "median_size": sizes[len(sizes) // 2] if sizes else 0, "diff_id": self.diff_id()}


def told(layer: Layer) -> dict[str, Any]:
    """What a result keeps of a layer: no paths."""
    facts = asdict(layer)
    facts["blobs"] = {c: {"size": b["size"], "digest": b["digest"]} for c, b in facts["blobs"].items()}
    return facts
