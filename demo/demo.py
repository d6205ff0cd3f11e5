"""The demo: real content in, SIGKILL at named points, recovery, and every file compared. Exits 1 if anything is off.

Packs this machine's own Python installation, thousands of real files, into an OCI image of three layers (gzip, zstd
and plain); pulls it with the command line, killing the pull at named points of its write order; shows the journal
before and after each recovery; mounts the image (or extracts it, without the privilege), and compares every file.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "tests"))   # the image maker that the tests use, too

import imagemaker  # noqa: E402

console = Console(highlight=False, width=None if sys.stdout.isatty() else 116)

# (fault point, before or after the effect, how-manyeth passing, what it means, must recovery have an image?)
KILLS = [
    ("unpack.entry", "before", 400, "half-way through unpacking", False),
    ("stage.output", "after", 1, "one layer is finished, and nothing synced", False),
    ("txn.claim", "before", 1, "all is staged, nothing claimed", False),
    ("txn.claim", "after", 1, "the commit point has passed", True),
    ("publish.rename", "after", 2, "two of three trees are in place", True),
    ("txn.commit", "before", 1, "all in place, not yet visible", True),
]


class Source:
    """The Python installation as (archive name, path on disk) pairs, in three layers."""

    def __init__(self) -> None:
        stdlib = Path(sysconfig.get_path("stdlib")).resolve()
        binary = Path(sys.executable).resolve()
        first, second = [], []
        for path in sorted(stdlib.rglob("*")):
            inside = path.relative_to(stdlib)
            if inside.parts[0] in ("site-packages", "dist-packages", "test") or not (path.is_symlink() or path.exists()):
                continue
            mode = path.lstat().st_mode
            if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode) or stat.S_ISLNK(mode)):
                continue
            heavy = inside.parts[0] in ("lib-dynload", "encodings", "idlelib") or inside.parts[0] > "m"
            (second if heavy else first).append((f"python/{inside}", path))
        third = [("bin/python3", binary), ("python/os.py", stdlib / "os.py")]
        packages = Path(sysconfig.get_path("purelib")).resolve()
        third += [(f"site-packages/{path.relative_to(packages)}", path) for path in sorted(packages.rglob("*"))]
        self.layers = [first, second, third]
        self.expected: dict[str, Path] = {name: path for layer in self.layers for name, path in layer}

    @property
    def files(self) -> int:
        return len(self.expected)


def make_image(source: Source, work: Path) -> tuple[str, dict[str, int]]:
    layers, sizes = [], {}
    for number, (entries, compression) in enumerate(zip(source.layers, ("gzip", "zstd", "none"), strict=True)):
        path = work / f"layer-{number}.tar"
        with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as archive:
            if number == 2:   # a whiteout, so that the image is not just a pile of files
                archive.addfile(tarfile.TarInfo("python/.wh.this.py"))
            for name, real in entries:
                info = archive.gettarinfo(real, name)
                info.uid, info.gid, info.uname, info.gname = os.geteuid(), os.getegid(), "", ""
                info.mtime = real.lstat().st_mtime_ns // 1_000_000_000
                if info.islnk():
                    info.type, info.linkname = tarfile.REGTYPE, ""
                    info.size = real.stat().st_size
                with (open(real, "rb") if info.isreg() else open(os.devnull, "rb")) as data:
                    archive.addfile(info, data if info.isreg() else None)
        layers.append(imagemaker.Layer(tar=path, compression=compression, level=1 if compression == "gzip" else None))
        sizes[compression] = path.stat().st_size
    source.expected.pop("python/this.py", None)
    made = imagemaker.Image(layers).write_oci(work / "image", tag="demo")
    for number in range(3):
        (work / f"layer-{number}.tar").unlink()
    return made.reference, {layer.digest: layer.size for layer in made.layers}


def cli(root: Path, *arguments: str, fault: str = "") -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "LAYERSTORE_FAULT": fault} if fault else dict(os.environ)
    command = [sys.executable, "-m", "layerstore", "--root", str(root), *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def must(result: subprocess.CompletedProcess[str]) -> str:
    if result.returncode != 0:
        console.print(f"[red]failed[/red] ({result.returncode}): {' '.join(map(str, result.args[3:]))}\n{result.stderr}")
        sys.exit(1)
    return result.stdout


def journal_tail(root: Path, count: int) -> None:
    records = json.loads(must(cli(root, "journal", "log", "--tail", str(count), "--json", str(root))))
    for record in records:
        kind, _, key = record["entity"].partition(":")
        what = record["payload"].get("layer_id", key)[:12] if kind == "layer" else key[:12]
        arrow = f"{record['from'] or '·':>10} → {record['to']:<10}" if record["to"] else f"{'':>10}   {'':<10}"
        console.print(f"      {record['seq']:>4}  {kind:<8}{what:<14}{record['trigger']:<11}[dim]{arrow}[/dim]")


def kill_and_recover(work: Path, reference: str, kill: tuple[str, str, int, str, bool]) -> dict[str, object]:
    point, when, nth, meaning, visible = kill
    root = work / f"store-{point}-{when}"
    console.print(f"\n[bold]SIGKILL {when} {point}[/bold] (passing {nth}): {meaning}")
    killed = cli(root, "pull", reference, "--name", "demo", "--workers", "1", "-q", fault=f"{point}:{when}:kill:{nth}")
    if killed.returncode != -signal.SIGKILL:
        console.print(f"[red]the kill did not land[/red]: exit status {killed.returncode}\n{killed.stderr}")
        sys.exit(1)
    console.print("   the journal's tail as the kill left it:")
    journal_tail(root, 4)
    report = json.loads(must(cli(root, "recover", "--json")))
    for action in report["actions"]:
        about = (action["layer_id"] or action["key"])[:12]
        console.print(f"   recovery: [cyan]{action['do']}[/cyan] {about} – {action['why']}")
    console.print("   and after recovery:")
    journal_tail(root, 3)
    found = json.loads(must(cli(root, "images", "--json")))
    if bool(found) != visible:
        console.print(f"[red]after recovery the image is {'there' if found else 'not there'}[/red]")
        sys.exit(1)
    again = must(cli(root, "pull", reference, "--name", "demo", "--workers", "1"))
    if cli(root, "check", "--content").returncode != 0:
        console.print("[red]check --content found damage[/red]")
        sys.exit(1)
    pulled = cli(root, "pull", reference, "--name", "demo", "--workers", "1").stderr
    del again
    shutil.rmtree(root)
    return {"point": f"{when} {point}", "meaning": meaning, "actions": report["actions"], "visible": bool(found),
            "ms": report["seconds"] * 1000, "pulled": pulled}


def compare(source: Source, tree: Path) -> list[str]:
    """Every file of the image against the file it was made of."""
    wrong, seen = [], set()
    for base, directories, names in os.walk(tree):
        for name in [*directories, *names]:
            path = Path(base, name)
            inside = str(path.relative_to(tree))
            seen.add(inside)
            real = source.expected.get(inside)
            if real is None:
                if inside not in ("python", "bin", "site-packages"):
                    wrong.append(f"{inside} is too much")
                continue
            a, b = path.lstat(), real.lstat()
            if stat.S_IFMT(a.st_mode) != stat.S_IFMT(b.st_mode):
                wrong.append(f"{inside}: type")
            elif stat.S_ISLNK(a.st_mode):
                wrong += [f"{inside}: link"] if os.readlink(path) != os.readlink(real) else []
            else:
                wrong += [f"{inside}: mode"] if stat.S_IMODE(a.st_mode) != stat.S_IMODE(b.st_mode) else []
                wrong += [f"{inside}: mtime"] if int(a.st_mtime) != int(b.st_mtime) else []
                if stat.S_ISREG(a.st_mode) and path.read_bytes() != real.read_bytes():
                    wrong.append(f"{inside}: content")
    wrong += [f"{name} is missing" for name in sorted(set(source.expected) - seen)]
    return wrong


def look_at_it(source: Source, root: Path, work: Path) -> tuple[str, list[str]]:
    target = work / "mounted"
    target.mkdir()
    mounted = cli(root, "mount", "demo", str(target))
    if mounted.returncode == 0:
        try:
            return "mounted by overlayfs", compare(source, target)
        finally:
            must(cli(root, "unmount", str(target)))
    console.print(f"   [dim]{mounted.stderr.strip()}[/dim]")
    must(cli(root, "extract", "demo", str(work / "extracted")))
    return "extracted", compare(source, work / "extracted")


def _table(outcomes: list[dict[str, object]]) -> Table:
    table = Table(title="SIGKILL, then open again")
    for column in ("killed", "which is", "recovery did", "image", "recovery took"):
        table.add_column(column, justify="right" if column.endswith("took") else "left")
    for outcome in outcomes:
        did = sorted({a["do"] for a in outcome["actions"]}) or ["nothing to do"]
        table.add_row(str(outcome["point"]), str(outcome["meaning"]), ", ".join(did),
                      "[green]whole[/green]" if outcome["visible"] else "absent", f"{outcome['ms']:.1f} ms")
    return table


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dir", help="where to work (default: a temporary directory)")
    parser.add_argument("--save", type=Path, help="keep the summary in this file, too")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="layerstore-demo-", dir=options.dir) as scratch:
        return run(Path(scratch), options.save)


def run(work: Path, save: Path | None) -> int:
    begun = time.perf_counter()
    source = Source()
    console.print(f"[bold]packing[/bold] {source.files} entries of Python {sys.version.split()[0]} into an OCI image …")
    reference, sizes = make_image(source, work)
    console.print(f"   three layers, gzip + zstd + plain: {sum(sizes.values()) / 1e6:.1f} MB of blobs")
    outcomes = [kill_and_recover(work, reference, kill) for kill in KILLS]

    console.print("\n[bold]an undisturbed pull[/bold]")
    root, started = work / "store", time.perf_counter()
    noted = cli(root, "pull", reference, "--name", "demo")
    must(noted)
    seconds = time.perf_counter() - started
    if "unproven" in noted.stderr:
        console.print(f"   [yellow]{noted.stderr.strip().splitlines()[0]}[/yellow]")
    how, wrong = look_at_it(source, root, work)
    for line in wrong[:20]:
        console.print(f"   [red]{line}[/red]")

    summary = [
        _table(outcomes),
        (f"pulled {sum(sizes.values()) / 1e6:.1f} MB durably in {seconds:.2f} s; {how}: "
         f"{source.files} entries compared, {len(wrong)} differ"),
        f"[bold green]all well[/bold green] in {time.perf_counter() - begun:.0f} s"
        if not wrong else "[bold red]something differs[/bold red]",
    ]
    console.print("", *summary, sep="\n")
    if save is not None:
        with save.open("w") as file:
            Console(file=file, highlight=False, width=116).print(*summary, sep="\n")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
