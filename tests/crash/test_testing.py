"""``layerstore.testing`` itself: what is armed happens, the ledger is believed as it should be, the oracle sees damage."""

import errno
import inspect
import os
import shutil
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import pytest

import layerstore
import layerstore.testing as layerstore_testing
from crash.content import content
from layerstore import LayerSpec, errors
from layerstore.system import faults
from layerstore.testing import (
    ChildDiedError,
    FaultNotReachedError,
    Ledger,
    Passing,
    armed,
    copy_store,
    delaying,
    differences,
    environment,
    examine,
    expectation,
    image,
    in_workers,
    kill_at,
    killing,
    layer,
    name,
    passings,
    raising,
    read_tree,
    run_child,
    telling,
    tree_of_tar,
    violations,
)
from layerstore.testing.answering import Answering
from layerstore.testing.copies import disk_print
from storekit import add, differ
from storekit import image as make_image

ROOT = Path(__file__).parents[2]
A, B = "a" * 64, "b" * 64


# -- arming ------------------------------------------------------------------------------------------------------------


def test_an_errno_that_is_armed_is_raised_there_and_nowhere_else(store):
    with raising("stage.sync", "EIO") as fault, pytest.raises(errors.OutcomeUnknownError):
        add(store)
    assert (fault.passed, fault.fired) == (1, 1)


@pytest.mark.parametrize("given", ["ENOSPC", errno.ENOSPC, OSError(errno.ENOSPC, "full")])
def test_an_errno_may_be_given_by_name_or_number_or_as_an_exception(store, given):
    with raising("stage.mkdir", given), pytest.raises(errors.NoSpaceError):
        store.stage(differ())
    store.stage(differ()).discard()


def test_an_exception_that_is_no_error_of_the_disk_is_raised_as_it_is(store):
    with raising("unpack.entry", KeyboardInterrupt()), pytest.raises(KeyboardInterrupt):
        store.stage(differ())


def test_a_fault_after_the_effect_finds_it_done(root):
    with layerstore.open(root) as store, store.stage(differ()) as staged:
        with raising("publish.rename", "EIO", when="after"), pytest.raises(errors.PendingError):
            store.apply_staged_layer(staged, id=A)
        assert os.path.isdir(root / "layers" / A)
    with layerstore.open(root) as store:
        assert [each.id for each in store.layers()] == [A]


def test_the_nth_passing_only_or_from_there_on():
    def outcomes(**options):
        seen = []
        with raising("p", "EIO", nth=2, **options):
            for _ in range(4):
                try:
                    with faults.point("p"):
                        seen.append("done")
                except OSError:
                    seen.append("EIO")
        return seen

    assert outcomes() == ["done", "EIO", "done", "done"]
    assert outcomes(onward=True) == ["done", "EIO", "EIO", "EIO"]


def test_a_fault_that_never_happens_is_an_error():
    with pytest.raises(FaultNotReachedError, match="passed 1 times"), raising("p", "EIO", nth=2), faults.point("p"):
        pass
    with pytest.raises(FaultNotReachedError), armed("no.such.point", lambda: None):
        pass


def test_an_error_that_comes_out_is_not_hidden_by_the_fault_that_did_not_happen():
    with pytest.raises(ZeroDivisionError), armed("no.such.point", lambda: None):
        1 / 0


def test_faults_nest_and_are_disarmed_afterwards():
    seen = []
    with armed("p", lambda: seen.append("outer")), armed("p", lambda: seen.append("inner"), when="after"):
        with faults.point("p"):
            seen.append("effect")
    with faults.point("p"):
        seen.append("unarmed")
    assert seen == ["outer", "effect", "inner", "unarmed"]
    assert faults.install(None) is None


@pytest.mark.parametrize("wrong", [{"when": "during"}, {"nth": 0}])
def test_what_makes_no_sense_is_not_armed(wrong):
    with pytest.raises(ValueError), armed("p", lambda: None, **wrong):
        pass


def test_an_errno_that_does_not_exist_is_not_armed():
    with pytest.raises(ValueError, match="EWRONG"), raising("p", "EWRONG"):
        pass


def test_a_kill_that_is_armed_kills():
    def victim():
        with killing("p"), faults.point("p"):
            os._exit(7)

    assert os.waitstatus_to_exitcode(run_child(victim)) == -9


