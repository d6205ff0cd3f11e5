"""The targets, by name. A new one is a module here, a row below, and a function in ``nasties``."""

from __future__ import annotations

TARGETS = (
    "tar_reader", "pax", "decompress", "unpack", "tar_split", "go_tar_split", "journal_record", "journal_segment",
    "oci_json", "manifest", "side_file", "registry_answer", "chunked_toc", "chunked_lines", "podman_layer",
)
