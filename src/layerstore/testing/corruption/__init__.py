"""Corruption on purpose: seeded damage of every kind to a store at rest, and whether check and repair do what they promise.

::

    campaign = Campaign(root, source="oci:./image")
    for result in campaign.run(seeds=range(2000)):
        assert not result.violations, result

Each seed draws one damage: what (a bit, a length, a name, a mode …) and where (content, manifest, side file …). It is done
to the store, looked for at each depth, repaired, compared with what was there before, byte for byte, and undone from a copy
if it could not be repaired. What is compared is read by code that knows nothing of layerstore. For the command line:
``python -m layerstore.testing.corruption ROOT --seeds 2000 [--source SOURCE]``.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import random
import shutil
import stat
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

import layerstore
from layerstore.store import Store

__all__ = ["Campaign", "Result"]

Snapshot = dict[str, tuple[object, ...]]
_DEPTHS = ("structure", "metadata", "content")
_QUIET = frozenset({"suspects", "checked", "digests", "output"})   # advice: nothing that is promised rests on it


@dataclass(slots=True)
class Result:
    """What became of one damage. ``outcome``: ``mended``, ``quarantined``, ``left``, or ``no effect``."""

    seed: int
    kind: str
    path: str
    depth: str = ""
    outcome: str = ""
    violations: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        return f"seed {self.seed}: {self.kind} {self.path}: {self.outcome} {self.violations or ''}"


class Campaign:
    """A store that is damaged and mended, over and over.

    Args:
        root: a store that is sound and not in use. It is as it was between two seeds, and after the last.
        source: where good copies are, as for ``Store.repair``: what cannot be had in the store is tried from there; None:
            it must be quarantined.
        has_source: which layers (by ID) the source has; None: all.

    Durability: changes the store at *root*, and a copy of it beside it, which is removed again.

    """

    def __init__(self, root: str, *, source: str | None = None, has_source: Callable[[str], bool] | None = None) -> None:
        self.root, self.source = os.path.abspath(root), source
        self._has_source = has_source or (lambda _layer: source is not None)
        with layerstore.open(self.root) as store:
            store.checkpoint()
        self._copy = f"{self.root}.whole"
        self.tally: Counter[tuple[str, str, str]] = Counter()

    def run(self, seeds: Iterable[int]) -> Iterator[Result]:
        """Damage and mend the store once for each seed.

        Args:
            seeds: what is drawn; the same seed over the same store does the same damage.

        Returns:
            An iterator over the results, in order.

        Raises:
            AssertionError: the store was not sound to begin with.

        Durability: as for the class.

        """
        shutil.rmtree(self._copy, ignore_errors=True)
        _copy(self.root, self._copy)
        try:
            with layerstore.open(self.root) as store:
                assert store.check(content=True, workers=1).sound, "the store is not sound"
            for seed in seeds:
                result = self._one(seed)
                self.tally[result.kind, result.depth, result.outcome] += 1
                yield result
        finally:
            shutil.rmtree(self._copy, ignore_errors=True)

    def _one(self, seed: int) -> Result:
        draw = random.Random(seed)  # noqa: S311 - a draw that can be made again
        kind = draw.choice(sorted(KINDS))
        before = snapshot(os.path.join(self.root, "layers")) | snapshot(os.path.join(self.root, "images"))
        where, relative = self._place(draw, kind)
        result = Result(seed, kind, relative)
        if not where or not KINDS[kind](where, draw):
            result.outcome = "no effect"
            return result
        after = snapshot(os.path.join(self.root, "layers")) | snapshot(os.path.join(self.root, "images"))
        if after == before or (kind != "stray" and _is_quiet(relative) and relative.count("/") == 2):
            result.outcome = "no effect"
        try:
            self._judge(result, relative, before)
        except Exception as error:  # noqa: BLE001 - nothing may come out of a damaged store but what is typed and expected
            result.violations.append(f"it raised {error!r}")
        if result.outcome != "mended" or result.violations:
            self._restore()
        return result

    def _place(self, draw: random.Random, kind: str) -> tuple[str, str]:
        """A file, link or directory of the store's layers or images."""
        found = []
        for top in ("layers", "images"):
            for directory, names, files in os.walk(os.path.join(self.root, top)):
                names.sort()
                found += [os.path.join(directory, each) for each in sorted(files + [n for n in names if n != "diff"])]
        wanted = [each for each in found if _suits(kind, each, self.root)]
        where = draw.choice(wanted) if wanted else ""
        return where, os.path.relpath(where, self.root) if where else ""

    def _judge(self, result: Result, relative: str, before: Snapshot) -> None:
        owner = relative.split("/")[1]
        with layerstore.open(self.root) as store:
            if store.recovery.actions:
                result.depth = "recovery"   # what no checkpoint covers is redone at any open
            if result.outcome == "no effect":
                self._expect_sound(store, result)
                return
            for depth in _DEPTHS:
                found = store.check(depth=depth, workers=1).findings
                strangers = {each.subject for each in found if each.subject not in (owner, f"layers/{owner}")}
                strangers -= self._dependants(store, owner)
                if strangers:
                    result.violations.append(f"a false alarm at {depth}: {sorted(strangers)}")
                if found and not result.depth:
                    result.depth = depth
            if not result.depth:
                result.violations.append("not found at any depth")
                return
            self._repair(store, result, owner, before)

    def _repair(self, store: Store, result: Result, owner: str, before: Snapshot) -> None:
        report = store.repair()
        if report.quarantined or not report.clean:
            result.outcome = "quarantined" if report.quarantined else "left"
            self._kept(store, result, owner)
            if not self._has_source(owner):
                return
            report = store.repair(source=self.source)
            if report.quarantined or not report.clean:
                if not relative_to_no_source(result.path):
                    result.violations.append(f"the source has it, and it was not restored: {report}")
                return
        now = snapshot(os.path.join(self.root, "layers")) | snapshot(os.path.join(self.root, "images"))
        result.outcome = "mended"
        changed = {each for each in now.keys() | before.keys() if now.get(each) != before.get(each)}
        wrong = sorted(each for each in changed if not _is_quiet(each))
        if wrong:
            what = f"{wrong[:3]}: {before.get(wrong[0])} {now.get(wrong[0])}"
            result.violations.append(f"mended otherwise than it was: {what}")
        self._expect_sound(store, result)

    def _kept(self, store: Store, result: Result, owner: str) -> None:
        """What is quarantined is not served, and all else is."""
        for layer in store.layers():
            served = True
            try:
                store.layer(layer.id)
            except layerstore.errors.LayerDamagedError:
                served = False
            if served == (layer.id == owner) and result.outcome == "quarantined":
                result.violations.append(f"layer {layer.id[:12]} is {'' if served else 'not '}served")

    def _expect_sound(self, store: Store, result: Result) -> None:
        found = store.check(content=True, workers=1).findings
        if found:
            result.violations.append(f"a false alarm: {found[0]}")

    def _dependants(self, store: Store, owner: str) -> set[str]:
        return {image.id for image in store.images() if owner in image.layers}

    def _restore(self) -> None:
        shutil.rmtree(self.root)
        _copy(self._copy, self.root)


