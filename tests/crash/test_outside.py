"""A command line killed from outside: at every system call that changes the store, with no help from the product.

The same harness must catch programs with a mistake planted in them, and must not believe a kill that did not land.
"""

import argparse
import os
import tempfile
import textwrap

import pytest

from crash import outside
from crash.outside import Rig, counting
from crash.strace import NotKilledError, Point, available, entered, parse

pytestmark = [
    pytest.mark.timeout(1800),
    pytest.mark.skipif(available() is not None, reason=str(available())),
]


@pytest.fixture
def scratch():
    """A directory in memory if there is one: these tests make many small stores."""
    with tempfile.TemporaryDirectory(dir="/dev/shm" if os.geteuid() == 0 and os.path.isdir("/dev/shm") else None) as path:
        yield path


@pytest.fixture(scope="module")
def plain():
    """The run ``apply``, undamaged; made once."""
    with tempfile.TemporaryDirectory() as path:
        yield Rig.made(os.path.join(path, "apply"), "apply")


def options(scratch, **given):
    return argparse.Namespace(**{
        "work": scratch, "seed": 1, "states": None, "seconds": None, "workload": None, "every": 1, "at": None, **given,
    })


def explored(record_property, states):
    found = list(states)
    record_property("states", len(found))
    assert not [state for state in found if state.violations], "\n".join(
        f"{state.workload} {state.fault}: {state.violations[:3]}\n  {state.reproduce}" for state in found if state.violations
    )
    return found


# -- the exploration ----------------------------------------------------------------------------------------------------


def test_a_pull_killed_at_every_call_that_changes_the_store(scratch, record_property):
    found = explored(record_property, outside.states(options(scratch, workload=["pull"])))
    assert len(found) >= 130
    assert {state.outcome for state in found} == {"committed", "rolled-back"}
    assert sum(state.redo for state in found) >= 0.3 * len(found), "recovery must have had work to do"


@pytest.mark.parametrize(("run", "every", "floor"), [
    ("first-pull", 24, 10), ("apply", 8, 7), ("rm", 5, 6), ("gc", 10, 6), ("checkpoint", 10, 4),
])
def test_other_commands_killed_at_a_sample_of_their_calls(scratch, record_property, run, every, floor):
    found = explored(record_property, outside.states(options(scratch, workload=[run], every=every)))
    assert len(found) >= floor


def test_a_promised_pull_whose_recovery_is_killed_is_finished_all_the_same(scratch, record_property):
    found = explored(record_property, outside.states(options(scratch, workload=["recover"], every=3, seed=2)))
    assert {state.outcome for state in found} == {"committed"}


# -- outside and inside agree ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("run", ["pull", "first-pull", "rm", "gc"])
def test_strace_and_the_interposed_libc_count_the_same_calls(scratch, run):
    """Call by call, raw ``syscall()`` included: what strace sees and the interposer does not, no rig could kill."""
    rig = Rig.made(os.path.join(scratch, run), run)
    seen, unseen = counting.both(rig)
    assert seen == unseen
    assert sum(seen.values()) >= 10


def test_a_raw_system_call_is_seen_from_outside_only(scratch):
    """The comparison can fail: a change made past the C library's functions is one that the interposer misses."""
    rig = planted(scratch, "apply", """
        import ctypes, os, layerstore.store as target
        original = target.Store.apply_staged_layer
        def raw(self, *args, **kwargs):
            ctypes.CDLL(None).syscall(83, os.fsencode(os.path.join(self.root, "staging/raw")), 0o700)   # mkdir
            ctypes.CDLL(None).syscall(84, os.fsencode(os.path.join(self.root, "staging/raw")))          # rmdir
            return original(self, *args, **kwargs)
        target.Store.apply_staged_layer = raw
    """)
    seen, unseen = counting.both(rig)
    assert seen - unseen == {"mkdir": 1, "rmdir": 1}


# -- negative controls ---------------------------------------------------------------------------------------------------------


def planted(scratch, run, source):
    """The run, with *source* run at the start of every program that is killed."""
    patches = os.path.join(scratch, "patches")
    os.makedirs(patches)
    with open(os.path.join(patches, "sitecustomize.py"), "w") as file:
        file.write(textwrap.dedent(source))
    return Rig.made(os.path.join(scratch, run), run, extra={"PYTHONPATH": patches})


