"""Verify an image that cosign signed with a key pair: for ``layerstore pull --verify "python3 verify.py KEY.pub"``.

    verify.py PUBLIC-KEY DIRECTORY

DIRECTORY has the image's documents and signatures (docs/verifying.md). Status 0: one of the signatures is of this image,
or of an index that lists it, and made with the key (EC or RSA, SHA-256). openssl does the cryptography. What cosign calls
keyless, certificates and transparency logs are not looked at: for those have a command that calls cosign.
"""

import base64
import hashlib
import json
import subprocess
import sys
import tempfile
from pathlib import Path


def main(key: str, directory: str) -> None:
    where = Path(directory)
    image = json.loads((where / "image.json").read_text())
    subjects = {image["manifest_digest"], *indexes_that_list(image["manifest_digest"], where, image["indexes"])}
    for signature in image["signatures"]:
        if signature["kind"] == "attached" and signature["subject"] in subjects:
            manifest = json.loads((where / signature["manifest"]).read_text())
            for layer, payload in zip(manifest["layers"], signature["blobs"][1:], strict=True):   # the first is the config
                text = layer.get("annotations", {}).get("dev.cosignproject.cosign/signature", "")
                if text and made_with(key, where / payload, text) and said_to_be_of(where / payload) in subjects:
                    return
    sys.exit(f"no signature of {image['reference']} was made with {key}")


def indexes_that_list(digest: str, where: Path, names: list[str]) -> list[str]:
    """Digests of the indexes that lead to the manifest *digest*, the innermost first."""
    found = [digest]
    for name in reversed(names):
        data = (where / name).read_bytes()
        if found[-1] not in [each["digest"] for each in json.loads(data)["manifests"]]:
            break
        found.append(f"sha256:{hashlib.sha256(data).hexdigest()}")
    return found[1:]


def made_with(key: str, payload: Path, text: str) -> bool:
    with tempfile.NamedTemporaryFile() as file:
        file.write(base64.b64decode(text))
        file.flush()
        command = ["openssl", "dgst", "-sha256", "-verify", key, "-signature", file.name, str(payload)]
        return subprocess.run(command, capture_output=True, check=False).returncode == 0


def said_to_be_of(payload: Path) -> str:
    """Read only after it was verified."""
    return str(json.loads(payload.read_text())["critical"]["image"]["docker-manifest-digest"])


if __name__ == "__main__":
    main(*sys.argv[1:])