def relative_to_no_source(path: str) -> bool:
    """Whether what is damaged is of this store alone: no source has it."""
    return "/big-data" in path


def _is_quiet(path: str) -> bool:
    return os.path.basename(path) in _QUIET


def _suits(kind: str, path: str, root: str) -> bool:
    status = os.lstat(path)
    parts = os.path.relpath(path, root).split("/")
    if kind == "swap" and parts[-1] in _QUIET:
        return False
    if kind in ("flip", "truncate", "zero", "extend", "swap"):
        return stat.S_ISREG(status.st_mode) and (status.st_size > 0 or kind == "extend")
    if kind in ("mode", "owner", "time", "xattr"):   # of what is compared with the manifest
        return "diff" in parts and not stat.S_ISLNK(status.st_mode)
    if kind == "link":
        return stat.S_ISLNK(status.st_mode)
    return not (parts[0] == "layers" and len(parts) == 2)


def _rewrite(path: str, change: Callable[[bytes], bytes]) -> bool:
    status = os.stat(path)
    with open(path, "rb") as file:
        data = file.read()
    changed = change(data)
    with open(path, "wb") as file:
        file.write(changed)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    return changed != data


def _flip(path: str, draw: random.Random) -> bool:
    def flipped(data: bytes) -> bytes:
        bit = draw.randrange(8 * len(data))
        made = bytearray(data)
        made[bit // 8] ^= 1 << bit % 8
        return bytes(made)

    return _rewrite(path, flipped)


def _swap(path: str, draw: random.Random) -> bool:
    """With another file beside it."""
    directory = os.path.dirname(path)
    others = sorted(
        each for each in os.listdir(directory)
        if each != os.path.basename(path) and each not in _QUIET and os.path.isfile(os.path.join(directory, each))
        and not os.path.islink(os.path.join(directory, each))
    )
    if not others:
        return False
    other = os.path.join(directory, draw.choice(others))
    os.rename(path, f"{path}.swapping")
    os.rename(other, path)
    os.rename(f"{path}.swapping", other)
    return True


def _remove(path: str, _draw: random.Random) -> bool:
    if os.path.isdir(path) and not os.path.islink(path):
        shutil.rmtree(path)
    else:
        os.unlink(path)
    return True


def _stray(path: str, draw: random.Random) -> bool:
    directory = path if os.path.isdir(path) and not os.path.islink(path) else os.path.dirname(path)
    name = os.path.join(directory, f"stray-{draw.randrange(1000)}")
    if draw.random() < 0.5:
        os.mkdir(name)
    with open(os.path.join(name, "inside") if os.path.isdir(name) else name, "wb") as file:
        file.write(b"nobody's")
    return True


def _mode(path: str, draw: random.Random) -> bool:
    before = os.stat(path).st_mode
    os.chmod(path, stat.S_IMODE(before) ^ draw.choice([0o100, 0o022, 0o4000, 0o1000]))
    return os.stat(path).st_mode != before


def _owner(path: str, draw: random.Random) -> bool:
    before = os.stat(path)
    try:
        os.chown(path, before.st_uid + draw.randrange(1, 9), before.st_gid)
    except PermissionError:
        return False
    return True


def _time(path: str, draw: random.Random) -> bool:
    before = os.stat(path).st_mtime_ns
    os.utime(path, ns=(before, before + draw.choice([1, -10**9, 10**12])))
    return os.stat(path).st_mtime_ns != before


def _xattr(path: str, draw: random.Random) -> bool:
    try:
        os.setxattr(path, f"user.wrong{draw.randrange(3)}", b"1")
    except OSError:
        return False
    return True


def _link(path: str, draw: random.Random) -> bool:
    status = os.lstat(path)
    os.unlink(path)
    os.symlink(f"elsewhere-{draw.randrange(9)}", path)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns), follow_symlinks=False)
    return True


