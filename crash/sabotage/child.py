"""Inside the process that has the patched copy: prove that it has, run one rig or some tests, say what was seen.

    python -m crash.sabotage.child COPY RESULT rig NAME [THE RIG'S OPTIONS]
    python -m crash.sabotage.child COPY RESULT pytest [PYTEST'S ARGUMENTS]

Writes ``RESULT`` as JSON: ``states``, ``caught`` (None, or what was seen first and how to see it again), and ``failed``
(None, or why a rig came to no end): that is no word on the mistake.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import shlex
import sys
import tempfile
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from crash.state import State

WRONG_COPY, WRONG_WAY = 77, 78


def main(argv: list[str]) -> int:
    copy, result, kind, *rest = argv
    prove(copy)
    seen = run_rig(rest) if kind == "rig" else run_tests(rest)
    with open(result, "w", encoding="utf-8") as file:
        json.dump(seen, file)
    return 1 if seen["caught"] or seen["failed"] else 0


def prove(copy: str) -> None:
    """Both packages must be the copy's: else the mistake is not planted, and nothing was shown."""
    import layerjournal  # noqa: PLC0415
    import layerstore  # noqa: PLC0415

    for module in (layerstore, layerjournal):
        if not os.path.realpath(str(module.__file__)).startswith(os.path.realpath(copy) + os.sep):
            _refuse(WRONG_COPY, f"{module.__file__} is not in {copy}")


def _refuse(status: int, why: str) -> None:
    print(why, file=sys.stderr)
    sys.stderr.flush()
    os._exit(status)


def run_rig(argv: list[str]) -> dict[str, Any]:
    """Take the rig's states until one has a violation. A rig that raises has not noticed: a full disk or a missing tool
    looks just so.
    """
    from crash.__main__ import RIGS, common  # noqa: PLC0415

    rig, *rest = argv
    if rig not in RIGS:
        _refuse(WRONG_WAY, f"there is no rig {rig!r}")
    module = importlib.import_module(RIGS[rig])
    parser = argparse.ArgumentParser()
    common(parser)
    getattr(module, "arguments", lambda _parser: None)(parser)
    options = parser.parse_args(rest)
    count, caught, failed = 0, None, None
    with tempfile.TemporaryDirectory(dir=options.work) as work:
        options.work = work
        try:
            for state in module.states(options):
                count += 1
                if state.violations:
                    caught = {"what": f"{state.workload} {state.fault}: {state.violations[0]}",
                              "again": again(rig, state.reproduce) or narrowed(rig, rest, state)}
                if caught or count == options.states:
                    break
        except Exception as error:
            failed = repr(error)
    return {"states": count, "caught": caught, "failed": failed}


def again(rig: str, command: str) -> list[str] | None:
    """A state's command, as arguments of this program; None if it needs a file of that run, or is only good for the
    very same program: a schedule is a list of every step, and with other steps the rig refuses it.
    """
    words = shlex.split(command)
    at = next((n for n in range(len(words) - 1) if words[n:n + 2] == ["crash", "run"]), None)
    if at is None or rig == "schedule" or any("/" in word for word in words[at + 2:]):
        return None
    return ["rig", *words[at + 2:]]


def narrowed(rig: str, argv: list[str], state: State) -> list[str]:
    """The same exploration again, of that workload and file system alone."""
    given = argv[:argv.index("--work")] if "--work" in argv else argv   # where to work comes last, and is of that run
    chosen = [*given, "--workload", state.workload] if "--workload" not in given else list(given)
    return ["rig", rig, *chosen, *(["--fs", state.fs] if rig == "block" and "--fs" not in argv else [])]


def run_tests(argv: list[str]) -> dict[str, Any]:
    import pytest  # noqa: PLC0415

    class Watch:
        """Counts tests, and keeps the first that failed."""

        def __init__(self) -> None:
            self.count, self.failed, self.why = 0, "", ""

        def pytest_runtest_logreport(self, report: Any) -> None:
            self.count += report.when == "call"
            if report.failed and not self.failed:
                self.failed = report.nodeid
                self.why = str(getattr(report.longrepr, "reprcrash", None) or report.longrepr).splitlines()[0]

    watch = Watch()
    status = pytest.main(["-x", "-q", "-p", "no:cacheprovider", *argv], plugins=[watch])
    if watch.failed:
        return {"states": watch.count, "caught": {
            "what": f"{watch.failed}: {watch.why}", "again": ["pytest", watch.failed],
        }, "failed": None}
    if status in (pytest.ExitCode.USAGE_ERROR, pytest.ExitCode.NO_TESTS_COLLECTED):
        _refuse(WRONG_WAY, f"pytest knows no {argv}")
    if status != 0:
        raise AssertionError(f"pytest {argv} ended with {status}, and no test failed")
    return {"states": watch.count, "caught": None, "failed": None}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
