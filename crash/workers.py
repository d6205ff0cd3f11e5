"""Jobs in forked workers, their results in order: for rigs whose states take a process each anyway."""

from __future__ import annotations

import multiprocessing
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from itertools import islice
from typing import Any, TypeVar

Job = TypeVar("Job")
Result = TypeVar("Result")


def in_order(fn: Callable[[Job], Result], jobs: Iterable[Job], *, workers: int = 2) -> Iterator[Result]:
    """``fn`` of each job, in the jobs' order. Jobs and results must pickle; ``fn`` is inherited by the fork.

    Closing the iterator waits for what is under way, and begins nothing more: no worker is left behind in a scratch
    directory that is being removed.
    """
    waiting = iter(jobs)
    fork = multiprocessing.get_context("fork")
    with ProcessPoolExecutor(workers, fork, initializer=_inherit, initargs=(fn,)) as pool:
        running: deque[Future[Result]] = deque()
        try:
            running.extend(pool.submit(_work, job) for job in islice(waiting, workers + 1))
            while running:
                yield running.popleft().result()
                running.extend(pool.submit(_work, job) for job in islice(waiting, 1))
        finally:
            pool.shutdown(cancel_futures=True)


_inherited: Callable[[Any], Any] | None = None


def _inherit(fn: Callable[[Any], Any]) -> None:
    global _inherited  # noqa: PLW0603 - one per worker process
    _inherited = fn


def _work(job: Any) -> Any:
    assert _inherited is not None
    return _inherited(job)
