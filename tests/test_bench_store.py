"""``bench.store``: its statistics on samples that are written here, what it counts in a trace, and its page. No times."""

import json

import pytest

from bench.store import commit, figures, neighbour, page, recovery, stores, tracing
from crash.strace import parse


def test_a_percentile_is_the_least_sample_that_so_many_do_not_exceed():
    assert figures.percentile([5, 1, 4, 2, 3], 50) == 3
    assert figures.percentile(range(1, 101), 99) == 99
    assert figures.percentile(range(1, 102), 99) == 100
    assert figures.percentile([7], 1) == 7
    with pytest.raises(ValueError):
        figures.percentile([], 50)
    with pytest.raises(ValueError):
        figures.percentile([1], 0)


def test_a_summary_has_number_median_99th_percentile_and_greatest():
    assert figures.summary([4, 1, 2, 3]) == {"n": 4, "p50": 2.5, "p99": 4, "max": 4}


def test_ratios_are_taken_round_by_round():
    assert figures.paired_ratio([2, 30, 200], [1, 10, 100]) == 2
    with pytest.raises(ValueError):
        figures.paired_ratio([1, 2], [1])


def test_calls_that_a_long_one_held_up_count_with_what_they_waited():
    assert figures.as_if_on_time([1, 35, 10], 10) == [1, 35, 25, 15, 5, 10]


LOCKS = """\
7 flock(4</s/a>, LOCK_SH|LOCK_NB) = 0 <0.000010>
7 flock(4</s/a>, LOCK_EX|LOCK_NB) = -1 EAGAIN (Resource temporarily unavailable) <0.000010>
7 flock(4</s/a>, LOCK_SH) = 0 <0.000010>
7 flock(4</s/a>, LOCK_UN) = 0 <0.000010>
7 fcntl(5</s/l>, F_SETLK, {l_type=F_RDLCK}) = 0 <0.000010>
7 fcntl(5</s/l>, F_SETLKW, {l_type=F_RDLCK}) = 0 <0.000010>
7 futex(0x1, FUTEX_WAKE, 1) = 1 <0.500000>
7 futex(0x1, FUTEX_WAIT, 2, NULL) = 0 <0.000900>
7 futex(0x1, FUTEX_WAIT, 3, NULL) = 0 <0.500000>
7 futex(0x1, FUTEX_WAIT, 4, NULL <unfinished ...>
"""


def test_a_wait_is_a_lock_that_may_block_or_was_refused_and_a_futex_that_lasted():
    waits = [each.partition(" = ")[0] for each in tracing.lock_waits(list(parse(LOCKS.split("\n"))))]
    assert waits == [
        "flock(4</s/a>, LOCK_EX|LOCK_NB)", "flock(4</s/a>, LOCK_SH)", "fcntl(5</s/l>, F_SETLKW, {l_type=F_RDLCK})",
        "futex(0x1, FUTEX_WAIT, 3, NULL)", "futex(0x1, FUTEX_WAIT, 4, NULL)",
    ]


WORK = """\
7 openat(AT_FDCWD</>, "/s/journal/data.mdb", O_RDWR|O_DSYNC) = 9</s/journal/data.mdb> <0.1>
7 openat(AT_FDCWD</>, "/s/journal/data.mdb", O_RDWR) = 8</s/journal/data.mdb> <0.1>
7 fdatasync(8</s/journal/data.mdb>) = 0 <0.1>
7 access("/layerstore-bench-mark/begin", F_OK) = -1 ENOENT (No such file or directory) <0.1>
7 pwrite64(8</s/journal/data.mdb>, "abc", 4096, 0) = 4096 <0.1>
7 write(5</s/staging/x/file>, "abc", 3) = 3 <0.1>
7 write(5</elsewhere/file>, "abc", 3) = 3 <0.1>
7 fdatasync(8</s/journal/data.mdb>) = 0 <0.1>
7 pwrite64(9</s/journal/data.mdb>, "abc", 120, 0) = 120 <0.1>
7 syncfs(4</s/staging/x>) = 0 <0.1>
7 fsync(4</elsewhere>) = 0 <0.1>
7 access("/layerstore-bench-mark/end", F_OK) = -1 ENOENT (No such file or directory) <0.1>
7 syncfs(4</s/staging/x>) = 0 <0.1>
"""


