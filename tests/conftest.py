"""Fixtures, and the rule that in CI nothing may be skipped."""

import os
import sys
from pathlib import Path

import pytest
from hypothesis import settings

sys.path.insert(0, str(Path(__file__).parent))

from spreading import (  # noqa: E402, F401 - its hooks are found here
    DIED,
    longest_first,
    pytest_testnodedown,
    pytest_xdist_make_scheduler,
)

# how long an example takes says how busy the machine is
settings.register_profile("any load", deadline=None)
settings.load_profile("any load")

IN_CI = bool(os.environ.get("LAYERSTORE_CI"))


@pytest.fixture(scope="session", autouse=True)
def runtime_directory(tmp_path_factory):
    """An ordinary user's own: without it tools look into /run/containers, which root's podman may have closed to others."""
    if os.geteuid() != 0:
        os.environ["XDG_RUNTIME_DIR"] = str(tmp_path_factory.mktemp("runtime"))


@pytest.fixture
def root(tmp_path):
    return tmp_path / "store"


@pytest.fixture
def store(root):
    import layerstore

    with layerstore.open(root) as opened:
        yield opened


@pytest.fixture
def home():
    """A directory of the ordinary user's, on a disk."""
    from namespaces import users_directory

    with users_directory() as path:
        yield path


@pytest.fixture
def armed():
    """Installs a hook at the fault points for the length of a test."""
    from layerstore.system import faults

    previous = faults.install(None)
    yield faults.install
    faults.install(previous)


def pytest_collection_modifyitems(items):
    longest_first(items)
    if os.geteuid() != 0:
        for item in items:
            if item.get_closest_marker("root") or item.get_closest_marker("debian"):
                item.add_marker(pytest.mark.skip(reason="needs root"))


def pytest_terminal_summary(terminalreporter):
    """How many crash states were explored, test by test: what ``record_property("states", n)`` said."""
    lines, total, caught, model = [], 0, 0, 0
    for report in terminalreporter.stats.get("passed", []) + terminalreporter.stats.get("failed", []):
        for key, value in report.user_properties:
            if key == "states":
                lines.append(f"{value:>7}  {report.nodeid}")
                total += value
            caught += value if key == "caught" else 0
            model += value if key == "model_states" else 0
    lines.sort(key=lambda line: line[9:])   # by test: whoever ran it
    if lines or model:
        terminalreporter.section("crash states explored")
        terminalreporter.write_line("\n".join(lines))
        terminalreporter.write_line(f"{total:>7}  in total; {caught} planted mistakes caught")
        terminalreporter.write_line(f"{model:>7}  states of the model, which are not counted among them")


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session, exitstatus):
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    skipped = reporter.stats.get("skipped", []) if reporter else []
    if IN_CI and os.geteuid() == 0 and skipped and exitstatus == 0:
        for report in skipped:
            reporter.write_line(f"skipped, but must run in CI: {report.nodeid}", red=True)
        session.exitstatus = 1
    for name in session.config.stash.get(DIED, []) if exitstatus == 0 else []:
        reporter.write_line(f"{name} died, in no test", red=True)
        session.exitstatus = 1
