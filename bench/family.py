"""A family of two images as zstd:chunked in a registry, and the least that the second costs whoever has the first.

Made of cached layers, by ``skopeo``, once; the registry's data stays in the cache. The least is read from the tables
of contents by nothing of ours: chunks whose digest the first image has nowhere, the tables, and what gives the tar back:
a tar-split; where the skopeo that made it writes none, as Debian 12's, what lies between the files. Then there is
the family once more in today's form (``todays_form``).
"""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

from zstandard import ZstdDecompressor

import layerstore
from bench import machine, todays_form
from bench.layers import Layer, one_layout
from bench.local_registry import serving
from layerstore import PullOptions, RegistryOptions

_FORMAT = "family-2"         # another name whenever what is made changes
_OCI = "application/vnd.oci.image.manifest.v1+json"
_END = bytes(1024)           # of a tar; what follows it is lost by Debian 12's skopeo


@dataclass(frozen=True)
class Form:
    """One form: bytes of those layers of the second image that the first has not, and the least of them, by what it is."""

    size: int
    least: int
    least_of: dict[str, int]


@dataclass(frozen=True)
class Family:
    """In a registry at ``host``. ``forms``: ``today``, or ``2022`` and ``today``; ``images`` are ``first`` and ``second``."""

    host: str
    made_by: str
    forms: dict[str, Form]

    def reference(self, form: str, image: str) -> str:
        return f"docker://{self.host}/family:{image}-{form}"


@contextmanager
def served(cache: str, first: Sequence[Layer], second: Sequence[Layer], skopeo: str) -> Iterator[Family]:
    """The family, while the registry runs. CannotError without skopeo, or docker-registry."""
    machine.need(skopeo, "docker-registry")
    made_by = subprocess.run([skopeo, "--version"], check=True, capture_output=True, text=True).stdout.strip()
    which = hashlib.sha256(repr([made_by, *(each.diff_id for each in (*first, *second))]).encode()).hexdigest()[:16]
    base = Path(cache, _FORMAT, which)
    if not (base / "facts.json").exists():
        print("   making the family", flush=True)
        shutil.rmtree(base, ignore_errors=True)
        _make(base, {"first": first, "second": second}, skopeo)
    facts = json.loads((base / "facts.json").read_text())
    with serving(base / "registry") as host:
        yield Family(host, made_by, {name: Form(**form) for name, form in facts.items()})


def _make(base: Path, images: dict[str, Sequence[Layer]], skopeo: str) -> None:
    base.mkdir(parents=True)
    forms: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(dir=base) as scratch, serving(base / "registry") as host:
        where = Path(scratch)
        for image, layers in images.items():
            made = where / image
            one_layout(made, [_with_its_end_only(Path(each.blobs["plain"].path), where) for each in layers])
            _copy(skopeo, made, f"{host}/made:{image}", "--dest-compress", "--dest-compress-format", "zstd:chunked")
        found = {image: _layers(host, f"made:{image}") for image in images}
        form = "today" if any(layer.split for layer in found["first"]) else "2022"
        for image in images:
            _copy(skopeo, f"docker://{host}/made:{image}", f"{host}/family:{image}-{form}", "--src-tls-verify=false")
        forms[form] = _form(found)
        if form != "today":
            with layerstore.open(where / "store") as store:
                for image in images:
                    _again(store, host, image, where / f"{image}-today", found)
                    _copy(skopeo, where / f"{image}-today", f"{host}/family:{image}-today")
            forms["today"] = _form({image: _layers(host, f"family:{image}-today") for image in images})
    (base / "facts.json").write_text(json.dumps(forms, indent=1) + "\n")


def _copy(skopeo: str, source: Path | str, target: str, *more: str) -> None:
    place = f"oci:{source}:t" if isinstance(source, Path) else source
    keep = [] if more[:1] == ("--dest-compress",) else ["--preserve-digests"]
    subprocess.run([skopeo, "--insecure-policy", "copy", "-q", "--dest-tls-verify=false", *keep, *more, place,
                    f"docker://{target}"], check=True)


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


