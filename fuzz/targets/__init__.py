"""The targets, by name. A new one is a module here, a row below, and a function in ``nasties``."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Target:
    """How the engine drives a target.

    ``followed`` are the modules whose branches guide it: what reads the input, and not what checks the outcome.
    ``longest`` is the length of nearly all inputs, in bytes: what a format's parts need to meet. Some are longer.
    """

    followed: tuple[str, ...]
    longest: int


TARGETS = {
    "tar_reader": Target(("layerstore.formats.tar",), 4096),
    "pax": Target(("layerstore.formats.tar",), 1024),
    "decompress": Target(("layerstore.formats.compression",), 1024),
    "unpack": Target(("layerstore.formats.tar", "layerstore.trees.unpack", "layerstore.trees.gotarsplit"), 3072),
    "tar_split": Target(("layerstore.formats.tarsplit", "layerstore.formats.packed"), 1024),
    "journal_record": Target(("layerjournal",), 1024),
    "journal_segment": Target(("layerjournal",), 1024),
    "oci_json": Target(("layerstore.sources",), 1024),
    "manifest": Target(("layerstore.formats",), 1024),
    "side_file": Target(("layerjournal", "layerstore.formats.records"), 1024),
    "registry_answer": Target(("layerstore.sources",), 1024),
    "chunked_toc": Target(("layerstore.chunked",), 2048),
    "chunked_lines": Target(("layerstore.chunked.golines",), 1024),
    "podman_layer": Target(("layerstore.sources.made_again",), 1024),
}
