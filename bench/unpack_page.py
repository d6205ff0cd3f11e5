"""What ``bench.unpack`` found, in Markdown, and its picture. Only how it is told lives here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bench import picture, ratios
from bench.bound import bound
from bench.tables import promised, seconds, spread, table
from bench.targets import Finding, by_round, findings, rows

METHOD = """\
Every time is that of a whole process, from its start to its end, on a new directory of an ext4 file system made for this
(a loop device with direct I/O), on which nothing is ever deleted. The stores exist already and are empty. A round runs
everybody once, in turn; what is told is the median of the rounds, and for ratios the median of the ratios within each
round, with the least and the greatest. Between runs all is written back. *Sync* is `sync -f`, in the same timed command.
*Warm*: the blob is in the page cache; *cold*: it was dropped from it (posix_fadvise). CPU time includes children; memory is
the greatest resident set of any one process. layerstore hashes blob, tar and every file, and writes manifest and
tar-split; *flushes made void* is the same program with a library preloaded in which fsync, fdatasync and syncfs do
nothing: the product has no such switch. containers-storage hashes the tar and writes a tar-split; GNU tar, bsdtar and
tarfile hash nothing. containers-storage decompresses by itself unless there is `unpigz` on its PATH, and is faster so.
"""


def page(result: dict[str, Any], pictures: Path | None) -> str:
    runs = by_round(result["runs"])
    compressions = list(dict.fromkeys(key[2] for key in runs))
    text = ["## Unpacking a layer\n", METHOD, _made_of(result)]
    found = findings(result)
    if found:
        text += ["### Targets, the worst median (least–greatest) of each\n", promised(rows(found)), _every(found)]
    if pictures is not None:
        text.append(_picture(result, pictures))
    for compression in compressions:
        text += [f"### Wall time, {compression}, warm (s)\n", _medians(result, "warm", compression, "wall", seconds)]
    if any(key[0] == "cold" for key in runs):
        text += ["### Wall time, gzip, cold (s)\n", _medians(result, "cold", "gzip", "wall", seconds)]
    shown = "gzip" if "gzip" in compressions else compressions[0] if compressions else ""
    text += [f"### CPU time, {shown}, warm (s)\n", _medians(result, "warm", shown, "cpu", seconds),
             f"### Peak memory, {shown}, warm (MiB)\n", _medians(result, "warm", shown, "rss", _whole),
             "### The physical bound (s)\n", _bounds(result), "### Who ran, and how\n", _notes(result)]
    return "\n".join(text)


def _made_of(result: Mapping[str, Any]) -> str:
    rows = []
    for layer in result["layers"].values():
        sizes = {c: f"{b['size'] / 1e6:.1f}" for c, b in layer["blobs"].items()}
        rows.append((f"`{layer['name']}`: {layer['made_of']}", f"{layer['files']:,}", f"{layer['directories']:,}",
                     *(sizes.get(c, "–") for c in ("plain", "gzip", "zstd")), f"{layer['median_size']:,}"))
    return table(("layer", "files", "directories", "tar MB", "gzip MB", "zstd MB", "median file, bytes"), rows)


def targets(result: Mapping[str, Any]) -> list[tuple[str, str, str, bool]]:
    return rows(findings(result))


def _every(found: Sequence[Finding]) -> str:
    cells = [(each.target.text, f"`{each.layer}`, {each.compression}",
              spread(each.ratio.median, each.ratio.low, each.ratio.high), f"≤ {each.target.limit}",
              "yes" if each.reached else "**no**") for each in found]
    return ("<details><summary>Every layer and compression</summary>\n\n" +
            table(("ratio", "on", "median (least–greatest)", "target", "reached"), cells) + "\n</details>\n")


def _medians(result: Mapping[str, Any], source: str, compression: str, figure: str, write: Any) -> str:
    """Contenders down, layers across."""
    runs = by_round(result["runs"], figure)
    layers = [name for name in result["layers"] if any(key[:3] == (source, name, compression) for key in runs)]
    rows = []
    for name, contender in result["contenders"].items():
        values = [runs.get((source, layer, compression, name), {}) for layer in layers]
        if any(values):
            rows.append((contender["label"], *(write(ratios.median(each)) for each in values)))
    return table(("", *(f"`{layer}`" for layer in layers)), rows)


def _whole(value: float | None) -> str:
    return "–" if value is None else f"{value:.0f}"


def _bounds(result: Mapping[str, Any]) -> str:
    rows = []
    for layer, by_compression in result["bounds"].items():
        for compression, parts in by_compression.items():
            shown = (seconds(parts[part]) for part in ("inflate", "sha_blob", "sha_tar", "create"))
            rows.append((f"`{layer}`, {compression}", *shown, seconds(bound(parts, result["cpus"])), seconds(parts["syncfs"])))
    return (f"The bound is the sum over {result['cpus']} processors, or the longest of the first three columns, whichever is "
            "more.\n\n" + table(("on", "decompress", "sha256 of blob", "sha256 of tar", "create", "bound", "one syncfs"), rows))


def _notes(result: Mapping[str, Any]) -> str:
    rows = []
    for name, each in result["contenders"].items():
        counted = {True: "not counted", False: "none"}[result["flushes"].get(name) is None]
        counts = result["flushes"].get(name) or {}
        rows.append((each["label"], f"**missing** ({each['missing']})" if each["missing"] else each["version"] or "?",
                     ", ".join(f"{n} × {call}" for call, n in counts.items()) or counted))
    marked = sum(run["marked"] for run in result["runs"])
    lines = [table(("contender", "version", "flushes for a layer of 300 files (strace)"), rows),
             (f"{result['rounds']} rounds of those that a target is about; at most {result['field_rounds']} of the others, which run "
             f"on gzip only. {marked} of {len(result['runs'])} runs were disturbed by more than 15 % foreign processor load, and "
             "counted all the same after being repeated.\n")]
    for layer, lines_of in result["equal"].items():
        lines.append(f"The tree of `{layer}` " + ("is the same as GNU tar's.\n" if not lines_of else
                                                  f"**differs from GNU tar's**: {'; '.join(lines_of[:5])}.\n"))
    lines += [f"{name} **failed**: {what}\n" for name, what in result["failed"].items()]
    return "\n".join(lines)


def _picture(result: Mapping[str, Any], pictures: Path) -> str:
    runs = by_round(result["runs"])
    compression = "gzip" if any(key[2] == "gzip" for key in runs) else next(iter(runs))[2]
    panels = []
    for layer in result["layers"]:
        bars = [picture.Bar(each["label"], list(values.values()), each["synced"], name.startswith("ours"))
                for name, each in result["contenders"].items()
                if (values := runs.get(("warm", layer, compression, name), {}))]
        parts = result["bounds"].get(layer, {}).get(compression)
        if bars:
            panels.append(picture.Panel(f"{layer} ({result['layers'][layer]['files']:,} files)", bars,
                                        bound(parts, result["cpus"]) if parts else None))
    try:
        picture.draw(panels, f"One layer, {compression}: wall seconds, median and range", pictures / "unpack.svg")
    except ImportError:
        return "No picture: matplotlib is not installed (`pip install 'layerstore[bench]'`).\n"
    return f"![Wall time of everybody on every layer, {compression}]({pictures.name}/unpack.svg)\n"
