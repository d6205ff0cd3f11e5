"""``images``, ``layers`` and ``show``: what is in the store. Imported when one of them is named."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import click

from layerstore.cli import output
from layerstore.cli.options import Settings, json_option, reference_argument
from layerstore.errors import LayerDamagedError

if TYPE_CHECKING:
    from layerstore.store import Store


@click.command()
@json_option
@click.pass_obj
def images(settings: Settings, as_json: bool) -> None:
    """List images."""
    with settings.open() as store:
        found = store.images()
        sizes = _sizes(store, {layer for image in found for layer in image.layers})
    if as_json:
        output.as_json([output.image_json(image) for image in found])
        return
    output.table(
        ("ID", "NAMES", "LAYERS", "SIZE", "CREATED"),
        [(output.short(i.id), " ".join(i.names) or "-", str(len(i.layers)),
          output.size(sum(sizes.get(each, 0) for each in i.layers)), output.when(i.created_ns)
          + (" (damaged)" if i.damaged else "") + (" (beneath)" if i.store else "")) for i in found],
        right=(2, 3),
    )


def _sizes(store: Store, layer_ids: set[str]) -> dict[str, int]:
    """Looked up one by one: most of what a store holds may belong to no image. Damaged ones only a listing shows."""
    try:
        return {layer_id: store.layer(layer_id).diff_size for layer_id in layer_ids}
    except LayerDamagedError:
        return {layer.id: layer.diff_size for layer in store.layers()}


@click.command()
@json_option
@click.pass_obj
def layers(settings: Settings, as_json: bool) -> None:
    """List committed (and quarantined) layers; those of stores beneath have the state 'beneath'."""
    with settings.open() as store:
        found = store.layers()
    if as_json:
        output.as_json([output.layer_json(layer) for layer in found])
        return
    output.table(
        ("ID", "PARENT", "STATE", "ENTRIES", "SIZE", "NAMES"),
        [(output.short(layer.id), output.short(layer.parent) if layer.parent else "-",
          "beneath" if layer.store else layer.state, str(layer.entries),
          output.size(layer.diff_size), " ".join(layer.names) or "-") for layer in found],
        right=(3, 4),
    )


@click.command()
@reference_argument
@json_option
@click.pass_obj
def show(settings: Settings, reference: str, as_json: bool) -> None:
    """Show an image or layer."""
    with settings.open() as store:
        kind, owner = store.resolve(reference)
        if kind == "image":
            image = store.image(owner)
            manifest, config = store.image_documents(owner)
            found: dict[str, Any] = {
                "kind": kind, **output.image_json(image), "manifest": json.loads(manifest), "config": json.loads(config),
            }
        else:
            found = {"kind": kind, **output.layer_json(store.layer(owner)),
                     "chain": [layer.id for layer in store.chain(owner)]}
    if as_json:
        output.as_json(found)
    else:
        output.lines(f"{key}: {_plain(value)}" for key, value in found.items() if key not in ("manifest", "config"))


def _plain(value: Any) -> str:
    if isinstance(value, list):
        return " ".join(each["digest"] if isinstance(each, dict) else str(each) for each in value) or "-"
    return "-" if value in (None, {}) else str(value)
