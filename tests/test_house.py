"""The house: import direction, the one-module rules, and documents made from the code are not stale."""

import ast
import os
import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).parent.parent
SRC = ROOT / "src" / "layerstore"
JOURNAL = ROOT / "journal" / "layerjournal"

# top to bottom; a module imports only from strictly below it
ORDER = """
    testing > __main__ > cli > observing > store > calling > verbs > dedup > recovery > opening > lifecycle
    > targets differs > sources chunked > trees > formats > model progress observe > partial signatures > system > errors
"""
INSIDE = {   # the same within a package; what has no entry here is free inside
    "verbs": """
        open pull repair > pull_layers > commit mount push view > view_files view_marker > check explain export gauges gc
        space usage > holds > apply > delete claiming > batch > checkpoint stage names > begin > staging > quota
    """,
    "recovery": """
        rebuilding recover > at_risk executor mounting readopt > batches > acting > mending > moving > looking > planner > remains
    """,
    "opening": """
        reading > beneath create > handle > journaling > config reserve > form
    """,
    "lifecycle": """
        catalog > stacked > projection > machine > states timeline
    """,
    "trees": """
        overlay extract > merge > spooled > left redress spool > unpack pack verify gotarsplit meant > compare > assemble dress
        checked wear > measure > attach copying dirfds donors mounted whiteouts > override
    """,
    "formats": """
        digests manifest records tar tarsplit > folding > packed > containers_storage > compression > crc64 zstdblocks
    """,
    "system": """
        pool > threads > beside filesystem flock public > fs removing > filecaps namespace privilege > rate > kernel faults descriptors idmap room
    """,
}


def ranks(order):
    """Groups from the top down, ``>`` between them: a rank for each name, the lowest at the bottom."""
    groups = [group.split() for group in order.split(">")]
    return {name: len(groups) - n for n, group in enumerate(groups) for name in group}


ONE_MODULE = {
    "lmdb": {"layerjournal.engine"},
    "msgpack": {"layerjournal.codec", "layerstore.formats.packed"},
    "zstandard": {"layerjournal.segment", "layerstore.formats.compression"},
    "transitions": {"layerstore.lifecycle.machine"},
    "isal": {"layerstore.formats.compression"},
    "urllib3": {"layerstore.sources"},
    "fastcrc": {"layerstore.formats.crc64"},
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
            for alias in node.names:   # one of them may be a module
                yield f"{node.module}.{alias.name}"


MODULES = list(modules())


@pytest.mark.parametrize(("path", "package", "parts"), MODULES, ids=[f"{p}.{'.'.join(t)}" for _, p, t in MODULES])
def test_a_module_imports_only_from_below_it(path, package, parts):
    used = [tuple(name.split(".")) for name in imports(path)]
    if package == "layerjournal":
        assert not [name for name in used if name[0] == "layerstore"], "layerjournal knows nothing of layers"
        return
    if parts[0] == "__init__":
        return   # the public face names them all
    order, inside = ranks(ORDER), ranks(INSIDE.get(parts[0], ""))
    for _, top, *rest in [name for name in used if name[0] == "layerstore" and len(name) > 1 and name[1] in order]:
        if top != parts[0]:
            assert order[top] < order[parts[0]], f"{parts[0]} imports {top}, which is not below it"
        elif len(parts) > 1 and inside and rest[0] != parts[1]:
            assert inside[rest[0]] < inside[parts[1]], f"{parts[1]} imports {rest[0]}, which is not below it"


def test_every_module_has_a_place_in_the_order():
    """A new one fails here until it is given one: that is when to ask where it belongs."""
    tops = {parts[0] for _, package, parts in MODULES if package == "layerstore"} - {"__init__"}
    assert tops == set(ranks(ORDER))
    for package, order in INSIDE.items():
        assert {parts[1] for _, _, parts in MODULES if parts[0] == package} - {"__init__"} == set(ranks(order)), package


@pytest.mark.parametrize("library", sorted(ONE_MODULE))
def test_each_dependency_is_imported_by_its_one_module(library):
    users = set()
    for path, package, parts in MODULES:
        if library in {name.split(".")[0] for name in imports(path)}:
            users.add(".".join((package, *parts)))
    allowed = ONE_MODULE[library]
    assert all(any(f"{user}.".startswith(f"{each}.") for each in allowed) for user in users), f"{library}: {users}"
    assert users, f"nothing imports {library}: it does no job"


def test_only_fs_and_its_peers_change_the_disk():
    """Effects are in fs, removing, public (store), unpack, dress, packed (staging trees), extract, merge, targets, cli."""
    allowed = ("system.fs", "system.removing", "system.public", "system.filesystem", "system.kernel", "opening.handle",
               "trees.unpack", "trees.whiteouts", "trees.dress", "trees.extract", "trees.merge", "formats.packed",
               "formats.manifest", "formats.tarsplit", "verbs.mount", "targets", "cli", "observing", "testing")
    effects = {"mkdir", "rename", "unlink", "rmdir", "link", "symlink", "mknod", "fsync", "replace", "truncate"}
    for path, package, parts in MODULES:
        if package != "layerstore" or ".".join(parts).startswith(allowed):
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
    from layerstore.lifecycle import states

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


def test_what_a_public_verb_takes_and_returns_has_a_public_name():
    import layerstore

    (store,) = [node for node in ast.parse((SRC / "store.py").read_text()).body
                if isinstance(node, ast.ClassDef) and node.name == "Store"]
    named = set()
    for verb in [node for node in store.body if isinstance(node, ast.FunctionDef) and not node.name.startswith("_")]:
        taken = [each.annotation for each in (*verb.args.args, *verb.args.kwonlyargs) if each.annotation is not None]
        for annotation in filter(None, (*taken, verb.returns)):
            named |= {node.attr if isinstance(node, ast.Attribute) else node.id for node in ast.walk(annotation)
                      if isinstance(node, ast.Attribute | ast.Name)}
    ours = {name for name in named if name[0].isupper()} - {"Sequence", "Mapping", "Iterator", "Callable", "Any", "PathLike"}
    assert {"PullOptions", "CheckReport", "Life"} <= ours
    assert ours - set(layerstore.__all__) == set()
