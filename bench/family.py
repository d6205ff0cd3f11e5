"""A family of two images as zstd:chunked in a registry, and the least that the second costs whoever has the first.

Made of cached layers, by ``skopeo``, once; the registry's data stays in the cache. The least is read from the tables
of contents by nothing of ours: chunks whose digest the first image has nowhere, the tables, and what gives the tar back
(a tar-split; where the skopeo that made it writes none, as Debian 12's, what lies between the files).
"""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

from zstandard import ZstdDecompressor

from bench import machine
from bench.layers import Layer, one_layout
from bench.local_registry import serving

_FORMAT = "family-1"         # another name whenever what is made changes
_OCI = "application/vnd.oci.image.manifest.v1+json"
_END = bytes(1024)           # of a tar; what follows it is lost by Debian 12's skopeo


@dataclass(frozen=True)
class Family:
    """In a registry at ``host``: ``first`` and ``second`` are references. Bytes of the second's blobs, and of the least."""

    host: str
    first: str
    second: str
    made_by: str
    size: int
    least: int
    least_of: dict[str, int]


@contextmanager
def served(cache: str, first: Sequence[Layer], second: Sequence[Layer], skopeo: str) -> Iterator[Family]:
    """The family, while the registry runs. CannotError without skopeo, or docker-registry."""
    machine.need(skopeo, "docker-registry")
    made_by = subprocess.run([skopeo, "--version"], check=True, capture_output=True, text=True).stdout.strip()
    which = hashlib.sha256(repr([made_by, *(each.diff_id for each in (*first, *second))]).encode()).hexdigest()[:16]
    base = Path(cache, _FORMAT, which)
    if not (base / "facts.json").exists():
        shutil.rmtree(base, ignore_errors=True)
        _make(base, {"first": first, "second": second}, skopeo)
    facts = json.loads((base / "facts.json").read_text())
    with serving(base / "registry") as host:
        yield Family(host, f"docker://{host}/family:first", f"docker://{host}/family:second", made_by, **facts)


def _make(base: Path, images: dict[str, Sequence[Layer]], skopeo: str) -> None:
    base.mkdir(parents=True)
    with tempfile.TemporaryDirectory(dir=base) as scratch, serving(base / "registry") as host:
        for tag, layers in images.items():
            layout = Path(scratch, tag)
            one_layout(layout, [_with_its_end_only(Path(each.blobs["plain"].path), Path(scratch)) for each in layers])
            subprocess.run([
                skopeo, "--insecure-policy", "copy", "-q", "--dest-tls-verify=false", "--dest-compress",
                "--dest-compress-format", "zstd:chunked", f"oci:{layout}:t", f"docker://{host}/family:{tag}",
            ], check=True)
        first = list(_layers(host, "first", set()))
        new = list(_layers(host, "second", {each.blob for each in first}))
    here = {digest for layer in first for digest in layer.digests}
    parts = {
        "chunks": sum(length for layer in new for digest, length in layer.frames.items() if digest not in here),
        "tables": sum(layer.table for layer in new), "headers": sum(layer.headers for layer in new),
    }
    facts = {"size": sum(layer.size for layer in new), "least": sum(parts.values()), "least_of": parts}
    (base / "facts.json").write_text(json.dumps(facts, indent=1) + "\n")


def _with_its_end_only(tar: Path, scratch: Path) -> Path:
    with tarfile.open(tar) as archive:
        archive.getmembers()
        end = archive.offset
    made = scratch / tar.name
    with open(tar, "rb") as source, open(made, "wb") as out:
        left = end
        while left:
            left -= out.write(source.read(min(left, 1 << 20)))
        out.write(_END)
    return made


# -- what the tables of contents say ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Layer:
    blob: str
    size: int
    digests: frozenset[str]              # of files and of chunks
    frames: dict[str, int]               # content's digest: how long its frame is
    table: int                           # bytes of the table of contents
    headers: int                         # bytes of the tar-split, or of what lies between the frames


def _layers(host: str, tag: str, known: Collection[str]) -> Iterator[_Layer]:
    """All but the *known* blobs (of which skopeo, having pushed them once, does not say again that they are chunked)."""
    manifest = json.loads(_get(f"http://{host}/v2/family/manifests/{tag}", Accept=_OCI))
    for layer in manifest["layers"]:
        if layer["digest"] in known:
            continue
        said = {key.rpartition(".")[2]: value for key, value in layer.get("annotations", {}).items()}
        if "manifest-position" not in said:
            raise machine.CannotError("skopeo did not write zstd:chunked")
        blob = _get(f"http://{host}/v2/family/blobs/{layer['digest']}")
        start, length, size = map(int, said["manifest-position"].split(":")[:3])
        text = ZstdDecompressor().decompress(blob[start : start + length], max_output_size=size)
        yield _layer(layer, json.loads(text)["entries"], start, length, said.get("tarsplit-position"))


def _layer(layer: dict[str, Any], entries: list[dict[str, Any]], start: int, length: int, split: str | None) -> _Layer:
    pieces = [e for e in entries if e["type"] in ("reg", "chunk") and "offset" in e and e.get("chunkType") != "zeros"]
    frames: dict[str, int] = {}
    covered = 0
    for number, each in enumerate(pieces):
        follows = pieces[number + 1] if number + 1 < len(pieces) else {}
        end = follows["offset"] if follows.get("type") == "chunk" else _end(pieces, number)
        frames[each.get("chunkDigest") or each["digest"]] = end - each["offset"]
        covered += end - each["offset"]
    digests = frozenset(e[key] for e in entries for key in ("digest", "chunkDigest") if e.get(key))
    skippable = 8                        # the header of the frame that the table is in
    between = start - skippable - covered
    return _Layer(layer["digest"], layer["size"], digests, frames, length, int(split.split(":")[1]) if split else between)


def _end(pieces: list[dict[str, Any]], number: int) -> int:
    """Where the file of this piece ends: only its first piece says so."""
    while pieces[number]["type"] == "chunk":
        number -= 1
    return int(pieces[number]["endOffset"])


def _get(url: str, **headers: str) -> bytes:
    with urlopen(Request(url, headers=headers)) as answer:   # of a registry that we have started ourselves
        return bytes(answer.read())
