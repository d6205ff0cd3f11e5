"""Signatures for tests: of the right form, beside an image in a layout or by themselves. Nobody could verify one."""

import base64
import json
import subprocess
from pathlib import Path

from imagemaker import CONFIG, INDEX, MANIFEST, REF_NAME, blob_path, digest_of, encode

COSIGN = "application/vnd.dev.cosign.simplesigning.v1+json"
BUNDLE = "application/vnd.dev.sigstore.bundle.v0.3+json"
NOTARY = "application/vnd.cncf.notary.signature"
REPOSITORY = "example.test/app"   # whose image a signature says that it is
EMPTY = "application/vnd.oci.empty.v1+json"


def described(media_type, data, **more):
    return {"mediaType": media_type, "digest": digest_of(data), "size": len(data), **more}


def attached(subject, salt=""):
    """What cosign puts under its tag: the manifest, and its blobs. *subject* is a digest."""
    critical = {"identity": {"docker-reference": REPOSITORY}, "image": {"docker-manifest-digest": subject},
                "type": "cosign container image signature"}
    payload = encode({"critical": critical, "optional": {"salt": salt}})
    config = encode({"architecture": "", "os": "", "rootfs": {"type": "layers", "diff_ids": [digest_of(payload)]}})
    layer = described(COSIGN, payload, annotations={"dev.cosignproject.cosign/signature": f"c2lnbmVk{salt}"})
    manifest = encode({"schemaVersion": 2, "mediaType": MANIFEST, "config": described(CONFIG, config), "layers": [layer]})
    return manifest, (config, payload)


def referrer(subject, size=100, *, kind=BUNDLE, salt=""):
    """A signature as OCI 1.1 has them: a manifest that says of what it is."""
    bundle, empty = encode({"mediaType": BUNDLE, "salt": salt}), b"{}"
    manifest = encode({
        "schemaVersion": 2, "mediaType": MANIFEST, "artifactType": kind, "config": described(EMPTY, empty),
        "layers": [described(kind, bundle)], "subject": {"mediaType": MANIFEST, "digest": subject, "size": size},
        "annotations": {"dev.sigstore.bundle.content": "message-signature"},
    })
    return manifest, (empty, bundle)


def put_blobs(layout, *blobs):
    for data in blobs:
        blob_path(layout, digest_of(data)).write_bytes(data)


def listed(layout, **entry):
    """Add an entry to a layout's index."""
    path = Path(layout, "index.json")
    index = json.loads(path.read_text())
    index["manifests"].append(entry)
    path.write_text(json.dumps(index))


def sign(layout, subject, *, salt=""):
    """Put cosign's signature of *subject* beside an image; its manifest."""
    manifest, blobs = attached(subject, salt)
    put_blobs(layout, manifest, *blobs)
    listed(layout, **described(MANIFEST, manifest, annotations={REF_NAME: f"{subject.replace(':', '-')}.sig"}))
    return manifest


def refer(layout, subject, *, kind=BUNDLE, salt="", by_tag=False):
    """Put a signature that refers to *subject* there: in the index itself, or by the tag that lists referrers."""
    manifest, blobs = referrer(subject, kind=kind, salt=salt)
    put_blobs(layout, manifest, *blobs)
    entry = described(MANIFEST, manifest, artifactType=kind)
    if by_tag:
        index = encode({"schemaVersion": 2, "mediaType": INDEX, "manifests": [entry]})
        put_blobs(layout, index)
        entry = described(INDEX, index, annotations={REF_NAME: subject.replace(":", "-")})
    listed(layout, **entry)
    return manifest


def by_another_manifest(made):
    """A layout's image, the same config and layers, by another manifest; that one's digest."""
    manifest = encode({**json.loads(made.manifest), "annotations": {"is": "another"}})
    put_blobs(made.path, manifest)
    entry = described(MANIFEST, manifest, annotations={REF_NAME: "latest"})
    Path(made.path, "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [entry]}))
    return digest_of(manifest)


def key_pair(directory, name="cosign"):
    """An EC key pair as cosign makes them; the paths of the private and the public key."""
    private, public = (str(directory / f"{name}.{kind}") for kind in ("key", "pub"))
    subprocess.run(["openssl", "ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", private], check=True)
    subprocess.run(["openssl", "ec", "-in", private, "-pubout", "-out", public], check=True, capture_output=True)
    return private, public


def sign_with(private, layout, subject, *, said=None):
    """Sign *subject* as ``cosign sign --key`` does, and put that beside the image. *said*: of what it says that it is."""
    manifest, (config, payload) = attached(said or subject)
    made = subprocess.run(["openssl", "dgst", "-sha256", "-sign", private], input=payload, capture_output=True, check=True)
    document = json.loads(manifest)
    document["layers"][0]["annotations"] = {"dev.cosignproject.cosign/signature": base64.b64encode(made.stdout).decode()}
    manifest = encode(document)
    put_blobs(layout, manifest, config, payload)
    listed(layout, **described(MANIFEST, manifest, annotations={REF_NAME: f"{subject.replace(':', '-')}.sig"}))
