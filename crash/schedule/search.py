"""Which schedules to run: all within a preemption bound, a kill at each step of some, then seeded random ones."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass

from crash.schedule.controller import Chooser, Run, Step

TRIES = 3        # of a schedule that could not be run as it was found: a thread that was slow then may be quick now


class OtherScheduleError(AssertionError):
    """A process that was to go on cannot: the choices are another schedule's."""


@dataclass(frozen=True)
class Plan:
    """A schedule to run: the choices to begin with, then go on with whoever runs; or *seed* for random ones."""

    choices: tuple[int, ...] = ()
    kill: int | None = None
    seed: str | None = None

    def chooser(self) -> Chooser:
        drawn = random.Random(self.seed) if self.seed is not None else None

        def choose(step: int, enabled: tuple[int, ...], current: int | None) -> int:
            if step < len(self.choices):
                if self.choices[step] not in enabled:
                    raise OtherScheduleError(f"step {step}: {self.choices[step]} cannot go on; the schedule is another's")
                return self.choices[step]
            if drawn is not None and drawn.random() < _SWITCH:
                return drawn.choice(enabled)
            return current if current is not None else enabled[0]

        return choose


_SWITCH = 0.15   # how often a random schedule looks for somebody else to go on with
Execute = Callable[[Plan], Run]


def bounded(execute: Execute, bound: int, *, part: int = 0, parts: int = 1) -> Iterator[tuple[Plan, Run]]:
    """Depth first, every schedule with at most *bound* preemptions. *part* of *parts*: a share of them."""
    root = execute(Plan())
    if part == 0:
        yield Plan(), root
    stack = list(_alternatives(root, 0, bound))[part::parts]
    while stack:
        plan = Plan(stack.pop())
        run = _executed(execute, plan)
        yield plan, run
        stack += _alternatives(run, len(plan.choices), bound)


def _executed(execute: Execute, plan: Plan) -> Run:
    """The run of *plan*, which another run has led to; OtherScheduleError if it cannot be had in several tries."""
    for _ in range(TRIES - 1):
        with suppress(OtherScheduleError):
            return execute(plan)
    return execute(plan)


def _alternatives(run: Run, begin: int, bound: int) -> Iterator[tuple[int, ...]]:
    spent = 0
    for number, step in enumerate(run.steps):
        if number >= begin:
            for other in step.enabled:
                if other != step.chosen and spent + _costs(step, other) <= bound:
                    yield (*run.choices[:number], other)
        spent += step.preempts


def _costs(step: Step, chosen: int) -> int:
    return int(step.current is not None and chosen != step.current)


def kills(
    execute: Execute, beginnings: Sequence[tuple[int, ...]], *, part: int = 0, parts: int = 1,
) -> Iterator[tuple[Plan, Run]]:
    """One process killed at each step of a schedule; the others go on."""
    for choices in beginnings:
        length = len(_executed(execute, Plan(choices)).steps)
        for step in range(part, length, parts):
            plan = Plan(choices, kill=step)
            yield plan, _executed(execute, plan)


def drawn(execute: Execute, seed: str, number: int | None, *, part: int = 0, parts: int = 1) -> Iterator[tuple[Plan, Run]]:
    """Random schedules, every second one with a kill. *number* None: without end."""
    n = part
    while number is None or n < number:
        plan = Plan(seed=f"{seed} {n}")
        run = execute(plan)
        yield plan, run
        if n % 2:
            step = random.Random(f"{seed} {n} kill").randrange(len(run.steps))
            again = Plan(seed=plan.seed, kill=step)
            yield again, execute(again)
        n += parts


def written(choices: Sequence[int]) -> str:
    """A list of choices as text: ``0x12,1x3`` is twelve steps of process 0, then three of 1."""
    parts: list[list[int]] = []
    for each in choices:
        if parts and parts[-1][0] == each:
            parts[-1][1] += 1
        else:
            parts.append([each, 1])
    return ",".join(f"{who}x{n}" for who, n in parts)


def read(text: str) -> tuple[int, ...]:
    """What ``written`` wrote."""
    choices: list[int] = []
    for part in text.split(","):
        who, n = part.split("x")
        choices += [int(who)] * int(n)
    return tuple(choices)