def test_what_is_counted_lies_between_the_marks_and_within_the_store():
    done = tracing.work(list(parse(WORK.split("\n"))), "/s")
    assert done.flushes == {"fdatasync": 1, "O_DSYNC write": 1, "syncfs": 1}
    assert (done.journal_bytes, done.other_bytes) == (4216, 3)


def test_a_commit_costs_as_many_flushes_and_hardly_more_bytes_among_more_layers(tmp_path):
    """Counted, of real commits. Issue's bounds: one syncfs, 256 KiB."""
    small, large = (commit.count(root) for root in stores.grow((10, 200), str(tmp_path)).values())
    assert small["flushes"] == large["flushes"]
    assert large["flushes"]["syncfs"] == 1
    assert 0 < small["journal_bytes"] <= large["journal_bytes"] <= 256 * 1024


@pytest.mark.parametrize("kind", recovery.KINDS)
def test_a_wreck_leaves_in_flight_what_was_asked_for(tmp_path, kind):
    root = stores.grow((10,), str(tmp_path))[10]
    recovery.wreck(root, kind, 3, "salt")
    _, actions = json.loads(stores.run("reopen", root))
    assert actions == (3 if kind == "stages" else 1), "a batch is finished by one action"


def test_a_layer_of_many_files_is_one_syncfs_and_no_fsync_of_a_file(tmp_path):
    """Counted beside what a tool does that makes each file durable by itself, which the same count sees."""
    tar = str(tmp_path / "tar")
    neighbour.small_files(tar, 30)
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    ours.mkdir()
    theirs.mkdir()
    found = neighbour.flushes(neighbour.commands(str(ours), tar)["layerstore: one syncfs"])
    assert found["syncfs"] == 1
    assert set(found) == {"syncfs", "fdatasync"}
    assert found["fdatasync"] <= 3, "LMDB's commits"
    assert neighbour.flushes(neighbour.commands(str(theirs), tar)["fsync for each file"]) == {"fsync": 30}


def _figures(ratio, waits):
    each = {"n": 5, "p50": 0.01, "p99": 0.02, "max": 0.03}
    counted = {"journal_bytes": 1024 * 100, "other_bytes": 900, "flushes": {"syncfs": 1.0}}
    beside = {"ways": {"look-up": each}, "commits": 3,
              "traced": {"rounds": 1, "flocks": 2, "futexes": 0, "waits": waits, "commits": 4}}
    return {
        "machine": {"cpu": "c", "cores": 2, "memory_gib": 1, "kernel": "k", "python": "p", "peer": None, "load": 0.0},
        "commit": {"ours": {"10": {"seconds": each, **counted}}, "ratio": ratio, "ratio_of": [10, 20], "peer": {}},
        "readers": {"layers": 5, "beside": {"nobody": beside}},
        "recovery": {"stages": {"10": {"0": each}}},
        "startup": {"layerstore --version": {**each, "p50": 0.2}},
        "neighbour": {"files": 7, "on": {"ext4": {"nothing": {"flushes": {"fsync": 20000}, "neighbour": each, "load": each}}}},
    }


def test_the_page_says_which_targets_are_met():
    good, bad = page.page(_figures(1.1, [])), page.page(_figures(1.5, ["flock(4, LOCK_EX) = 0"]))
    assert "| a commit among 20 layers / among 10 | ≤ 1.3 | 1.10 | met |" in good
    assert "| a commit among 20 layers / among 10 | ≤ 1.3 | 1.50 | **missed** |" in bad
    assert "| a reader's waits for locks | 0 | 0 | met |" in good
    assert "| a reader's waits for locks | 0 | 1 | **missed** |" in bad
    assert "| `layerstore --version` | ≤ 150 ms | 200 ms | **missed** |" in good
    assert "| nothing | 20,000 fsync | 5 |" in good
    assert "| bytes that a commit writes, at most | ≤ 256 KiB | 101 KiB | met |" in good
