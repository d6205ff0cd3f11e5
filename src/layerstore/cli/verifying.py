"""``pull --verify COMMAND``: the image's documents and signatures as files, and a command that decides. Nothing else.

The files are a directory of its own, which goes when the command has ended::

    image.json            {"reference", "manifest_digest", "manifest", "config", "indexes", "signatures": [{"kind",
                          "subject", "digest", "media_type", "manifest", "blobs"}]}: names of the files below
    manifest.json  config.json  index-0.json …
    signature-0/manifest.json  signature-0/blob-0 …      the config, then the layers

It is the command's last argument, and is called ``LAYERSTORE_VERIFY`` in its environment, which has also
``LAYERSTORE_REFERENCE`` and ``LAYERSTORE_DIGEST``.
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import tempfile
from collections.abc import Callable
from typing import Any

from layerstore.errors import InvalidArgumentError
from layerstore.signatures import OfferedImage, Signature

__all__ = ["by_command"]


def by_command(command: str) -> Callable[[OfferedImage], None]:
    """A hook for ``PullOptions.verify``. *command* is split as a shell would; no shell runs. InvalidArgumentError."""
    try:
        words = shlex.split(command)
    except ValueError as error:
        raise InvalidArgumentError(f"--verify {command!r}: {error}") from error
    if not words:
        raise InvalidArgumentError("--verify names no command")

    def verify(offered: OfferedImage) -> None:
        with tempfile.TemporaryDirectory(prefix="layerstore-verify-") as directory:
            _write(directory, offered)
            told = {
                "LAYERSTORE_VERIFY": directory, "LAYERSTORE_REFERENCE": offered.reference,
                "LAYERSTORE_DIGEST": offered.manifest_digest,
            }
            try:   # its output must not be taken for ours: it goes where messages go
                status = subprocess.run(  # noqa: S603 - it is what the user said
                    [*words, directory], env={**os.environ, **told}, stdout=2, check=False).returncode
            except OSError as error:   # nobody vouched for it
                raise RuntimeError(f"{words[0]} cannot be run: {error.strerror}") from error
        if status:
            how = f"ended with status {status}" if status > 0 else f"died of signal {-status}"
            raise RuntimeError(f"{words[0]} {how}")

    return verify


def _write(directory: str, offered: OfferedImage) -> None:
    def put(name: str, data: bytes) -> str:
        with open(os.path.join(directory, name), "wb") as file:
            file.write(data)
        return name

    def signature(number: int, each: Signature) -> dict[str, Any]:
        own = f"signature-{number}"
        os.mkdir(os.path.join(directory, own))
        return {
            "kind": each.kind, "subject": each.subject, "digest": each.digest, "media_type": each.manifest_media_type,
            "manifest": put(f"{own}/manifest.json", each.manifest),
            "blobs": [put(f"{own}/blob-{n}", data) for n, data in enumerate(each.blobs)],
        }

    put("image.json", json.dumps({
        "reference": offered.reference, "manifest_digest": offered.manifest_digest,
        "manifest": put("manifest.json", offered.manifest), "config": put("config.json", offered.config),
        "indexes": [put(f"index-{n}.json", data) for n, data in enumerate(offered.indexes)],
        "signatures": [signature(n, each) for n, each in enumerate(offered.signatures)],
    }, indent=2).encode())
