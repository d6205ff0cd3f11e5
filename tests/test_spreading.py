"""The run in several processes counts every test once, and neither a test that is skipped nor a process that dies is lost."""

import os
import re
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

HERE = Path(__file__).parent
OWN = {
    "test_dies.py": """
        def test_before(): pass
        def test_dies(): tell("x"); os.kill(os.getpid(), 9)
        def test_after(): pass
        def test_last(): pass
    """,
    "test_together.py": """
        @pytest.fixture(scope="module")
        def made(): tell("m")
        @pytest.mark.parametrize("n", range(8))
        def test_one(made, n, record_property): record_property("states", 5); record_property("caught", 1)
    """,
    "test_others.py": """
        @pytest.mark.parametrize("n", range(20))
        def test_one(n): pass
    """,
    "test_skips.py": """
        def test_passes(): pass
        def test_skipped(): pytest.skip("here")
    """,
    "test_leaves.py": """
        class Leaving:
            def pytest_sessionfinish(self): os.kill(os.getpid(), 9)
        def test_passes(request): request.config.pluginmanager.register(Leaving())
    """,
}


BEGIN = """
import os, pytest

def tell(what):
    with open("told", "a") as file:
        file.write(what)
"""


@pytest.fixture
def run(tmp_path):
    """``run(modules)``: its status, what it printed, what the tests told."""
    for name in ("conftest.py", "spreading.py"):
        shutil.copy(HERE / name, tmp_path)
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    (tmp_path / "told").touch()

    def run(*modules):
        for name in modules:
            (tmp_path / name).write_text(BEGIN + textwrap.dedent(OWN[name]))
        done = subprocess.run(
            [sys.executable, "-m", "pytest", "-n", "2", "--dist", "loadfile", "-p", "no:cacheprovider", f"--basetemp={tmp_path}/made"],
            cwd=tmp_path, env={**os.environ, "LAYERSTORE_CI": "1"}, capture_output=True, text=True, check=False,
        )
        return done.returncode, done.stdout, (tmp_path / "told").read_text()

    return run


def test_each_is_counted_once_a_module_is_made_once_and_the_states_are_summed(run):
    status, text, told = run("test_together.py", "test_others.py")
    assert status == 0, text
    assert re.search("=+ 28 passed in ", text)
    assert told == "m"
    lines = re.findall(r"^ +5  (test_together.*)$", text, re.MULTILINE)
    assert lines == [f"test_together.py::test_one[{n}]" for n in range(8)]
    assert "40  in total; 8 planted mistakes caught" in text


def test_one_in_which_its_process_dies_fails_is_not_tried_again_and_the_rest_is_run(run):
    status, text, told = run("test_dies.py", "test_others.py")
    assert status == 1
    assert told == "x"
    assert re.search("=+ 1 failed, 23 passed in ", text), text
    assert "FAILED test_dies.py::test_dies - worker" in text


def test_a_process_that_dies_in_no_test_fails_the_run(run):
    status, text, _ = run("test_leaves.py", "test_others.py")
    assert re.search("=+ 21 passed in ", text), text
    assert "died, in no test" in text
    assert status == 1


@pytest.mark.root
def test_one_that_is_skipped_fails_the_run(run):
    status, text, _ = run("test_skips.py", "test_others.py")
    assert status == 1
    assert "skipped, but must run in CI: test_skips.py::test_skipped" in text
