"""The page ``docs/performance-store.md``, made from the figures alone: tables, how they were got, and what they miss."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from bench.store.neighbour import COUNTED_ON
from bench.store.worker import LONGEST

COMMIT_RATIO, COMMIT_BYTES, STARTUP_SECONDS = 1.3, 256 * 1024, 0.150

_HEAD = """# What a store costs as it grows, and while it is in use

Made by `python -m bench.store --json FILE --page docs/performance-store.md`; do not edit. Counts come first: they hold
on every machine. Times hold for this one: {machine}.
Everything is on private file systems, on loop devices with direct I/O, made anew for each group of measures; times of
flushes are those of a virtual disk, which are short.
"""


def page(found: dict[str, Any]) -> str:
    """The document."""
    parts = [_HEAD.format(machine=_machine(found["machine"])), _targets(found)]
    for name, make in (("commit", _commit), ("readers", _readers), ("recovery", _recovery),
                       ("neighbour", _neighbour), ("startup", _startup)):
        if name in found:
            parts.append(make(found[name]))
    return "\n".join(parts)


def _machine(machine: dict[str, Any]) -> str:
    peer = f", containers-storage {machine['peer']}" if machine["peer"] else ""
    return (f"{machine['cores']} cores of {machine['cpu']}, {machine['memory_gib']} GiB, Linux {machine['kernel']}, "
            f"Python {machine['python']}{peer}; load at the beginning {machine['load']:.1f}")


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [columns, ["---", *["---:"] * (len(columns) - 1)], *rows]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


def ms(seconds: float) -> str:
    return f"{1e3 * seconds:.3g}" if seconds < 0.0995 else f"{1e3 * seconds:,.0f}"


def kib(count: float) -> str:
    return f"{count / 1024:,.0f}"


def _verdict(met: bool) -> str:
    return "met" if met else "**missed**"


def _targets(found: dict[str, Any]) -> str:
    rows = []
    if "commit" in found:
        commit = found["commit"]
        small, large = commit["ratio_of"]
        most = max(each["journal_bytes"] + each["other_bytes"] for each in commit["ours"].values())
        rows.append([f"a commit among {large:,} layers / among {small:,}", f"≤ {COMMIT_RATIO}", f"{commit['ratio']:.2f}",
                     _verdict(commit["ratio"] <= COMMIT_RATIO)])
        rows.append(["bytes that a commit writes, at most", f"≤ {kib(COMMIT_BYTES)} KiB", f"{kib(most)} KiB",
                     _verdict(most <= COMMIT_BYTES)])
    if "readers" in found:
        waits = sum(len(each["traced"]["waits"]) for each in found["readers"]["beside"].values() if "traced" in each)
        rows.append(["a reader's waits for locks", "0", str(waits), _verdict(waits == 0)])
    if "startup" in found:
        for name, each in found["startup"].items():
            if name.startswith("layerstore"):
                rows.append([f"`{name}`", f"≤ {ms(STARTUP_SECONDS)} ms", f"{ms(each['p50'])} ms",
                             _verdict(each["p50"] <= STARTUP_SECONDS)])
    return "" if not rows else "## Targets\n\n" + table(["", "target", "measured", ""], rows)


def _flushes(each: dict[str, Any]) -> str:
    return ", ".join(f"{number:,g} {name}" if number < 1000 else f"{number:,} {name}" for name, number in each["flushes"].items())


def _commit(found: dict[str, Any]) -> str:
    text = """## One commit, against the number of layers in the store

Stage and apply of a layer of one small file. Bytes and flushes: strace, the average of some commits; an O_DSYNC write is
a flush, too. Ours is timed inside a process that has the store open; theirs as whole processes in the same rounds, and
once more less the time of `exists`, which starts, reads the records and ends. Their store has one real layer, whose record
is repeated under other IDs; that favours them.