def _again(store: layerstore.Store, host: str, image: str, layout: Path, found: dict[str, list[_Layer]]) -> None:
    """The image in today's form. Its tar-splits are those of a store that has pulled it."""
    options = PullOptions(partial=False, registry=RegistryOptions(plain_http=True))
    pulled = store.pull(f"docker://{host}/made:{image}", names=[image], options=options)
    known = {layer.blob: layer for layers in found.values() for layer in layers}
    manifest = _manifest(host, f"made:{image}")
    layers = []
    for layer_id, layer in zip(pulled.layers, manifest["layers"], strict=True):
        blob = _blob(host, "made", layer["digest"])
        with store.tar_split(layer_id) as lines:
            layers.append(todays_form.layer(blob, known[layer["digest"]].toc, known[layer["digest"]].toc_at, lines))
    todays_form.layout(layout, layers, _blob(host, "made", manifest["config"]["digest"]))


# -- what the tables of contents say ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Layer:
    blob: str
    size: int
    toc: dict[str, Any]
    toc_at: int
    toc_size: int                        # compressed
    split: int                           # bytes of the tar-split, compressed; 0: there is none

    def digests(self) -> set[str]:
        """Of files and of chunks."""
        return {e[key] for e in self.toc["entries"] for key in ("digest", "chunkDigest") if e.get(key)}

    def frames(self) -> Iterator[tuple[str, int]]:
        """The digest of each piece of content, and how long its frame is."""
        entries = self.toc["entries"]
        pieces = [e for e in entries if e["type"] in ("reg", "chunk") and "offset" in e and e.get("chunkType") != "zeros"]
        end = 0
        for number, each in enumerate(pieces):
            follows = pieces[number + 1] if number + 1 < len(pieces) else {}
            end = each.get("endOffset", end)   # the first piece of a file has it
            until = follows["offset"] if follows.get("type") == "chunk" else end
            yield each.get("chunkDigest") or each["digest"], until - each["offset"]


def _form(found: dict[str, list[_Layer]]) -> dict[str, Any]:
    here = set().union(*(layer.digests() for layer in found["first"]))
    new = [layer for layer in found["second"] if layer.blob not in {each.blob for each in found["first"]}]
    skippable = 8                        # the header of the frame that the table is in
    parts = {
        "chunks": sum({d: n for layer in new for d, n in layer.frames() if d not in here}.values()),
        "tables": sum(layer.toc_size for layer in new),
        "headers": sum(layer.split or layer.toc_at - skippable - sum(n for _, n in layer.frames()) for layer in new),
    }
    return {"size": sum(layer.size for layer in new), "least": sum(parts.values()), "least_of": parts}


def _layers(host: str, image: str) -> list[_Layer]:
    """Those of which the manifest says that they are chunked: skopeo does not say it again of a blob that it has pushed."""
    repository, found = image.partition(":")[0], []
    for layer in _manifest(host, image)["layers"]:
        said = {key.rpartition(".")[2]: value for key, value in layer.get("annotations", {}).items()}
        if "manifest-position" in said:
            blob = _blob(host, repository, layer["digest"])
            start, length, size = map(int, said["manifest-position"].split(":")[:3])
            text = ZstdDecompressor().decompress(blob[start : start + length], max_output_size=size)
            split = int(said["tarsplit-position"].split(":")[1]) if "tarsplit-position" in said else 0
            found.append(_Layer(layer["digest"], layer["size"], json.loads(text), start, length, split))
    if not found:
        raise machine.CannotError("skopeo did not write zstd:chunked")
    return found


def _manifest(host: str, image: str) -> dict[str, Any]:
    repository, _, tag = image.partition(":")
    return dict(json.loads(_get(f"http://{host}/v2/{repository}/manifests/{tag}", Accept=_OCI)))


def _blob(host: str, repository: str, digest: str) -> bytes:
    return _get(f"http://{host}/v2/{repository}/blobs/{digest}")


def _get(url: str, **headers: str) -> bytes:
    with urlopen(Request(url, headers=headers)) as answer:   # of a registry that we have started ourselves
        return bytes(answer.read())
