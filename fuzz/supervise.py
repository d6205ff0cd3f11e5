"""Runs the engine in processes of its own and counts what they execute. Nothing here knows what a target does.

Executions are those of new inputs: what the engine replays of the corpus when it begins is not counted. Of an engine
that dies without a last word the count is the last one it told, so never too many.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from fuzz import scratch

_INITED = re.compile(r"#(\d+)\s+INITED")
_PROGRESS = re.compile(r"#(\d+)\s")
_FINAL = re.compile(r"stat::number_of_executed_units:\s*(\d+)")
LONG = 16_384                            # bytes of the longest inputs there are
_SPARE = 100                             # runs: the engine also counts an empty input, and seeds that are new
_ENVIRONMENT = {
    # an allocation of some megabytes for every input is reused rather than given back and faulted in again
    "MALLOC_MMAP_THRESHOLD_": str(1 << 30), "MALLOC_TRIM_THRESHOLD_": str(1 << 30), "PYTHONHASHSEED": "0",
}


@dataclass
class Ran:
    """What a run came to: executions of all workers, seconds of each, whether anything was found, or it was stopped."""

    executions: int
    seconds: float
    failed: bool
    stopped: bool = False


def run(name: str, *, seconds: int, runs: int, workers: int, out: str) -> Ran:
    """Run the target *name*, an eighth of the time or runs with long inputs; *runs* -1: as many as there is time for.

    When one worker finds something, or we are told to stop, the others stop too.
    """
    many, few = runs - runs // 8, runs // 8
    ran = _part(name, seconds - seconds // 8, many if runs > 0 else -1, workers, out)
    if ran.failed or ran.stopped or not (seconds // 8 and few):
        return ran
    more = _part(name, seconds // 8, few if runs > 0 else -1, workers, out, f"-max_len={LONG}")
    return Ran(ran.executions + more.executions, ran.seconds + more.seconds, more.failed, more.stopped)


def _part(name: str, seconds: int, runs: int, workers: int, out: str, *more: str) -> Ran:
    began = time.monotonic()
    replayed = _inputs(os.path.join(out, name)) if runs > 0 else 0
    with tempfile.TemporaryDirectory(prefix="layerstore-fuzz-", dir=scratch.BASE) as base:
        environment = {**os.environ, **_ENVIRONMENT, "LAYERSTORE_FUZZ_SCRATCH": base}
        options = (f"-max_total_time={seconds}", f"-runs={runs + replayed}", *more)
        engines = [_Engine(name, out, *options, environment=environment) for _ in range(workers)]
        stopped = _wait(engines)
    failed = any(each.failed() for each in engines)
    return Ran(sum(each.executions() for each in engines), time.monotonic() - began, failed, stopped)


def _inputs(corpus: str) -> int:
    """How many the engine replays at first, and counts among its runs; the seeds are among them after the first time."""
    return len(os.listdir(corpus)) + _SPARE if os.path.isdir(corpus) else _SPARE


def _wait(engines: Sequence[_Engine]) -> bool:
    """Until all have ended; whether we were told to stop them."""
    stopped = threading.Event()

    def stop(_number: int, _frame: object) -> None:
        stopped.set()
        for each in engines:
            each.stop()

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        while any(each.runs() for each in engines):
            if any(each.failed() for each in engines):
                for each in engines:
                    each.stop()
            time.sleep(0.2)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return stopped.is_set()


class _Engine:
    def __init__(self, name: str, out: str, *options: str, environment: Mapping[str, str]) -> None:
        self._lines: list[str] = []
        self._told = Told()
        self._stopped = False
        self._process = subprocess.Popen(
            [sys.executable, "-m", "fuzz.engine", name, out, *options], stderr=subprocess.PIPE, stdout=subprocess.DEVNULL,
            text=True, errors="replace", env=environment, start_new_session=True,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stderr is not None
        for line in self._process.stderr:
            self._told.line(line)
            self._lines = [*self._lines[-60:], line]
        if self._process.wait() > 0 and not self._stopped:   # what it died of, for who watches
            sys.stderr.write("".join(self._lines))

    def runs(self) -> bool:
        return self._reader.is_alive()

    def failed(self) -> bool:
        return self._process.poll() not in (None, 0) and not self._stopped

    def stop(self) -> None:
        if self._process.poll() is None:
            self._stopped = True
            self._process.send_signal(signal.SIGINT)   # it says its last word

    def executions(self) -> int:
        return self._told.executions


class Told:
    """The count of executions that an engine's lines tell."""

    def __init__(self) -> None:
        self._replayed: int | None = None
        self._last = 0

    def line(self, line: str) -> None:
        told = _FINAL.match(line) or _PROGRESS.match(line)
        if told:
            self._last = max(self._last, int(told[1]))
        if (inited := _INITED.match(line)) is not None:
            self._replayed = int(inited[1])

    @property
    def executions(self) -> int:
        return 0 if self._replayed is None else self._last - self._replayed
