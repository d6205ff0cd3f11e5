"""zstd:chunked as it is written today, out of what Debian 12's skopeo wrote: the same frames and entries, and a tar-split.

The form of 2022 has no tar-split, so whoever takes parts of it fetches what lies between files as well: thousands of ranges.
The frames, and what was cut into chunks where, are skopeo's; the tar-split is the Go tools' format, as we export it.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import zstandard

_PREFIX = "io.github.containers.zstd-chunked."
_SKIPPABLE = b"\x50\x2a\x4d\x18"
_MAGIC = b"GNUlInUx"


def layer(blob: bytes, toc: dict[str, Any], toc_at: int, lines: Iterable[bytes]) -> tuple[bytes, dict[str, str]]:
    """The blob in today's form, and its annotations. *toc* is at *toc_at* in *blob*, behind a frame's header of 8 bytes."""
    plain_split = b"".join(lines)
    split = zstandard.compress(plain_split)
    plain = json.dumps({**toc, "tarSplitDigest": _sha(split)}, separators=(",", ":")).encode()
    text = zstandard.compress(plain)
    out = bytearray(blob[: toc_at - 8])
    places = []
    for data, whole in ((text, plain), (split, plain_split)):
        out += _SKIPPABLE + struct.pack("<I", len(data))
        places.append((len(out), len(data), len(whole)))
        out += data
    footer = struct.pack("<7Q", *places[0], 1, *places[1]) + _MAGIC
    out += _SKIPPABLE + struct.pack("<I", len(footer)) + footer
    return bytes(out), {
        _PREFIX + "manifest-checksum": _sha(text), _PREFIX + "manifest-position": ":".join(map(str, (*places[0], 1))),
        _PREFIX + "tarsplit-position": ":".join(map(str, places[1])),
    }


def layout(directory: Path, layers: Iterable[tuple[bytes, dict[str, str]]], config: bytes) -> None:
    """An OCI layout, tagged ``t``, of an image with those layers (blob and annotations)."""
    blobs = directory / "blobs" / "sha256"
    blobs.mkdir(parents=True)

    def put(data: bytes, kind: str, **more: Any) -> dict[str, Any]:
        digest = _sha(data)
        (blobs / digest.removeprefix("sha256:")).write_bytes(data)
        return {"mediaType": f"application/vnd.oci.image.{kind}", "digest": digest, "size": len(data), **more}

    manifest = {
        "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json", "config": put(config, "config.v1+json"),
        "layers": [put(blob, "layer.v1.tar+zstd", annotations=notes) for blob, notes in layers],
    }
    tagged = put(json.dumps(manifest).encode(), "manifest.v1+json", annotations={"org.opencontainers.image.ref.name": "t"})
    (directory / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
    (directory / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [tagged]}))


def _sha(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()
