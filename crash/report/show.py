"""``python -m crash show DIR RIG N``: one explored state in full, and, if asked, made again."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from itertools import islice

from crash.report.places import story
from crash.state import State, read


def show(directory: str, rig: str, number: int, *, again: bool = False) -> int:
    """Print the state on line *number* (from 1) of *rig*'s lines; with *again*, run its command; the exit status."""
    try:
        state = next(islice(read(os.path.join(directory, f"{rig}.jsonl")), number - 1, None), None)
    except FileNotFoundError:
        state = None
    if state is None:
        print(f"{directory} has no state {number} of {rig}", file=sys.stderr)
        return 2
    for line in told(state, number):
        print(line)
    if not again:
        return 0
    command = shlex.split(state.reproduce)
    if command[:1] == ["python"]:
        command[0] = sys.executable
    print(f"\n$ {shlex.join(command)}", flush=True)
    return subprocess.run(command, check=False).returncode


def told(state: State, number: int) -> list[str]:
    """The state in lines."""
    lines = [f"{state.rig} {number}: {state.workload}" + (f" on {state.fs}" if state.fs else ""),
             f"  fault      {state.fault}", f"  outcome    {state.outcome}",
             f"  recovery   {'had work to do' if state.redo else 'found nothing to do'}"]
    lines += [f"  seed       {state.seed}"] if state.seed is not None else []
    lines += [f"  {key:10} {value}" for key, value in state.details.items() if key != "timeline"]
    lines += [f"  VIOLATION  {each}" for each in state.violations]
    lines += [f"  {entry['kind']:>10} | {entry['text']}" for entry in story(state)]
    return [*lines, f"  again      {state.reproduce}"]
