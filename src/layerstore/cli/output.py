"""What the commands print: plain lines, JSON when asked, and on a terminal what ``terminal`` makes of it."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:   # what is printed exists already where there is any; importing it would be most of starting up
    from layerstore.model import Image, Layer
    from layerstore.recovery.rebuilding import RebuildReport
    from layerstore.recovery.recover import RecoveryReport


_ID_DIGITS = 64


def as_json(value: Any) -> None:
    """One JSON document on standard output."""
    sys.stdout.write(json.dumps(value, indent=2, sort_keys=False) + "\n")


def printable(text: str) -> str:
    r"""*text* without anything that a terminal would obey or that would begin a line of its own.

    File names are whatever an archive's maker chose: an escape sequence, a new line, letters that run backwards, bytes
    that are no text. These come as ``\x1b``, ``\n``, ``\u202e``, ``\xff``.
    """
    return text if text.isprintable() else "".join(c if c.isprintable() else _escaped(c) for c in text)


def _escaped(character: str) -> str:
    if "\udc80" <= character <= "\udcff":   # os.fsdecode's form of a byte
        return f"\\x{ord(character) - 0xDC00:02x}"
    return character.encode("unicode_escape").decode()


def lines(rows: Iterable[str]) -> None:
    """A line each, made printable."""
    for row in rows:
        sys.stdout.write(printable(row) + "\n")


def table(columns: Sequence[str], rows: Sequence[Sequence[str]], *, right: Sequence[int] = ()) -> None:
    """A table on a terminal; tab-separated lines, without a heading, otherwise."""
    if not sys.stdout.isatty():
        for row in rows:
            sys.stdout.write("\t".join(map(printable, row)) + "\n")
        return
    from layerstore.cli import terminal  # noqa: PLC0415 - rich is slow to import, and most output is piped

    terminal.table(columns, [[printable(cell) for cell in row] for row in rows], right=right)


def short(digest: str) -> str:
    """Twelve digits of an ID or digest."""
    return digest.removeprefix("sha256:")[:12]


def size(count: int | None) -> str:
    if count is None:
        return "-"
    value = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} TB"


def when(nanoseconds: int) -> str:
    return datetime.fromtimestamp(nanoseconds / 1e9, tz=UTC).strftime("%Y-%m-%d %H:%M:%S")


def layer_json(layer: Layer) -> dict[str, Any]:
    return {
        "id": layer.id, "parent": layer.parent, "names": list(layer.names), "state": layer.state,
        "diff_id": layer.diff_id, "diff_size": layer.diff_size, "blob_digest": layer.blob_digest,
        "blob_size": layer.blob_size, "toc_digest": layer.toc_digest, "compression": layer.compression,
        "entries": layer.entries, "unset": layer.unset, "created_ns": layer.created_ns,
        "big_data": dict(layer.big_data), "damaged_files": list(layer.damaged_files), "store": layer.store,
        "parent_store": layer.parent_beneath.store if layer.parent_beneath is not None else None,
    }


def image_json(image: Image) -> dict[str, Any]:
    return {
        "id": image.id, "names": list(image.names), "layers": list(image.layers),
        "manifest_digest": image.manifest_digest, "manifest_media_type": image.manifest_media_type,
        "config_digest": image.config_digest, "created_ns": image.created_ns, "damaged": list(image.damaged),
        "signatures": [{"kind": each.kind, "digest": each.digest, "subject": each.subject} for each in image.signatures],
        "store": image.store,
    }


def recovery_lines(report: RecoveryReport) -> list[str]:
    """What recovery did, a line each; nothing for nothing."""
    verb = "would" if report.planned_only else "did"
    found = [
        f"recovery {verb}: {action.do.value} {short(action.layer_id or action.key)} ({action.why})"
        for action in report.actions
    ]
    return found + [f"deferred: {short(a.layer_id or a.key)} ({a.why})" for a in report.deferred]


def rebuild_lines(report: RebuildReport) -> list[str]:
    """What a rebuild did, or would do: what was wrong, what came from where, and what is not proven."""
    found = [f"damage: {each}" for each in report.damage]
    found += [f"segment {name} is not good: {why}" for name, why in report.bad_segments]
    end = "the end of the log" if report.whole else "what came after it is not proven"
    found.append(f"{len(report.segments)} segments to record {report.archived}, log to record {report.head}: {end}")
    found += [f"{each.code} {_subject(each.subject)}: {each.message}" for each in report.items]
    verb = "would be taken" if report.planned_only else "taken"
    found.append(f"{report.layers} layers and {report.images} images {verb} from their files")
    return found + ([f"the old database is {report.kept}"] if report.kept is not None else [])


def _subject(text: str) -> str:
    return short(text) if len(text) == _ID_DIGITS else text


def write_file(path: str, chunks: Iterable[bytes]) -> None:
    """Write *chunks* to *path*, which is replaced when all have come, or left as it was; ``-`` is stdout."""
    if path == "-":
        for chunk in chunks:
            sys.stdout.buffer.write(chunk)
        sys.stdout.buffer.flush()
        return
    from layerstore.targets.parts import replacing, sweep  # noqa: PLC0415 - few commands write files

    sweep(*os.path.split(os.path.abspath(path)))
    with replacing(path, point="output.file") as file:
        for chunk in chunks:
            file.write(chunk)
