"""A store whose owner died in the middle of several things at once: what an opening has to recover.

Each thing is done by a thread that is parked for ever at a fault point; then the process kills itself.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable

import layerstore
from crash import workloads as w
from crash.content import Content, content
from layerstore import PullOptions
from layerstore.store import Store
from layerstore.system import faults
from layerstore.testing.children import run_child
from layerstore.testing.ledger import Facts, Ledger, layer, name

_PATIENCE_SECONDS = 120
_X1, _X2, _X3, _X4, _X5 = (content(f"x{n}") for n in range(1, 6))


def crashed(root: str, ledger: Ledger, images: w.Images) -> None:
    """Make it at *root*. Everything under way was asked for, and never answered."""
    w._with_doomed(root, ledger)
    status = run_child(lambda: _die(root, ledger.shared(), images))
    assert os.WIFSIGNALED(status), f"the owner did not die, but ended with {status:#x}"
    # what the power may take of a layer that is committed above the mark
    os.unlink(os.path.join(root, "layers", w.BASE_ID, "layer"))


def _die(root: str, ledger: Ledger, images: w.Images) -> None:
    parked = threading.Semaphore(0)

    def hook(point: str, when: str) -> None:
        if when == "before" and threading.current_thread().name == point:
            parked.release()
            threading.Event().wait()

    with layerstore.open(root) as store:
        faults.install(hook)
        jobs = _jobs(store, images)
        for point, (do, facts) in jobs.items():
            threading.Thread(target=_do, args=(ledger.shared(), do, facts), name=point, daemon=True).start()
            assert parked.acquire(timeout=_PATIENCE_SECONDS), f"nobody came to {point}"
        os.kill(os.getpid(), signal.SIGKILL)


def _do(ledger: Ledger, do: Callable[[], object], facts: list[Facts]) -> None:
    with ledger.asking(*facts):
        do()


def _jobs(store: Store, images: w.Images) -> dict[str, tuple[Callable[[], object], list[Facts]]]:
    """By the fault point where each is parked."""
    def apply(what: Content, letter: str, **options: object) -> None:
        store.apply_staged_layer(w.stage(store, what), id=letter * 64, **options)  # type: ignore[arg-type]

    first = images.second
    return {
        "stage.txid": (lambda: w.stage(store, _X1), []),                                   # a tree without a row
        "stage.output": (lambda: w.stage(store, _X2), []),                                 # being staged
        "stage.sync": (lambda: apply(_X5, "5"), [layer("5" * 64, _X5.diff_id)]),           # filled
        "apply.big-data.sync": (lambda: apply(_X3, "3", big_data={"k": b"v"}),     # creating
                                [layer("3" * 64, _X3.diff_id)]),
        "publish.rename": (lambda: apply(_X4, "4", names=["four"]),                # promised, still staged
                           [layer("4" * 64, _X4.diff_id), name("four", "layer", "4" * 64)]),
        "publish.image-file.write": (                                              # promised, in place
            lambda: store.pull(first.reference, names=["left"], options=PullOptions(workers=1)),
            w.facts_of(first, "left")),
        "delete.rename": (lambda: store.delete_layer(w.DOOMED_ID),
                          [layer(w.DOOMED_ID, None), name("doomed", "layer", None)]),
    }