def _kind(path: str, _draw: random.Random) -> bool:
    """Something of another kind is in its place."""
    is_dir = os.path.isdir(path) and not os.path.islink(path)
    _remove(path, _draw)
    if is_dir:
        with open(path, "wb"):
            pass
    else:
        os.mkdir(path)
    return True


KINDS: dict[str, Callable[[str, random.Random], bool]] = {
    "flip": _flip, "truncate": lambda path, draw: _rewrite(path, lambda data: data[: draw.randrange(len(data))]),
    "zero": lambda path, _draw: _rewrite(path, lambda data: bytes(len(data))),
    "extend": lambda path, _draw: _rewrite(path, lambda data: data + b"more"),
    "swap": _swap, "remove": _remove, "stray": _stray, "mode": _mode, "owner": _owner, "time": _time, "xattr": _xattr,
    "link": _link, "kind": _kind,
}
"""The kinds of damage, by name; each says whether it changed anything."""


def snapshot(top: str) -> Snapshot:
    """All that is beneath *top*, read by nothing of the store's.

    Args:
        top: a directory.

    Returns:
        For each path what it is: type, mode, owner, time, size, content's digest or target, attributes.

    Durability: reads only.

    """
    found: Snapshot = {}
    for directory, names, files in os.walk(top):
        for each in (*names, *files):
            path = os.path.join(directory, each)
            found[path] = _facts(path, is_tree="/diff" in path)
    return found


def _facts(path: str, *, is_tree: bool) -> tuple[object, ...]:
    status = os.lstat(path)
    kind = stat.S_IFMT(status.st_mode)
    content: object = status.st_rdev
    if stat.S_ISREG(kind):
        with open(path, "rb") as file:
            content = hashlib.sha256(file.read()).hexdigest()
    elif stat.S_ISLNK(kind):
        content = os.readlink(path)
    if not is_tree:                      # beside the tree only content counts
        return (kind, content)
    attributes = sorted((n, os.getxattr(path, n, follow_symlinks=False)) for n in os.listxattr(path, follow_symlinks=False))
    if stat.S_ISCHR(kind) and status.st_rdev == 0:   # a whiteout: nothing else of it counts
        return (kind, content)
    return (kind, status.st_mode, status.st_uid, status.st_gid, status.st_mtime_ns, content, tuple(attributes))


def _copy(source: str, target: str) -> None:
    from layerstore.testing.explore import copy_store  # noqa: PLC0415

    copy_store(source, target)


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description="Damage a store on purpose; see whether check and repair keep their word.")
    parser.add_argument("root", help="a sound store that nobody uses; better a copy")
    parser.add_argument("--seeds", type=int, default=2000)
    parser.add_argument("--first", type=int, default=1)
    parser.add_argument("--source", help="where good copies are, as for 'layerstore pull'")
    given = parser.parse_args(arguments)
    campaign = Campaign(given.root, source=given.source)
    bad = 0
    for result in campaign.run(range(given.first, given.first + given.seeds)):
        if result.violations:
            bad += 1
            print(result, flush=True)  # noqa: T201
    for (kind, depth, outcome), number in sorted(campaign.tally.items()):
        print(f"{kind:10} {depth or '-':10} {outcome:12} {number}")  # noqa: T201
    print(f"{sum(campaign.tally.values())} damages, {bad} violations")  # noqa: T201
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
