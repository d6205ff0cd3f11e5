"""Small things that many tests of the store need."""

import hashlib
import os
import signal

import imagemaker
import layerstore
from layerstore import TarDiffer
from layerstore.model import Descriptor

ABSENT = object()


def tar(spec):
    return imagemaker.make_tar(spec)


def differ(spec=None, *, keyed=False):
    """A differ of a small layer; *keyed* with a descriptor, so that it can be adopted."""
    data = tar(spec if spec is not None else {"hello": b"world\n"})
    expect = Descriptor("application/vnd.oci.image.layer.v1.tar", digest(data), len(data)) if keyed else None
    return TarDiffer(data, expect=expect)


def digest(data):
    return "sha256:" + hashlib.sha256(data).hexdigest()


def add(store, spec=None, **options):
    """Stage and apply a layer."""
    with store.stage(differ(spec)) as staged:
        return store.apply_staged_layer(staged, **options)


def put_layer(root, data, **options):
    """Store the tar *data* as a layer of the store at *root*; its ID."""
    with layerstore.open(root, **options) as store, store.stage(TarDiffer(data)) as staged:
        return store.apply_staged_layer(staged).id


def image(tmp_path, *, layers=3, name="image", tag="latest", compression=("gzip", "zstd", "none"), salt=""):
    """A small image of several layers, the last with a whiteout."""
    specs = [{f"layer{n}": f"{salt}{n}".encode(), "shared/file": f"from {n}{salt}".encode()} for n in range(layers)]
    if layers > 1:
        specs[-1]["layer0"] = imagemaker.Whiteout()
    made = imagemaker.Image([
        imagemaker.Layer(spec, compression=compression[n % len(compression)]) for n, spec in enumerate(specs)
    ])
    return made.write_oci(tmp_path / name, tag=tag)


def in_child(fn):
    """Run *fn* in a forked child; its exit status, negative for a signal."""
    from layerstore.testing import run_child

    return os.waitstatus_to_exitcode(run_child(fn))


def killed_at(point, when, fn, nth=1):
    """Run *fn* in a child that is killed there; fails unless it was."""
    from layerstore.testing import Passing, kill_at

    kill_at(Passing(point, when, nth), fn)


def failing_at(point, errno_name, *, when="before", nth=1):
    """A context in which the *nth* passing of a fault point raises an errno, once."""
    from contextlib import contextmanager

    from layerstore.system import faults

    @contextmanager
    def armed():
        left, fired = [nth], []

        def hook(name, moment):
            if (name, moment) == (point, when):
                left[0] -= 1
                if left[0] == 0:
                    fired.append(name)
                    faults.perform(errno_name, name)

        previous = faults.install(hook)
        try:
            yield fired
        finally:
            faults.install(previous)
        assert fired, f"{point} was not passed"

    return armed()


def observed(passed):
    """A context that appends to *passed* each fault point whose effect was done."""
    from contextlib import contextmanager

    from layerstore.system import faults

    @contextmanager
    def watching():
        def hook(name, when):
            if before is not None:
                before(name, when)
            if when == "after":
                passed.append(name)

        before = faults.install(None)
        faults.install(hook)
        try:
            yield passed
        finally:
            faults.install(before)

    return watching()


def tree_names(root, *parts):
    return sorted(os.listdir(os.path.join(root, *parts)))


def states(store):
    """The states of all trees, sorted."""
    with store._handle.read() as view:
        return sorted(row["state"] for _, row in view.scan("layers"))


def finished(store):
    """The rows of the trees that are finished and not applied: staged, or filled and not durable yet; by txid."""
    from layerstore.recovery import looking

    found = {}
    with store._handle.read() as view:
        rows = dict(view.scan("layers"))
    for txid, row in rows.items():
        left = looking.left_at(store._handle, txid) if row["state"] == "staging" else None
        if left is not None or row["state"] == "staged":
            found[txid] = {**row, "output": row["output"] if left is None else left["output"]}
    return found


SIGKILL = -signal.SIGKILL
__all__ = [name for name in globals() if not name.startswith("_")]
assert layerstore
