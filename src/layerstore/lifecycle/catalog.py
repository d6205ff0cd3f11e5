"""Questions to the catalog: read-only, over any snapshot of its tables. Changes are made by ``projection`` alone."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from layerstore.errors import (
    BeneathMissingError,
    InvalidArgumentError,
    LayerDamagedError,
    UnknownImageError,
    UnknownLayerError,
)
from layerstore.formats.records import indexes_in, signatures_in
from layerstore.lifecycle.stacked import STORE, Reader, why_missing
from layerstore.lifecycle.states import State
from layerstore.model import Beneath, Image, Layer, Lease, Mount

__all__ = [
    "Reader", "Row", "beneath_of", "by_digest", "chain", "damaged_files", "image", "images", "is_committed", "layer",
    "layers", "layers_of", "leases", "mount", "mounts", "opened", "recorded_beneath", "resolve", "tree_of", "users",
]

Row = dict[str, Any]
_HEX = frozenset("0123456789abcdef")


def tree_of(view: Reader, layer_id: str) -> tuple[str, Row] | None:
    """The txid and row of the tree that has, or claims, *layer_id*."""
    pointer = view.get("ids", layer_id)
    if pointer is None:
        return None
    row = view.get("layers", pointer["txid"])
    return None if row is None else (pointer["txid"], row)


def layer(view: Reader, layer_id: str, *, damaged: bool = False, recorded: Beneath | None = None) -> Layer:
    """The committed layer *layer_id*. UnknownLayerError; LayerDamagedError if quarantined and not *damaged*.

    *recorded*: what a row that refers to it says of it, if it was in a store beneath then: BeneathMissingError if there
    is none, or another one.
    """
    found = tree_of(view, layer_id)
    state = found[1]["state"] if found else None
    there = found is not None and state in (State.COMMITTED, State.QUARANTINED)
    if recorded is not None and (not there or (found and found[1]["output"]["diff_id"] != recorded.diff_id)):
        what = f"another layer, not {recorded.diff_id}, has its ID" if there else why_missing(view, recorded.store)
        raise BeneathMissingError(
            f"layer {layer_id} was in the store {recorded.store} beneath: {what}", store=recorded.store, layer_id=layer_id,
        )
    if found is None or not there:
        raise UnknownLayerError(f"there is no committed layer {layer_id}")
    if state == State.QUARANTINED and not damaged:
        damage = found[1]["damage"]
        raise LayerDamagedError(
            f"layer {layer_id} is quarantined: {damage['why']}", layer_id=layer_id, files=damaged_files(found[1]),
        )
    return _to_layer(_names(view, layer_id), *found)


def damaged_files(row: Row) -> tuple[str, ...]:
    """The paths of a quarantined layer that are known to be bad, relative to its directory."""
    return tuple(os.fsdecode(each) for each in row.get("damage", {}).get("files", ()))


def is_committed(view: Reader, layer_id: str) -> bool:
    found = tree_of(view, layer_id)
    return found is not None and found[1]["state"] == State.COMMITTED


def layers(view: Reader, *, damaged: bool = True, rows: Mapping[str, Row] | None = None) -> Iterator[Layer]:
    """Every committed layer, by ID; quarantined ones too, so that a listing shows them.

    *rows* is the table ``layers``, from who has read it already.
    """
    names: dict[str, list[str]] = {}   # read once: most layers have none, and asking for each costs a search
    for key, _ in view.scan("named"):
        owner, _, name = key.partition("/")
        names.setdefault(owner, []).append(name)
    for layer_id, pointer in view.scan("ids"):
        row = view.get("layers", pointer["txid"]) if rows is None else rows.get(pointer["txid"])
        if row is None:
            continue
        if row["state"] == State.COMMITTED or (damaged and row["state"] == State.QUARANTINED):
            yield _to_layer(tuple(names.get(layer_id, ())), pointer["txid"], row)


def by_digest(view: Reader, kind: str, digest: str) -> list[Layer]:
    """Committed layers with that ``blob``, ``diff`` or ``toc`` digest, by ID."""
    prefix = f"{kind}/{digest}/"
    return [layer(view, key.removeprefix(prefix)) for key, _ in view.scan("digests", prefix)]


def chain(view: Reader, layer_id: str, *, damaged: bool = False) -> list[Layer]:
    """*layer_id* and its ancestors, base first."""
    result: list[Layer] = []
    current: str | None = layer_id
    recorded = None
    while current is not None:
        here = layer(view, current, damaged=damaged, recorded=recorded)
        result.append(here)
        current, recorded = here.parent, here.parent_beneath
    return result[::-1]


def layers_of(view: Reader, image: Image, *, damaged: bool = False) -> list[Layer]:
    """The layers of an image, base first. Raises as ``layer``."""
    return [layer(view, each, damaged=damaged, recorded=image.beneath.get(each)) for each in image.layers]


def beneath_of(view: Reader, layer_ids: Iterable[str]) -> dict[str, Row]:
    """Of those of *layer_ids* that are in stores beneath, what a row that refers to them has to say of them."""
    found = {each: tree_of(view, each) for each in layer_ids}
    return {
        each: {"store": tree[1][STORE], "diff_id": tree[1]["output"]["diff_id"]}
        for each, tree in found.items() if tree is not None and STORE in tree[1]
    }


def recorded_beneath(row: Mapping[str, Any]) -> dict[str, Beneath]:
    """What the row of an image, a lease or a mount says of layers that are in stores beneath, by layer ID."""
    return {each: Beneath(**there) for each, there in row.get("beneath", {}).items()}


def image(view: Reader, image_id: str) -> Image:
    """The committed image *image_id*. UnknownImageError."""
    row = view.get("images", image_id)
    if row is None or row["state"] != State.COMMITTED:
        raise UnknownImageError(f"there is no image {image_id}")
    return _to_image(view, image_id, row)


def images(view: Reader) -> Iterator[Image]:
    """Every committed image, by ID."""
    for image_id, row in view.scan("images"):
        if row["state"] == State.COMMITTED:
            yield _to_image(view, image_id, row)


def resolve(view: Reader, reference: str) -> tuple[str, str]:
    """``("image" | "layer", ID)`` for a name, a full ID or an unambiguous ID prefix (of 4 or more digits).

    An exact name wins, then an exact ID, then a prefix; where an image and a layer share an ID, the image.
    Raises UnknownImageError, or InvalidArgumentError for an ambiguous prefix.
    """
    named = view.get("names", reference)
    if named is not None:
        return named["kind"], named["id"]
    if len(reference) >= 4 and set(reference) <= _HEX:
        hits = [("image", i) for i, r in view.scan("images", reference) if r["state"] == State.COMMITTED]
        hits = hits or [
            ("layer", key) for key, pointer in view.scan("ids", reference)
            if (view.get("layers", pointer["txid"]) or {}).get("state") in (State.COMMITTED, State.QUARANTINED)
        ]
        if len(hits) == 1:
            return hits[0]
        if hits:
            raise InvalidArgumentError(
                f"{reference!r} is the beginning of {len(hits)} IDs", hint="give more digits, or a name",
            )
    raise UnknownImageError(f"there is no image or layer {reference!r}")


def users(view: Reader, layer_id: str) -> list[str]:
    """Why *layer_id* cannot be deleted, in words."""
    prefix = f"{layer_id}/"
    return [" ".join(key.removeprefix(prefix).split("/", 1)) for key, _ in view.scan("users", prefix)]


def leases(view: Reader) -> Iterator[Lease]:
    for name, row in view.scan("leases"):
        yield Lease(name=name, layers=tuple(row["layers"]), since_ns=row["since_ns"])


def mounts(view: Reader) -> Iterator[Mount]:
    for key, row in view.scan("mounts"):
        yield _to_mount(key, row)


def mount(view: Reader, mount_id: str) -> Mount:
    """One mount by its ID, which must be there."""
    row = view.get("mounts", mount_id)
    assert row is not None
    return _to_mount(mount_id, row)


def _to_mount(key: str, row: Row) -> Mount:
    return Mount(
        id=key, target=row["target"], layers=tuple(row["layers"]), writable=row["writable"],
        mounted=row["state"] == State.MOUNTED, boot_id=row["boot_id"], since_ns=row["since_ns"],
        label=row.get("label"),
    )


def opened(view: Reader, kind: str) -> Iterator[tuple[str, Row]]:
    """The ``open`` entries of one kind: what is in flight, and what waits for a checkpoint."""
    for key, entry in view.scan("open", f"{kind}:"):
        yield key.removeprefix(f"{kind}:"), entry


def _names(view: Reader, owner: str) -> tuple[str, ...]:
    return tuple(key.removeprefix(f"{owner}/") for key, _ in view.scan("named", f"{owner}/"))


def _to_layer(names: tuple[str, ...], txid: str, row: Row) -> Layer:
    output = row["output"]
    return Layer(
        id=row["layer_id"], parent=row["parent"], names=names, state=row["state"],
        diff_id=output["diff_id"], diff_size=output["diff_size"], blob_digest=output["blob_digest"],
        blob_size=output["blob_size"], toc_digest=output["toc_digest"], compression=output["compression"],
        manifest_digest=output["manifest_digest"], tar_split_digest=output.get("tar_split_digest"),
        entries=output["entries"], uids=tuple(output["uids"]),
        gids=tuple(output["gids"]), unset=output["unset"], big_data={**output["big_data"], **row.get("big_data", {})},
        created_ns=row.get("created_ns", 0), txid=txid,
        damaged_files=damaged_files(row), store=row.get(STORE),
        parent_beneath=Beneath(**row["beneath"]) if "beneath" in row else None,
    )


def _to_image(view: Reader, image_id: str, row: Row) -> Image:
    return Image(
        id=image_id, names=_names(view, image_id), layers=tuple(row["layers"]),
        manifest_digest=row["manifest_digest"], manifest_media_type=row["manifest_media_type"],
        config_digest=row["config_digest"], created_ns=row["created_ns"],
        damaged=tuple(each for each in row["layers"] if _is_quarantined(view, each)), store=row.get(STORE),
        beneath=recorded_beneath(row),
        signatures=signatures_in(row), indexes=indexes_in(row),
    )


def _is_quarantined(view: Reader, layer_id: str) -> bool:
    found = tree_of(view, layer_id)
    return found is not None and found[1]["state"] == State.QUARANTINED