def test_a_delay_waits_where_it_was_armed():
    """By a sleep of our own, so that the order shows it and no clock is asked."""
    seen = []
    with delaying("p", 5.0, sleep=lambda seconds: seen.append(f"slept {seconds}")), faults.point("p"):
        seen.append("effect")
    assert seen == ["slept 5.0", "effect"]


def test_a_delay_holds_up_one_thread_and_lets_readers_go_on(store):
    at_the_point, go_on = threading.Event(), threading.Event()

    def wait(_seconds):
        at_the_point.set()
        assert go_on.wait(60)

    with delaying("stage.sync", 0, sleep=wait):
        writer = threading.Thread(target=lambda: store.stage(differ()).seal())
        writer.start()
        assert at_the_point.wait(60)
        assert list(store.layers()) == []     # a reader is not held up
        go_on.set()
        writer.join()


# -- the environment ---------------------------------------------------------------------------------------------------


def started(program, **fault):
    return subprocess.run(
        [sys.executable, "-c", program], env=os.environ | environment(**fault), capture_output=True, text=True, check=False,
    )


POINT = "from layerstore.system import faults\nfor n in range(3):\n  try:\n    with faults.point('p'): print(n)\n  except OSError as e: print(e.errno)"


def test_a_fault_can_be_armed_for_a_process_that_is_to_be_started():
    assert started(POINT, point="p", action="kill", nth=2).returncode == -9
    assert started(POINT, point="p", action="EIO", nth=2).stdout.split() == ["0", "5", "2"]
    assert started(POINT, point="p", action="EIO", nth=2, onward=True).stdout.split() == ["0", "5", "5"]


def test_a_delay_can_be_armed_for_a_process_that_is_to_be_started(monkeypatch):
    slept = []
    monkeypatch.setattr(faults.time, "sleep", slept.append)
    hook = faults.parse(environment("p", "delay=2.5")["LAYERSTORE_FAULT"].removeprefix("LAYERSTORE_FAULT="))
    hook("p", "before")
    hook("p", "after")
    assert slept == [2.5]


@pytest.mark.parametrize("spec", ["p", "p:before", "p:during:kill", "p:before:EWRONG", "p:before:kill:0", ":before:kill",
                                  "p:before:kill:1:2", "p:before:kill:x", "p:before:errorcode"])
def test_a_fault_that_cannot_be_understood_is_refused(spec):
    with pytest.raises(ValueError):
        faults.parse(spec)


# -- passings and kills ------------------------------------------------------------------------------------------------


def test_passings_are_counted_by_point_and_side():
    def program():
        for _ in range(2):
            with faults.point("p"):
                pass

    assert list(map(str, passings(program))) == ["p:before:1", "p:after:1", "p:before:2", "p:after:2"]


def test_a_passing_is_read_as_it_is_written():
    assert Passing.parse("txn.claim:after:3") == Passing("txn.claim", "after", 3)
    with pytest.raises(ValueError):
        Passing.parse("txn.claim:during:3")


def test_a_kill_that_does_not_land_is_an_error():
    def program():
        with faults.point("p"):
            pass

    kill_at(Passing("p", "after", 1), program)
    with pytest.raises(FaultNotReachedError):
        kill_at(Passing("p", "after", 2), program)
    with pytest.raises(FaultNotReachedError):
        kill_at(Passing("p", "after", 1), lambda: 1 / 0)


def test_a_child_that_dies_tells_nothing_and_that_is_an_error():
    assert telling(lambda: {"a": 1}) == {"a": 1}
    with pytest.raises(ChildDiedError):
        telling(lambda: os.kill(os.getpid(), 9))


def test_a_child_that_answers_is_one_process_until_it_dies_or_is_closed():
    def answer(number):
        if number == 9:
            os.kill(os.getpid(), 9)
        return number * 1 // (number - 8), os.getpid()

    answering = Answering(answer)
    (first, pid), (second, same) = answering.ask(7), answering.ask(6)
    assert (first, second, pid) == (-7, -3, same) and pid != os.getpid()
    for deadly in (9, 8):   # by a signal, by an error
        with pytest.raises(ChildDiedError):
            answering.ask(deadly)
    _, other = answering.ask(7)
    assert other != pid
    assert answering.close() == 0
    with pytest.raises(ChildProcessError):
        os.waitpid(other, 0)


def test_a_child_that_opens_a_store_finds_everything_imported(tmp_path):
    def imported():
        before = set(sys.modules)
        with layerstore.open(tmp_path / "s") as store:
            add(store)
            store.check()
        return set(sys.modules) - before

    assert not telling(imported)


