"""The house: import direction, the one-module rules, and documents made from the code are not stale."""

import ast
import os
import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).parent.parent
SRC = ROOT / "src" / "layerstore"
JOURNAL = ROOT / "journal" / "layerjournal"

# top to bottom; a module imports only from strictly below it (packages count as one, and are free inside)
ORDER = [
    ["testing"],
    ["__main__"],
    ["cli"],
    ["observing"],
    ["store"],
    ["calling"],
    ["pull", "repair"],
    ["pull_layers"],
    ["commit", "mount", "push", "view"],
    ["view_files"],
    ["check", "explain", "export", "gc", "space", "usage"],
    ["dedup"],
    ["holds"],
    ["apply", "delete"],
    ["checkpoint", "stage"],
    ["begin"],
    ["staging"],
    ["quota", "rebuilding", "recover"],
    ["executor", "mounting", "readopt"],
    ["mending"],
    ["recovery", "catalog", "create"],
    ["handle"],
    ["journaling"],
    ["projection"],
    ["targets"],
    ["differs", "sources", "overlay", "extract"],
    ["spooled"],
    ["left", "redress", "remains", "spool"],
    ["unpack", "pack", "verify", "gotarsplit", "meant", "chunked"],
    ["compare"],
    ["assemble", "dress", "wear"],
    ["lifecycle"],
    ["digests", "manifest", "measure", "records", "tar", "tarsplit"],
    ["packed"],
    ["config", "containers_storage", "copying", "dirfds", "donors", "reserve", "threads", "whiteouts"],
    ["compression", "filesystem", "form", "fs", "override"],
    ["states", "timeline"],
    ["filecaps", "model", "namespace", "observe", "privilege"],
    ["partial", "progress", "rate"],
    ["errors", "kernel", "faults", "crc64", "descriptors", "idmap"],
]
RANK = {name: len(ORDER) - n for n, group in enumerate(ORDER) for name in group}
ONE_MODULE = {
    "lmdb": {"layerjournal.engine"},
    "msgpack": {"layerjournal.codec", "layerstore.packed"},
    "zstandard": {"layerjournal.segment", "layerstore.compression"},
    "transitions": {"layerstore.lifecycle"},
    "isal": {"layerstore.compression"},
    "urllib3": {"layerstore.sources"},
    "fastcrc": {"layerstore.crc64"},
    "prometheus_client": {"layerstore.observing"},
    "opentelemetry": {"layerstore.observing"},
    "click": {"layerstore.cli"},
    "rich": {"layerstore.cli"},
}


def modules():
    for base, package in ((SRC, "layerstore"), (JOURNAL, "layerjournal")):
        for path in sorted(base.rglob("*.py")):
            parts = path.relative_to(base).with_suffix("").parts
            yield path, package, parts


def imports(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            if node.module == "layerstore":
                for alias in node.names:
                    yield f"layerstore.{alias.name}"


MODULES = list(modules())


@pytest.mark.parametrize(("path", "package", "parts"), MODULES, ids=[f"{p}.{'.'.join(t)}" for _, p, t in MODULES])
def test_a_module_imports_only_from_below_it(path, package, parts):
    top = parts[0]
    if package == "layerjournal":
        assert not [n for n in imports(path) if n.split(".")[0] == "layerstore"], "layerjournal knows nothing of layers"
        return
    if top == "__init__":
        return   # the public face names them all
    assert top in RANK, f"{top} has no place in ORDER"
    for name in imports(path):
        if not name.startswith("layerstore."):
            continue
        other = name.split(".")[1]
        if other in RANK and other != top:
            assert RANK[other] < RANK[top], f"{top} imports {other}, which is not below it"


@pytest.mark.parametrize("library", sorted(ONE_MODULE))
def test_each_dependency_is_imported_by_its_one_module(library):
    users = set()
    for path, package, parts in MODULES:
        if library in {name.split(".")[0] for name in imports(path)}:
            users.add(f"{package}.{parts[0]}")
    allowed = ONE_MODULE[library]
    assert users <= allowed, f"{library} is imported by {users - allowed}"
    assert users, f"nothing imports {library}: it does no job"


def test_only_fs_and_its_peers_change_the_disk():
    """Effects are in fs (store), unpack, dress, packed (staging trees), extract, overlay, targets, cli (targets); nowhere else."""
    allowed = {"fs", "unpack", "manifest", "extract", "overlay", "filesystem", "handle", "mount", "kernel", "testing",
               "whiteouts", "dress", "packed", "tarsplit", "cli", "observing", "targets"}
    effects = {"mkdir", "rename", "unlink", "rmdir", "link", "symlink", "mknod", "fsync", "replace", "truncate"}
    for path, package, parts in MODULES:
        if package != "layerstore" or parts[0] in allowed:
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if (isinstance(node, ast.Attribute) and node.attr in effects
                    and isinstance(node.value, ast.Name) and node.value.id == "os"):
                pytest.fail(f"{path.name}:{node.lineno} calls os.{node.attr}")


def test_nothing_imports_testing():
    for path, package, parts in MODULES:
        if parts[0] != "testing":
            assert not [n for n in imports(path) if n.startswith("layerstore.testing")], path


def test_the_diagram_is_made_from_the_table():
    from layerstore import states

    assert (ROOT / "docs" / "states.md").read_text() == states.page(), "run: make docs/states.md"


def test_every_module_says_what_may_live_there():
    for path, _package, _parts in MODULES:
        assert ast.get_docstring(ast.parse(path.read_text())), f"{path} has no docstring"


def test_every_public_verb_speaks_of_durability():
    from layerstore.store import Store

    for verb in ("stage", "apply_staged_layer", "pull", "mount", "commit", "extract", "delete_layer", "delete_image"):
        assert "Durability" in (getattr(Store, verb).__doc__ or ""), verb
    assert os.path.exists(ROOT / "docs" / "crash-model.md")


def test_what_public_calls_raise_is_written_as_the_reference_reads_it():
    """``SomeError: when``, or further lines of one: anything else is left out of the site, with a warning that fails it."""
    for path in (SRC / "store.py", *sorted((SRC / "testing").glob("*.py"))):
        for node in ast.walk(ast.parse(path.read_text())):
            text = ast.get_docstring(node) if isinstance(node, ast.FunctionDef | ast.ClassDef) else None
            for section in re.findall(r"^Raises:\n((?: {4}.*\n)+)", text or "", re.MULTILINE):
                for line in section.splitlines():
                    assert re.match(r"    (\w+: | {4})", line), f"{path.name}, {node.name}: {line}"


def test_the_public_names_are_told_alike_to_python_and_to_type_checkers():
    import layerstore

    tree = ast.parse((SRC / "__init__.py").read_text())
    (block,) = [node for node in tree.body if isinstance(node, ast.If)]
    told = {alias.asname for node in block.body for alias in node.names}
    assert told == set(layerstore._PUBLIC)
    for name in told:
        assert getattr(layerstore, name) is not None