"""
    ours = [[f"{int(size):,}", kib(each["journal_bytes"]), f"{each['other_bytes']:,.0f}", _flushes(each),
             ms(each["seconds"]["p50"]), ms(each["seconds"]["p99"]), str(each["seconds"]["n"])]
            for size, each in found["ours"].items()]
    text += table(["layers, ours", "journal KiB", "other bytes", "flushes", "median ms", "p99 ms", "n"], ours)
    theirs = [[f"{int(size):,}", kib(each["other_bytes"]), _flushes(each), ms(each["import-layer"]["p50"]),
               ms(each["import-layer less exists"]), ms(each["create-layer"]["p50"]), ms(each["create-layer less exists"]),
               str(each["exists"]["n"])] for size, each in found["peer"].items()]
    if theirs:
        text += "\n" + table(["layers, containers-storage", "KiB written", "flushes", "import-layer ms", "less exists",
                              "create-layer ms", "less exists", "n"], theirs)
    return text


def _readers(found: dict[str, Any]) -> str:
    text = f"""## Readers beside writers

A store of {found['layers']:,} layers; the writers stage and apply without a pause. Waits for locks: strace of the reader,
in runs of their own; a wait is a flock that may block or is refused, an fcntl lock that may block, a futex that waits
for more than a millisecond. Opening the store is not among it. Where processes outnumber cores a reader also waits for a
core: the last rows show how much, without any lock.

"""
    traced = [(name, each["traced"]) for name, each in found["beside"].items() if "traced" in each]
    text += table(["beside", "rounds traced", "flocks", "futexes", "waits", "commits meanwhile"],
                  [[name, str(each["rounds"]), str(each["flocks"]), str(each["futexes"]), str(len(each["waits"])),
                    str(each["commits"])] for name, each in traced])
    rows = [[way, name, ms(each["ways"][way]["p50"]), ms(each["ways"][way]["p99"]), ms(each["ways"][way]["max"]),
             str(each["ways"][way]["n"])]
            for way in next(iter(found["beside"].values()))["ways"] for name, each in found["beside"].items()]
    return text + "\n" + table(["", "beside", "median ms", "p99 ms", "max ms", "n"], rows)


def _recovery(found: dict[str, Any]) -> str:
    text = """## The next open after kills

In flight: trees that were being staged, full and unsynced, which recovery removes; or one batch of layers, promised and none
of them moved yet, which recovery finishes. `layerstore.open` in a fresh process, without imports; median ms (greatest).

"""
    counts = list(next(iter(next(iter(found.values())).values())))
    rows = [[f"{kind} killed, of {int(size):,} layers", *[f"{ms(each[n]['p50'])} ({ms(each[n]['max'])})" for n in counts]]
            for kind, sizes in found.items() for size, each in sizes.items()]
    return text + table(["in flight:", *counts], rows)


def _neighbour(found: dict[str, Any]) -> str:
    text = f"""## A neighbour's fdatasync on the same disk

The neighbour appends 4 KiB and calls fdatasync every 10 ms. Beside it a layer of {found['files']:,} small files is unpacked,
by one load at a time. Only what it began during the load counts: what the unsynced load leaves to the kernel comes later
and is in no figure. Calls that could not begin in time, because one before them took longer than 10 ms, count with the rest
of that wait: else a long wait would be one sample. The load that fsyncs each file is stopped after {LONGEST:.0f} seconds, and its
time is what all the files would have taken.

"""
    for kind, loads in found["on"].items():
        rows = [[name, _flushes(each) or "–", str(each["neighbour"]["n"]), ms(each["neighbour"]["p50"]), ms(each["neighbour"]["p99"]),
                 ms(each["neighbour"]["max"]), ms(each["load"]["p50"])] for name, each in loads.items()]
        text += table([f"{kind}: beside", f"its flushes, for {found['files'] // COUNTED_ON:,} files", "n", "median ms", "p99 ms", "max ms", "the load takes, ms"], rows) + "\n"
    return text.rstrip("\n") + "\n"


def _startup(found: dict[str, Any]) -> str:
    return "## The command line\n\nWhole processes, bytecode cached.\n\n" + table(
        ["", "median ms", "p99 ms", "n"],
        [[f"`{name}`", ms(each["p50"]), ms(each["p99"]), str(each["n"])] for name, each in found.items()])