def test_a_copy_has_what_a_copy_of_cp_has(tmp_path):
    source, copy, other = tmp_path / "source", tmp_path / "copy", tmp_path / "other"
    (source / "folder").mkdir(parents=True)
    (source / "file").write_bytes(b"some")
    (source / "folder" / "linked").hardlink_to(source / "file")
    (source / "folder" / "to").symlink_to("../file")
    os.mkfifo(source / "pipe", 0o640)
    (source / "large").write_bytes(os.urandom(1_500_000))
    os.truncate(source / "large", 4_000_000)
    os.setxattr(source / "file", "user.some", b"value")
    os.setxattr(source / "folder", "user.other", b"")
    if os.geteuid() == 0:
        os.mknod(source / "whiteout", 0o20000)
        os.setxattr(source / "folder", "trusted.overlay.opaque", b"y")
        os.chown(source / "file", 5, 6)
    (source / "file").chmod(0o4751)
    for n, path in enumerate((source / "file", source / "folder" / "to", source / "folder", source)):
        os.utime(path, ns=(n, 10**18 + n), follow_symlinks=False)
    subprocess.run(["cp", "-a", "--", source, other], check=True)
    copy_store(str(source), str(copy))

    def seen(top):
        wanted = "%P %m %U %G %s %l %T@ %y %n\\n"
        return sorted(subprocess.run(["find", top, "-printf", wanted], capture_output=True, check=True).stdout.splitlines())

    assert seen(copy) == seen(other) == seen(source)
    assert len({disk_print(str(each)) for each in (copy, other)}) == 1
    assert (copy / "large").read_bytes() == (source / "large").read_bytes()
    assert (copy / "large").stat().st_blocks * 512 < 2_000_000


def test_copies_that_were_opened_and_closed_alike_have_one_print(tmp_path):
    """Else no state is another's twin, and all are judged."""
    for n in range(2):
        layerstore.open(tmp_path / "s").close()
    copies = [tmp_path / "one", tmp_path / "two"]
    for each in copies:
        copy_store(str(tmp_path / "s"), str(each))
        layerstore.open(each).close()
    assert len({disk_print(str(each)) for each in copies}) == 1


def written(path, at):
    with open(path, "r+b") as file:
        file.seek(at)
        file.write(b"x")


