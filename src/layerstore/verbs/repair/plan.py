"""What is done about each finding, and with what: pure. It reads nothing; the same findings give the same plan.

``Known`` is everything else that it depends on: what the manifest says, and where content and parts are to be had.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from layerstore.formats.manifest import NODE, ManifestEntry
from layerstore.verbs.check import Finding

__all__ = ["Do", "Known", "Step", "file_of", "path_of", "plan", "wanted"]


class Do(StrEnum):
    RESTORE = "restore"                # a file's content, from wherever it is to be had
    MAKE = "make"                      # a directory, link or node, as the manifest says
    LINK = "link"                      # a hard link to a file of the tree
    WEAR = "wear"                      # attributes, as the manifest says
    TAKE_OUT = "take-out"              # what should not be there: kept in quarantine/
    REWRITE = "rewrite"                # a side file, from the row
    COPY = "copy"                      # a part of the layer, from its source
    PUT_BACK = "put-back"              # the whole tree, from its source
    SET_ASIDE = "set-aside"            # a tree that nobody owns: kept in quarantine/
    QUARANTINE = "quarantine"          # it cannot be restored: the layer is kept, and not served
    LEAVE = "leave"                    # nothing that a repair could do


@dataclass(frozen=True, slots=True)
class Step:
    """One thing to do. ``path``: in the layer's directory; ``source``: of what is needed; ``why``: the finding."""

    do: Do
    subject: str
    path: str
    source: str
    why: str


@dataclass(frozen=True, slots=True)
class Known:
    """Of one layer. ``entries``: its manifest, by path (None: it is not what it was). ``content``: digest → who has it.

    ``parts``: what its source has of its directory → the source: files; ``kept``: all that is in there; "": all of it.
    ``kept``: digests of files beside the tree. ``is_layer``: what nobody owns has the whole side file of a layer.
    """

    entries: Mapping[bytes, ManifestEntry] | None = None
    content: Mapping[bytes, str] = field(default_factory=dict)
    parts: Mapping[str, str] = field(default_factory=dict)
    kept: Mapping[str, bytes] = field(default_factory=dict)
    is_layer: bool = False


_EMPTY = bytes.fromhex("e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855")   # sha256 of nothing
_ANEW = frozenset({"path-missing", "path-type", "path-size", "path-content", "path-unreadable", "path-link", "path-target"})
_PARTS = {
    "manifest-wrong": "manifest", "manifest-damaged": "manifest", "tar-split-wrong": "tar-split",
}
_MAYBE = "it has the whole side file of a layer: 'layerstore rebuild --force' makes it one again; or repair --set-aside"
_NOTHING = frozenset({"more", "layer-quarantined", "image-layer-missing", "beneath-missing", "pending-recovery"})


def file_of(entries: Mapping[bytes, ManifestEntry], entry: ManifestEntry) -> ManifestEntry:
    """What *entry* stands for: where it is a hard link, what that leads to in the end, by way of others.

    Itself if the manifest, which is no longer what was written, has nothing there.
    """
    meant = entry
    for _ in entries:                    # so that links in a circle end
        if meant.type != "hardlink":
            return meant
        meant = entries.get(meant.linkname, meant)
    return entry


def path_of(finding: Finding) -> bytes:
    """The path that it is about, relative to the layer's directory."""
    path = os.fsencode(finding.path)
    if finding.code.startswith("path-"):
        return b"diff/" + path if path else b"diff"
    return path


def wanted(findings: Iterable[Finding], known: Known) -> set[bytes]:
    """Digests of the content that is needed."""
    found = set()
    for finding in findings:
        if finding.code in _ANEW and known.entries is not None:
            entry = known.entries.get(os.fsencode(finding.path))
            if entry is not None and entry.type == "file" and entry.sha256 is not None and not entry.unset & NODE:
                found.add(entry.sha256)
        elif finding.code == "kept-wrong" and finding.path in known.kept:
            found.add(known.kept[finding.path])
    return found - {_EMPTY}