def found_at(rig, points):
    return [violation for point in points for violation in rig.state(point).violations]


def test_an_answer_before_the_commit_is_caught(scratch):
    rig = planted(scratch, "apply", """
        import layerstore.store as target
        original = target.Store.apply_staged_layer
        def too_soon(self, *args, **kwargs):
            print("done", flush=True)
            return original(self, *args, **kwargs)
        target.Store.apply_staged_layer = too_soon
    """)
    syncs = [point for point in rig.points() if point.name == "fdatasync"]
    found = found_at(rig, syncs)
    assert [each for each in found if "is None, but must be" in each]


def test_a_name_given_in_a_second_step_is_caught(scratch):
    rig = planted(scratch, "pull", """
        import layerstore.store as target
        original = target.Store.pull
        def in_two_steps(self, source, *, names=None, **kwargs):
            image = original(self, source, names=(), **kwargs)
            for name in names:
                self.set_name(name, image.id)
            return image
        target.Store.pull = in_two_steps
    """)
    last = rig.points()[-4:]
    found = found_at(rig, last)
    assert [each for each in found if "half of what was asked for" in each]


def test_a_tree_put_away_before_the_deletion_is_promised_is_caught(scratch):
    rig = planted(scratch, "rm", """
        import os, layerstore.store as target
        original = target.Store.delete_image
        def tree_first(self, image_id, **kwargs):
            for layer in reversed(self.image(image_id).layers):
                os.rename(f"{self.root}/layers/{layer}", f"{self.root}/trash/{layer}")
                os.rename(f"{self.root}/trash/{layer}", f"{self.root}/layers/{layer}")
            return original(self, image_id, **kwargs)
        target.Store.delete_image = tree_first
    """)
    renames = [point for point in rig.points() if point.name == "rename"]
    assert len(renames) == 6
    found = found_at(rig, renames[1::2])
    assert [each for each in found if "has no tree" in each]


def test_a_kill_that_is_never_reached_is_an_error(plain):
    with pytest.raises(NotKilledError, match="ended with 0"):
        plain.state(Point("fdatasync", 1000, "fdatasync(<ROOT/journal/data.mdb>)"))


def test_a_kill_at_another_call_than_the_one_asked_for_is_an_error(plain):
    first, second = [point for point in plain.points() if point.name == "mkdirat"][:2]
    with pytest.raises(NotKilledError, match="not at"):
        plain.state(Point(first.name, first.nth, second.shape))


def test_a_line_that_strace_does_not_write_is_an_error():
    with pytest.raises(ValueError, match="not a line of strace"):
        list(parse(["1234 fsync(3) = 0", "what is this"]))


def test_a_call_that_was_interrupted_by_another_thread_is_one_call():
    calls = list(parse([
        "7 write(3</s/a>, \"x\", 1 <unfinished ...>", "8 fsync(4</s/b>) = 0", "7 <... write resumed>) = 1",
        "8 renameat2(3</s>, \"a = b\", 3</s>, \"c\", 0) = -1 EEXIST (File exists)", "7 +++ exited with 0 +++",
    ]))
    assert [(call.thread, call.key, call.failed) for call in calls] == [
        (7, "write:1", False), (8, "fsync:1", False), (8, "renameat2:1", True),
    ]
    assert calls[2].paths() == ["/s", "/s/a = b", "/s", "/s/c"]


def test_a_call_that_strace_saw_in_a_dead_threads_old_registers_was_not_made():
    cut = list(parse([
        '7 openat(3</s>, "a", O_CREAT <unfinished ...>', '8 openat(3</s>, "a", O_CREAT <unfinished ...>',
        '9 openat(3</s>, "b", O_CREAT <unfinished ...>', "7 <... openat resumed>) = ?", "8 +++ killed by SIGKILL +++",
        "7 +++ killed by SIGKILL +++",
    ]))
    assert [call.thread for call in entered(cut)] == [7, 9]


def test_a_path_by_way_of_a_descriptor_is_the_file_behind_it():
    calls = list(parse([
        '7 openat(AT_FDCWD</>, "/s", O_RDONLY <unfinished ...>', "8 fsync(4</s/b>) = 0", "7 <... openat resumed>) = 3</s>",
        '7 setxattr("/proc/self/fd/3/x", "user.a", "y", 1, 0) = 0',
    ]))
    assert calls[2].touches("/s")
    assert calls[2].mutates()
