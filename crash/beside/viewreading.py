"""Reads a directory as containers/storage reads an additional image store, and believes nothing. Knows no layerstore.

``read_view`` gives the names of each image by its ID; whatever podman would stumble over fails an assertion: a document
that does not parse, a layer that is listed and not there, a link that leads nowhere, a digest that is not right, a tar that
cannot be made again. ``files`` gives everything that lies in a view, for comparing; ``moved`` lets a view that was copied
together with its store lead to that copy.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import os
import stat
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

Document = dict[str, Any]


def sha256(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


def read_json(path: str) -> Any:
    try:
        with open(path, "rb") as file:
            return json.load(file)
    except FileNotFoundError:
        return []                        # as containers/storage takes it


def read_view(path: str | os.PathLike[str], *, tars: bool = True) -> dict[str, tuple[str, ...]]:
    layers: dict[str, Document] = {each["id"]: each for each in read_json(f"{path}/overlay-layers/layers.json")}
    images: list[Document] = read_json(f"{path}/overlay-images/images.json")
    if layers or images:
        for lock in ("overlay-layers/layers.lock", "overlay-images/images.lock"):
            assert stat.S_ISREG(os.lstat(f"{path}/{lock}").st_mode)
    for layer in layers.values():
        read_layer(path, layer, layers, tars)
    names = [name for image in images for name in image["names"]]
    assert len(names) == len(set(names)), names
    return {image["id"]: read_image(path, image, layers) for image in images}


def chain(layer: Document, layers: Mapping[str, Document]) -> list[Document]:
    """The layer and its ancestors, the nearest first; each must be listed."""
    found = [layer]
    while "parent" in found[-1]:
        found.append(layers[found[-1]["parent"]])
    return found


def read_layer(path: str | os.PathLike[str], layer: Document, layers: Mapping[str, Document], tars: bool) -> None:
    own, below = f"{path}/overlay/{layer['id']}", chain(layer, layers)[1:]
    assert not layer.get("flags")
    assert os.path.isabs(os.readlink(f"{own}/diff"))
    assert os.path.isdir(f"{own}/diff")
    link = read(f"{own}/link").decode()
    assert len(link) == 26
    assert os.path.samefile(f"{path}/overlay/l/{link}", f"{own}/diff")
    if below:
        lower = read(f"{own}/lower").decode().split(":")
        assert len(lower) == len(below)
        for each, parent in zip(lower, below, strict=True):
            assert os.path.samefile(f"{path}/overlay/{each}", f"{path}/overlay/{parent['id']}/diff")
        assert read(f"{own}/lower-layers").decode().split(":") == [each["id"] for each in below]
    else:
        assert not os.path.exists(f"{own}/lower")
    if tars:
        tar = made_again(f"{path}/overlay-layers/{layer['id']}.tar-split.gz", f"{own}/diff")
        assert (sha256(tar), len(tar)) == (layer["diff-digest"], layer["diff-size"])


def made_again(split: str, diff: str) -> bytes:
    """The tar, from the pieces of the tar-split and the files of the tree."""
    tar = b""
    with gzip.open(split) as lines:
        for line in lines:
            entry = json.loads(line)
            if entry["type"] == 2:
                tar += base64.b64decode(entry["payload"])
            elif entry.get("size"):
                data = read(os.path.join(diff, entry["name"]))
                assert len(data) == entry["size"]
                tar += data
    return tar


def read_image(path: str | os.PathLike[str], image: Document, layers: Mapping[str, Document]) -> tuple[str, ...]:
    data = {}
    for key in image["big-data-names"]:
        plain = all(c in ".0123456789abcdefghijklmnopqrstuvwxyz" for c in key)
        name = key if plain else "=" + base64.b64encode(key.encode()).decode()
        data[key] = read(f"{path}/overlay-images/{image['id']}/{name}")
        assert (sha256(data[key]), len(data[key])) == (image["big-data-digests"][key], image["big-data-sizes"][key])
    manifest, config = json.loads(data["manifest"]), data["sha256:" + image["id"]]
    assert sha256(data["manifest"]) == image["digest"]
    assert data[f"manifest-{image['digest']}"] == data["manifest"]
    assert sha256(config) == manifest["config"]["digest"] == "sha256:" + image["id"]
    stack = chain(layers[image["layer"]], layers)[::-1] if "layer" in image else []
    assert [each["diff-digest"] for each in stack] == json.loads(config)["rootfs"]["diff_ids"]
    assert len(manifest["layers"]) == len(stack)
    return tuple(image["names"])


def read(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read()


def files(path: str | os.PathLike[str]) -> dict[str, str | bytes | None]:
    """What lies in a directory, by relative path: a link's target, a file's content, a directory's None."""
    found: dict[str, str | bytes | None] = {}
    for parent, folders, names in os.walk(path):
        for name in [*folders, *names]:
            full = os.path.join(parent, name)
            mode = os.lstat(full).st_mode
            found[os.path.relpath(full, path)] = (
                os.readlink(full) if stat.S_ISLNK(mode) else None if stat.S_ISDIR(mode) else read(full)
            )
    return found


def moved(path: str, store: str) -> None:
    """Let the absolute links of the view at *path*, and what it says of its store, lead to the *store* beside it now."""
    for parent, folders, names in os.walk(path):
        for name in [*folders, *names]:
            full = os.path.join(parent, name)
            if os.path.islink(full) and os.path.isabs(target := os.readlink(full)):
                os.unlink(full)
                os.symlink(os.path.join(os.path.realpath(store), "layers", *target.split("/")[-2:]), full)
    with suppress(FileNotFoundError, ValueError):    # one that is torn stays so
        marker = json.loads(read(f"{path}/view.json"))
        with open(f"{path}/view.json", "w", encoding="utf-8") as file:
            json.dump(marker | {"root": os.path.realpath(store)}, file)
