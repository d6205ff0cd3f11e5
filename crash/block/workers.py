"""Which worker takes which job of ``block``; and the states of a recording that was kept."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator, Sequence

from crash.block import jobs as jobs_module
from crash.block.jobs import Job, Series, Settings
from crash.block.recording import Recording
from crash.disk.crew import gather
from crash.state import State


def run(jobs: Sequence[Job], settings: Settings, *, each: int, rounds: int | None, workers: int) -> Iterator[State]:
    """The states of *jobs*, in the order in which they are judged; *rounds* times through, None: without end."""
    turn = multiprocessing.get_context("fork").Value("q", 0)   # whoever is free takes the next job: btrfs takes longest

    def work(directory: str) -> Iterator[State]:
        while True:
            with turn.get_lock():
                number, turn.value = turn.value, turn.value + 1
            at, job = number // len(jobs), jobs[number % len(jobs)]
            if rounds is not None and at >= rounds:
                return
            yield from jobs_module.run(Job(job.fs, job.workload, at), settings, each, directory)

    yield from gather([work] * min(workers, len(jobs)), settings.work)


def again(settings: Settings, path: str, number: int | None, limit: int | None) -> Iterator[State]:
    """The states of a kept recording, or one of them, as they were."""
    def work(directory: str) -> Iterator[State]:
        series = Series(Recording.load(path), settings, directory)
        for at, cut in enumerate(series.different(limit or (number or 0) + 1 or 1)):
            if number is None or at == number:
                yield series.state(cut, at, series.judge(cut, at))

    yield from gather([work], settings.work)
