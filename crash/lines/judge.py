"""One trial: a verb interrupted at one point, and everything that must hold of handle, process and store afterwards.

In the trial's own process, in order: the exception came out; nothing of the process is leaked (descriptors, threads,
transactions); what the handle serves is what the ledger allows; a further verb and the same verb again succeed on the
same handle; so they do in another process meanwhile, which waits for nobody; the handle closes; the store opens in
the same process, and the oracle finds nothing. Whoever hangs is killed by an alarm, and that is a violation.
"""

from __future__ import annotations

import faulthandler
import os
import re
import signal
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import layerstore
from crash.beside import apart
from crash.content import TREES
from crash.lines import fresh
from crash.lines.points import Aim, Census
from crash.lines.verbs import Verb, probe
from layerstore.errors import InputError, LayerstoreError, PoisonedError
from layerstore.store import Store
from layerstore.testing.children import ChildDiedError, telling
from layerstore.testing.ledger import Expectation, Ledger, read_ledger
from layerstore.testing.oracle import compare, damages, examine, served

HANG_SECONDS = int(os.environ.get("LINES_HANG", "120"))  # nothing here waits for longer than a few seconds by right


@dataclass
class Report:
    """What became of a trial."""

    landed: bool = False
    raised: str = ""
    violations: list[str] = field(default_factory=list)
    redo: list[str] = field(default_factory=list)
    happened: bool | None = None
    poisoned: bool = False


