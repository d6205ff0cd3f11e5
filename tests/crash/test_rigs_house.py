"""The house of the rigs: what is common, and that no rig stands on another."""

import ast
import importlib
from pathlib import Path

import pytest

from crash import covering
from crash.__main__ import RIGS

CRASH = Path(__file__).parent.parent.parent / "crash"
COMMON = {
    "beside", "content", "keeping", "parts", "remote", "repairing", "restoring", "taking", "workloads", "wreck", "lost", "state", "workers", "strace", "persistence", "disk", "shim",
}
TOOLS = {"covering": COMMON | RIGS.keys(), "report": {"state"}, "sabotage": {"__main__", "state"}, "__main__": {"report", "state"}}
PARTS = sorted({path.relative_to(CRASH).parts[0].removesuffix(".py") for path in CRASH.rglob("*.py")} - {"__init__"})


def used(part):
    base = CRASH / part
    for path in [*base.rglob("*.py")] if base.is_dir() else [CRASH / f"{part}.py"]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("crash."):
                yield node.module.split(".")[1]
            elif isinstance(node, ast.ImportFrom) and node.module == "crash":
                yield from (alias.name for alias in node.names)
            elif isinstance(node, ast.Import):
                yield from (a.name.split(".")[1] for a in node.names if a.name.startswith("crash."))


@pytest.mark.parametrize("part", PARTS)
def test_a_rig_stands_only_on_what_is_common(part):
    allowed = TOOLS.get(part, COMMON) | {part}
    assert set(used(part)) <= allowed, f"crash/{part} imports {set(used(part)) - allowed}"


@pytest.mark.parametrize("rig", RIGS)
def test_every_rig_says_what_it_is_and_yields_states(rig):
    module = importlib.import_module(RIGS[rig])
    assert len(module.__doc__) > 80
    assert callable(module.states)


def test_the_table_of_rigs_and_verbs_is_what_the_rigs_list():
    assert (CRASH.parent / "docs" / "rigs.md").read_text() == covering.page(), "run: python -m crash.covering > docs/rigs.md"


def test_every_module_says_what_may_live_there():
    for path in CRASH.rglob("*.py"):
        assert ast.get_docstring(ast.parse(path.read_text())), f"{path} has no docstring"
