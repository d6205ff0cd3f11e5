"""The Makefile's targets are those that its first lines tell of, and without variables each is a whole command."""

import os
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "Makefile").read_text()
TOLD = re.findall(r"^# make ([a-z-]+) ", TEXT, re.MULTILINE)


def would_run(*words):
    clean = {key: value for key, value in os.environ.items() if "MAKE" not in key and key not in ("WORKERS", "ARGS")}
    done = subprocess.run(["make", "-n", "VENV=/nowhere", *words], cwd=ROOT, env=clean, capture_output=True, text=True, check=True)
    return done.stdout


def test_every_target_is_told_of():
    (phony,) = re.findall(r"^\.PHONY: (.*)$", TEXT, re.MULTILINE)
    assert set(phony.split()) - set(TOLD) <= {"docs", "clean", "bench-store", "lint", "types", "bench"}
    assert set(TOLD) <= set(phony.split())


@pytest.mark.parametrize(("target", "says"), [
    ("test", "pytest -n auto --maxprocesses 8"), ("fuzz", "fuzz all --seconds 60 --workers 1"), ("crash", "crash all --out crash-out"),
    ("demo", "demo/demo.py"), ("bench", "bench all"),
])
def test_a_target_without_variables_is_a_whole_command(target, says):
    assert says in " ".join(would_run(target).replace("\\\n", " ").split())


@pytest.mark.parametrize(("words", "says"), [
    (("test", "WORKERS=0"), "pytest -n 0"), (("fuzz", "WORKERS=2", "TARGET=pax", "UNTIL=5"), "fuzz pax --seconds 60 --workers 2 --until 5"),
    (("crash", "RIG=posix", "STATES=9"), "crash run posix --out crash-out --states 9"),
])
def test_a_variable_goes_where_it_belongs(words, says):
    assert says in " ".join(would_run(*words).replace("\\\n", " ").split())