CHANGES = {
    "content": lambda top: (top / "file").write_bytes(b"somE"),
    "name": lambda top: (top / "file").rename(top / "other"),
    "mode": lambda top: (top / "file").chmod(0o600),
    "xattr": lambda top: os.setxattr(top / "file", "user.some", b"Value"),
    "xattr of a folder": lambda top: os.setxattr(top / "folder", "user.some", b""),
    "file": lambda top: (top / "new").touch(),
    "link": lambda top: ((top / "to").unlink(), (top / "to").symlink_to("filf")),
    "length": lambda top: os.truncate(top / "large", 4_000_001),
    "end": lambda top: written(top / "large", 3_999_999),
    "hole": lambda top: written(top / "large", 1_000_001),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_print_tells_any_change_from_none(tmp_path, change):
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_bytes(b"some")
    (tmp_path / "to").symlink_to("file")
    (tmp_path / "large").write_bytes(b"a" * 1_500_000)
    os.truncate(tmp_path / "large", 4_000_000)
    os.setxattr(tmp_path / "file", "user.some", b"value")
    before = disk_print(str(tmp_path))
    assert disk_print(str(tmp_path)) == before
    CHANGES[change](tmp_path)
    assert disk_print(str(tmp_path)) != before


def test_workers_yield_in_an_order_that_does_not_depend_on_their_speed():
    def slow():
        for n in range(3):
            subprocess.run(["true"], check=True)
            yield f"slow {n}"

    def quick():
        yield from (f"quick {n}" for n in range(2))

    assert list(in_workers([slow, quick])) == ["slow 0", "quick 0", "slow 1", "quick 1", "slow 2"]


def test_an_error_in_a_worker_is_raised_and_the_others_are_ended():
    def bad():
        yield 1
        raise FaultNotReachedError("not reached")

    def endless():
        while True:
            yield 2

    with pytest.raises(FaultNotReachedError):
        list(in_workers([bad, endless]))
    with pytest.raises(ChildDiedError):
        list(in_workers([lambda: iter([os.kill(os.getpid(), 9)]), endless]))


# -- the ledger --------------------------------------------------------------------------------------------------------


def told(*steps):
    """The expectation after some verbs, each ``(facts, the error it raised or None)``."""
    lines = []
    ledger = Ledger(lines.append)
    for facts, error in steps:
        try:
            with ledger.asking(*facts):
                if error is not None:
                    raise error
        except BaseException as caught:
            assert caught is error
    return expectation(lines)


def test_what_was_told_must_be_so_and_what_nobody_asked_for_must_not():
    expect = told(([layer(A, "x"), name("n", "layer", A)], None))
    assert expect.value(f"layer:{A}") == {"x"}
    assert expect.value("name:n") == {f"layer:{A}"}
    assert expect.value(f"layer:{B}") == {None}


@pytest.mark.parametrize(("error", "allowed"), [
    (errors.DuplicateLayerError("nothing happened"), {None}),
    (errors.PendingError("it is durable"), {"x"}),
    (errors.OutcomeUnknownError("who knows"), {None, "x"}),
    (errors.PoisonedError("who knows"), {None, "x"}),
    (KeyboardInterrupt(), {None, "x"}),
])
def test_an_error_is_taken_by_its_word(error, allowed):
    assert told(([layer(A, "x")], error)).value(f"layer:{A}") == allowed


def test_what_was_open_is_settled_by_what_is_told_later():
    expect = told(([layer(A, "x")], KeyboardInterrupt()), ([layer(A, None)], None))
    assert None in expect.value(f"layer:{A}")
    expect = told(([image("i")], None), ([image("i", None)], errors.InUseError("in use")))
    assert expect.value("image:i") == {"present"}


def test_a_line_that_was_cut_off_is_an_answer_that_was_never_heard():
    lines = []
    with Ledger(lines.append).asking(layer(A, "x")):
        pass
    assert expectation(lines).value(f"layer:{A}") == {"x"}
    assert expectation([lines[0], lines[1][:7]]).value(f"layer:{A}") == {None, "x"}


def test_half_of_what_one_verb_was_to_bring_about_is_a_violation(root):
    with layerstore.open(root) as store:
        diff_id = add(store, id=A).diff_id
    lines = []
    with pytest.raises(KeyboardInterrupt), Ledger(lines.append).asking(layer(A, diff_id), layer(B, "sha256:x")):
        raise KeyboardInterrupt
    found = examine(str(root), expect=expectation(lines)).violations
    assert any("half of what was asked for" in each for each in found)


def test_a_layer_that_was_told_and_is_not_there_is_a_violation(root):
    layerstore.open(root).close()
    expect = told(([layer(A, "sha256:x")], None))
    assert any(f"layer:{A} is None" in each for each in examine(str(root), expect=expect).violations)


def test_a_layer_that_nobody_asked_for_is_a_violation(root):
    with layerstore.open(root) as store:
        add(store, id=A)
    assert any(f"layer:{A}" in each for each in examine(str(root), expect=told()).violations)


# -- trees -------------------------------------------------------------------------------------------------------------


def test_a_tree_on_the_disk_is_what_an_independent_reader_of_its_tar_expects(root):
    made = content("t1")
    with layerstore.open(root) as store, store.stage(layerstore.TarDiffer(made.tar)) as staged:
        store.apply_batch([LayerSpec(staged, id=A)])
    assert differences(tree_of_tar(made.tar), read_tree(str(root / "layers" / A / "diff"))) == []


@pytest.mark.parametrize("change", [
    pytest.param(lambda d: (d / "shared" / "file").write_bytes(b""), id="content"),
    pytest.param(lambda d: (d / "shared" / "file").chmod(0o600), id="mode"),
    pytest.param(lambda d: (d / "only-t1" / "empty").unlink(), id="missing"),
    pytest.param(lambda d: (d / "only-t1" / "stranger").touch(), id="stranger"),
    pytest.param(lambda d: ((d / "only-t1" / "link").unlink(), (d / "only-t1" / "link").symlink_to("x")), id="target"),
    pytest.param(lambda d: ((d / "shared" / "gone").unlink(), (d / "shared" / "gone").touch()), id="whiteout"),
    pytest.param(lambda d: (d / "only-t1").chmod(0o777), id="directory"),
])
def test_what_differs_is_seen(root, change):
    made = content("t1")
    with layerstore.open(root) as store, store.stage(layerstore.TarDiffer(made.tar)) as staged:
        store.apply_batch([LayerSpec(staged, id=A)])
    change(root / "layers" / A / "diff")
    assert differences(tree_of_tar(made.tar), read_tree(str(root / "layers" / A / "diff")))


def test_a_tree_that_nobody_made_is_a_violation(root):
    with layerstore.open(root) as store:
        add(store, id=A)
    assert any("nobody made" in each for each in examine(str(root), trees={}).violations)


# -- the oracle --------------------------------------------------------------------------------------------------------


def test_the_oracle_sees_damage_of_every_kind(tmp_path):
    root = tmp_path / "s"
    made = make_image(tmp_path)
    with layerstore.open(root) as store:
        pulled = store.pull(made.reference)
        store.checkpoint()
    assert violations(str(root)) == []

    def broken(change):
        copy = tmp_path / "copy"
        shutil.rmtree(copy, ignore_errors=True)
        os.spawnvp(os.P_WAIT, "cp", ["cp", "-a", str(root), str(copy)])
        change(copy)
        return violations(str(copy))

    layer = pulled.layers[0]
    assert broken(lambda c: shutil.rmtree(c / "layers" / layer))
    assert broken(lambda c: (c / "layers" / layer / "diff" / "layer0").write_bytes(b""))
    assert broken(lambda c: (c / "layers" / layer / "layer").unlink())
    assert broken(lambda c: (c / "images" / pulled.id).write_bytes(b"torn"))
    assert broken(lambda c: (c / "layers" / ("f" * 64)).mkdir())
    data = bytearray((root / "journal" / "data.mdb").read_bytes())
    at = data.rfind(b"committed")
    data[at] ^= 1
    assert broken(lambda c: (c / "journal" / "data.mdb").write_bytes(bytes(data)))


# -- the documents -----------------------------------------------------------------------------------------------------


def test_the_example_in_the_documents_runs(tmp_path):
    blocks = (ROOT / "docs" / "testing.md").read_text().split("```python\n# ")[1:]
    for block in blocks:
        file, code = block.split("```")[0].split("\n", 1)
        (tmp_path / file).write_text(code)
    assert sorted(each.name for each in tmp_path.iterdir()) == ["stack.py", "test_stack.py"]
    done = run_pytest(tmp_path)
    assert done.returncode == 0 and "1 passed" in done.stdout, done.stdout + done.stderr


def run_pytest(directory):
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", directory, directory],
        cwd=directory, capture_output=True, text=True, check=False,
    )