class Trial:
    """A verb on the store at *root*, with what it asked for in the file *path*."""

    def __init__(self, verb: Verb, root: str, path: str) -> None:
        self.verb, self.root, self.path = verb, root, path
        self.ledger = Ledger.to_file(path)
        self.report = Report()
        self._store: Store | None = None

    def census(self) -> Census:
        """Run it undisturbed, and count what is passed."""
        census = Census()
        self._begin()
        with census.armed():
            self._run()
        self._store and self._store.close()
        return census

    def interrupt(self, aim: Aim) -> Report:
        """Run it with *aim* armed, and judge."""
        watched(HANG_SECONDS)
        self._begin()
        before = Resources.now()
        told: list[str] = []
        sys.unraisablehook = lambda raised: told.append(type(raised.exc_value).__name__)
        with aim.armed():
            caught = _caught(self._run)
        sys.unraisablehook = sys.__unraisablehook__
        self.report.landed = aim.landed
        if aim.landed:
            self.report.raised = caught if caught is not None else ""
            self._step("raised", lambda: self._raised(aim, caught, told))
            del caught
            self._after(before)
        return self.report

    def _begin(self) -> None:
        layerstore.open  # noqa: B018 - imports what is imported lazily, before anything is counted
        if self.verb.handle:
            self._store = layerstore.open(self.root)
        else:
            fresh.forget()

    def _run(self) -> None:
        if self._store is None:
            self._store = self.verb.closed(self.root)
        else:
            self.verb.first(self._store, self.ledger)

    # -- afterwards ----------------------------------------------------------------------------------------------

    def _after(self, before: Resources) -> None:
        self._step("look", self._look)
        if not self.verb.handle and self._store is not None:   # it opened after all
            self._store.close()
            self._store = None
        if self._store is None or self._store._handle.closed:
            before = before.without(os.path.realpath(self.root))
        self._step("leaked", lambda: self._leaked(before))
        store = self._store
        if store is not None and not store._handle.closed:
            self._step("served", lambda: self._served(store))
            self._step("further", lambda: self._further(store))
        self._step("beside", self._beside)
        if store is not None:
            self._step("close", store.close)
        self._step("oracle", self._oracle)

    def _step(self, what: str, do: Callable[[], object]) -> None:
        try:
            do()
        except Exception as error:
            self.report.violations.append(f"{what}: {type(error).__name__}: {error}")
            if os.environ.get("LINES_TRACE"):
                import traceback  # noqa: PLC0415

                traceback.print_exc()

    def _raised(self, aim: Aim, caught: str | None, told: list[str]) -> None:
        if caught is None:   # in a __del__, or a generator that is being let go of, Python only tells of it
            assert aim.error.__name__ in told, "nothing was raised: the interrupt was swallowed"
        elif caught.startswith("!") and not at_a_threads_very_beginning(aim, caught):
            raise AssertionError(f"it came out as {caught[1:]}")

    def _leaked(self, before: Resources) -> None:
        now = Resources.now()
        assert now.descriptors <= before.descriptors, f"descriptors stay open: {now.descriptors - before.descriptors}"
        assert not now.threads, f"threads stay alive: {now.threads}"
        if self._store is not None and not self._store._handle.closed:
            handle = self._store._handle
            assert not handle.journal._engine.busy, "a transaction, or the gate, stays open"

    def _served(self, store: Store) -> None:
        if self.report.raised == "PendingError":   # it is durable, and there after the next recovery
            return
        expect = self._expect()
        damaged = damages(store, content=True) if any(each.startswith("damage:") for each in expect.allowed) else {}
        found = compare(served(store) | damaged, expect)
        assert not found, "; ".join(found)

    def _further(self, store: Store) -> None:
        try:
            probe(store, self.ledger)
            self.verb.once_more(store, self.ledger)
        except PoisonedError:
            self.report.poisoned = True
            return
        assert store._handle.poison is None

    def _expect(self) -> Expectation:
        return apart(read_ledger(self.path))[0]

    def _look(self) -> None:
        with suppress(FileNotFoundError), open(self.path, "rb") as file:
            found = self.verb.look(self.root, list(file))
            assert not found, "; ".join(found)

    def _beside(self) -> None:
        """Another process, while the first still has the store open."""
        try:
            wrong = telling(self._other)
        except ChildDiedError as error:
            raise AssertionError(f"another process cannot do it: {error}") from error
        assert not wrong, f"in another process: {wrong}"

    def _other(self) -> str:
        watched(HANG_SECONDS // 2)
        try:
            self.verb.mend(self.root)
            with layerstore.open(self.root) as store:
                self.verb.once_more(store, self.ledger.shared())
                assert not store.recovery.deferred, f"deferred: {store.recovery.deferred}"
        except Exception as error:
            return f"{type(error).__name__}: {error}"
        return ""

    def _oracle(self) -> None:
        verdict = examine(self.root, expect=self._expect(), trees=TREES, again=self.verb.again)
        self.report.redo, self.report.happened = verdict.redo, verdict.happened
        assert not verdict.violations, "; ".join(verdict.violations[:4])


def watched(seconds: int) -> None:
    """Let this process say where it is, and die, if it has not ended by then."""
    faulthandler.register(signal.SIGALRM, chain=True)
    signal.alarm(seconds)


def at_a_threads_very_beginning(aim: Aim, caught: str) -> bool:
    """Before the first line of a thread's own function nothing can catch what is raised; it must be told of at least.

    (Python raises KeyboardInterrupt in the main thread only, and entering a ``try`` needs no memory.)
    """
    return not aim.in_main and aim.point.line == aim.point.first + 1 and caught.startswith("!IoError: the thread ")


def _caught(run: Callable[[], object], _seen: Any = None) -> str | None:
    """What came out of *run*: None, or a text, which begins with ``!`` if it is not the injected error's doing.

    The exception is let go of here: what it keeps alive (frames, and what they own) is not the product's to free.
    """
    try:
        run()
    except BaseException as error:
        text = type(error).__name__
        if not _carries(error):
            return f"!{text}: {error}"
        if isinstance(error, InputError):
            return f"!{text}, which blames the content: {error}"
        if isinstance(error, Exception) and not isinstance(error, LayerstoreError | MemoryError):
            return f"!{text}: {error}"
        return text
    return None


def _carries(error: BaseException | None) -> bool:
    seen: set[int] = set()
    todo = [error]
    while todo:
        each = todo.pop()
        if each is None or id(each) in seen:
            continue
        seen.add(id(each))
        if getattr(each, "injected", False):
            return True
        todo += [each.__cause__, each.__context__]
    return False


class Injected:
    """Marks what was raised by the rig."""

    injected = True


class InjectedInterrupt(Injected, KeyboardInterrupt):
    pass


class InjectedMemoryError(Injected, MemoryError):
    pass


@dataclass
class Resources:
    """What a process holds: descriptors by what they lead to, and the product's threads."""

    descriptors: Any
    threads: list[str]

    @classmethod
    def now(cls) -> Resources:
        from collections import Counter  # noqa: PLC0415

        found: Counter[str] = Counter()
        for fd in os.listdir("/proc/self/fd"):
            try:
                target = os.readlink(f"/proc/self/fd/{fd}")
            except OSError:
                continue
            found[re.sub(r"^/proc/\d+/fd$", "", target)] += 1
        found.pop("", None)
        threads = [t for t in threading.enumerate() if t.name.startswith("layerstore")]
        for each in threads:
            each.join(timeout=10)   # one that is about to end may do so
        threads = [t.name for t in threads if t.is_alive()]
        return cls(found, threads)

    def without(self, root: str) -> Resources:
        """The same before the store at *root* was opened. Others may be open: it is what the process began with."""
        kept = {k: n for k, n in self.descriptors.items() if k != root and not k.startswith(root + "/")}
        return Resources(type(self.descriptors)(kept), [])


__all__ = ["InjectedInterrupt", "InjectedMemoryError", "Report", "Trial"]