def plan(findings: Iterable[Finding], known: Known) -> tuple[Step, ...]:
    """One step or more for each path that is damaged, in the order in which they are to be done."""
    anew: dict[bytes, Finding] = {}
    worn: dict[bytes, Finding] = {}
    steps = []
    for finding in findings:
        if finding.code in _ANEW:
            anew.setdefault(os.fsencode(finding.path), finding)
        elif finding.code == "path-metadata":
            worn[os.fsencode(finding.path)] = finding
        else:
            steps.append(_other(finding, known))
    made = [_path(finding, known) for _, finding in sorted(anew.items(), key=lambda item: _depth(item[0]))]
    steps += sorted(made, key=lambda step: step.do is Do.LINK)   # links when what they lead to is made, however deep it is
    steps += _links(anew, known)
    steps += [
        Step(Do.WEAR, finding.subject, os.fsdecode(path_of(finding)), "the manifest", finding.message)
        for path, finding in sorted(worn.items()) if path not in anew
    ]
    return tuple(steps)


def _depth(path: bytes) -> tuple[int, bytes]:
    return (path.count(b"/") + 1 if path else 0, path)


def _path(finding: Finding, known: Known) -> Step:
    entry = known.entries.get(os.fsencode(finding.path)) if known.entries is not None else None

    def step(do: Do, source: str) -> Step:
        return Step(do, finding.subject, os.fsdecode(path_of(finding)), source, finding.message)

    if entry is None:
        return step(Do.QUARANTINE, "nothing says what it was")
    if entry.type == "hardlink":
        return step(Do.LINK, f"its own file {os.fsdecode(file_of(known.entries or {}, entry).path)}")
    if entry.type != "file" or entry.unset & NODE or entry.sha256 == _EMPTY:
        return step(Do.MAKE, "the manifest")
    assert entry.sha256 is not None
    if entry.sha256 in known.content:
        return step(Do.RESTORE, known.content[entry.sha256])
    return step(Do.QUARANTINE, "nobody has its content")


def _links(anew: Mapping[bytes, Finding], known: Known) -> Iterator[Step]:
    """Other names of files that are replaced: they would go on being the old file. A link comes after what it names."""
    replaced = dict(anew)
    for entry in (known.entries or {}).values():
        target = replaced.get(entry.linkname) if entry.type == "hardlink" else None
        if target is not None and entry.path not in anew:
            replaced[entry.path] = target
            path, own = "diff/" + os.fsdecode(entry.path), file_of(known.entries or {}, entry).path
            yield Step(Do.LINK, target.subject, path, f"its own file {os.fsdecode(own)}", "its file is replaced")


def _other(finding: Finding, known: Known) -> Step:
    code, path = finding.code, finding.path

    def step(do: Do, source: str) -> Step:
        return Step(do, finding.subject, os.fsdecode(path_of(finding)), source, finding.message)

    part = _PARTS.get(code, path)
    if code in ("path-extra", "part-extra"):
        return step(Do.TAKE_OUT, "nobody needs it")
    if code.startswith("side-file-"):
        return step(Do.REWRITE, "the catalog")
    if code == "txid-damaged" and known.entries is not None:
        return step(Do.REWRITE, "the catalog; the manifest proves that it is this tree")
    if code == "part-missing" and path == "diff" and known.entries is not None:
        return step(Do.MAKE, "the manifest")
    if code == "layer-missing" and "" in known.parts:
        return step(Do.PUT_BACK, known.parts[""])
    source = known.parts.get(part.partition("/")[0]) if part else None
    if (code in _PARTS or code in ("part-missing", "kept-wrong")) and source is not None:
        return Step(Do.COPY, finding.subject, part, source, finding.message)
    if code == "kept-wrong" and known.kept.get(path) in known.content:
        return step(Do.RESTORE, known.content[known.kept[path]])
    if code == "ownerless":
        return step(Do.LEAVE, _MAYBE) if known.is_layer else step(Do.SET_ASIDE, "nobody needs it")
    if code == "quota-file-damaged":
        return step(Do.LEAVE, "nothing else has the limit: set it again ('layerstore quota')")
    if code == "image-file-damaged":
        return step(Do.COPY, known.parts["image"]) if "image" in known.parts else step(Do.LEAVE, "pull the image again")
    if code in _NOTHING or code.startswith("journal-"):
        return step(Do.LEAVE, "no repair of a layer mends that")
    return step(Do.QUARANTINE, "nobody has it")