PLUGIN = """
import layerstore
pytest_plugins = "layerstore.testing.plugin"

def prepare(root, ledger):
    layerstore.open(root).close()

def test_explores(crash_explorer):
    explorer = crash_explorer(prepare, lambda root, ledger: layerstore.open(root).checkpoint())
    assert len(list(explorer.explore())) == len(explorer.points()) > 2

def test_explores_nothing(crash_explorer):
    crash_explorer(prepare, prepare)

def test_finds(crash_states):
    def run(root, ledger):
        with layerstore.open(root) as store, store.stage(layerstore.TarDiffer(b"\\0" * 1024)) as staged:
            store.apply_staged_layer(staged)    # and nobody was told to expect it
    crash_states(prepare, run)
"""


def test_a_crash_test_that_explores_nothing_does_not_pass_and_one_that_finds_something_fails(tmp_path):
    (tmp_path / "test_tool.py").write_text(PLUGIN)
    done = run_pytest(tmp_path)
    assert "2 passed, 1 failed, 1 error" in summary(done.stdout) or "1 failed, 2 passed, 1 error" in done.stdout, done.stdout
    assert "explored no crash state" in done.stdout
    assert "killed at" in done.stdout and "must be None" in done.stdout


def summary(text):
    return text.strip().splitlines()[-1]


@pytest.mark.parametrize("public", layerstore_testing.__all__)
def test_what_is_public_says_what_it_does(public):
    thing = getattr(layerstore_testing, public)
    text = inspect.getdoc(thing) or ""
    if inspect.isfunction(thing) and public not in ("layer", "image", "name"):
        assert "Durability:" in text, "what is on the disk afterwards"
        if inspect.signature(thing).parameters:
            assert "Args:" in text
    if public != "Tree":
        assert text


def test_importing_layerstore_does_not_import_its_testing_tools_or_pytest():
    program = "import sys, layerstore; sys.exit(any(m.startswith(('layerstore.testing', 'pytest')) for m in sys.modules))"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
    program = "import sys, layerstore.testing; sys.exit('pytest' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
