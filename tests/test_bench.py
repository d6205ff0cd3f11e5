"""The bench's own parts: pairing and medians, bounds, targets, layers, clocks, the page; and the whole command once, small."""

import argparse
import contextlib
import importlib
import json
import os
import re
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from bench import bound, clock, family, flushes, layers, machine, profile, ratios, recipes, stream, tables, targets, trees, unpack_page
from bench.__main__ import MEASURES, main
from bench.compiled import compiled
from bench.page import write_page

ROOT = Path(__file__).parent.parent


def run(contender, number, wall, *, layer="small", compression="gzip", source="warm", rss=40.0, marked=False):
    return {"input": source, "layer": layer, "compression": compression, "contender": contender, "round": number, "wall": wall,
            "cpu": 2 * wall, "rss": rss, "foreign": 0.01, "marked": marked}


def result(runs, **more):
    """What ``bench.unpack`` would have returned."""
    blobs = {"gzip": {"size": 5_000_000, "digest": "sha256:0"}}
    layer = {"name": "small", "made_of": "some | packages", "files": 1234, "directories": 5, "median_size": 99, "blobs": blobs}
    names = {"ours": True, "ours-unsynced": False, "storage": False, "tar+sync": True, "umoci": False}
    return {
        "cpus": 2, "rounds": 3, "field_rounds": 1, "layers": {"small": layer}, "runs": runs, "failed": {}, "equal": {"small": []},
        "flushes": {"ours": {"syncfs": 1}, "ours-unsynced": {}, "tar+sync": None},
        "contenders": {name: {"label": f"the {name}", "version": f"{name} 1.0", "synced": synced,
                              "missing": "umoci: not installed" if name == "umoci" else None}
                       for name, synced in names.items()},
        "bounds": {"small": {"gzip": {"inflate": 0.3, "sha_blob": 0.1, "sha_tar": 0.2, "create": 0.4, "syncfs": 0.5}}}, **more,
    }


# -- ratios, bounds, targets -------------------------------------------------------------------------------------------


def test_a_ratio_is_of_the_same_round_and_its_median_is_told():
    # the machine gets ten times slower: each round's ratio is a half, whatever the medians of the sides say
    assert ratios.paired({0: 1.0, 1: 10.0, 2: 3.0}, {0: 2.0, 1: 20.0, 2: 4.0}) == ratios.Ratio(0.5, 0.5, 0.75, 3)


def test_rounds_that_only_one_side_has_count_for_nothing():
    assert ratios.paired({0: 1.0, 1: 100.0}, {0: 4.0, 2: 1.0}) == ratios.Ratio(0.25, 0.25, 0.25, 1)
    assert ratios.paired({0: 1.0}, {1: 1.0}) is None


def test_the_bound_is_the_shared_sum_or_the_longest_that_cannot_be_shared():
    parts = {"inflate": 1.0, "sha_blob": 0.5, "sha_tar": 0.5, "create": 2.0}
    assert bound.bound(parts, 2) == 2.0
    assert bound.bound(parts, 8) == 1.0    # creating can be divided, decompressing cannot
    assert bound.bound({**parts, "sha_tar": 3.0}, 8) == 3.0


def test_a_target_is_judged_by_the_median_and_on_the_layers_it_names():
    runs = [run("ours", n, wall) for n, wall in enumerate((1.0, 1.1, 5.0))] + [run("tar+sync", n, 1.2) for n in range(3)]
    runs += [{**each, "layer": "node"} for each in runs]
    found = {(each.target.other, each.layer): each for each in targets.findings(result(runs))}
    assert found["tar+sync", "small"].reached
    assert found["tar+sync", "small"].ratio.high > 1
    assert ("tar+sync", "node") not in found
    slow = targets.findings(result([run("ours", 0, 1.3), run("tar+sync", 0, 1.2)]))
    assert [each.reached for each in slow if each.target.other == "tar+sync"] == [False]


def test_the_bound_of_a_durable_one_has_a_syncfs_in_it():
    found = targets.findings(result([run("ours", 0, 2.0), run("ours-unsynced", 0, 1.5)]))
    by_other = {each.target.other: each.ratio.median for each in found}
    assert by_other == {"bound": pytest.approx(1.5 / 0.5), "bound+syncfs": pytest.approx(2.0 / 1.0)}


def test_cold_runs_are_not_mixed_with_warm_ones():
    found = targets.findings(result([run("ours", 0, 1.0), run("tar+sync", 0, 2.0), run("ours", 0, 9.0, source="cold")]))
    assert [each.ratio.median for each in found if each.target.other == "tar+sync"] == [0.5]


# -- clocks ------------------------------------------------------------------------------------------------------------


def test_a_disturbed_run_is_repeated_and_the_quietest_kept():
    runs = iter([clock.Run(1, 1, 1, 0.9), clock.Run(2, 2, 2, 0.1), clock.Run(3, 3, 3, 0.0)])
    assert clock.quiet(lambda: next(runs), 3) == clock.Run(2, 2, 2, 0.1)
    assert next(runs).wall == 3, "it was not needed"


def test_a_run_that_stays_disturbed_is_marked():
    runs = iter([clock.Run(1, 1, 1, 0.9), clock.Run(2, 2, 2, 0.3), clock.Run(3, 3, 3, 0.5)])
    assert clock.quiet(lambda: next(runs), 3) == clock.Run(2, 2, 2, 0.3, marked=True)


@pytest.fixture(scope="module")
def stopwatch(tmp_path_factory):
    return compiled(str(tmp_path_factory.mktemp("cache")), "stopwatch")


def test_memory_is_the_commands_and_not_that_of_who_started_it(stopwatch):
    ballast = bytearray(os.urandom(1 << 20) * 96)
    small = clock.once(stopwatch, "true", os.environ)
    large = clock.once(stopwatch, f"{sys.executable} -S -c 'bytearray(64 << 20).replace(b\"0\", b\"1\")'", os.environ)
    assert small.rss < 32 < 64 < large.rss
    assert len(ballast) == 96 << 20


def test_processor_time_of_children_counts_and_a_failure_is_told_with_its_words(stopwatch):
    spun = clock.once(stopwatch, f"{sys.executable} -S -c 'for _ in range(3_000_000): pass'; true", os.environ)
    assert spun.wall > 0
    assert spun.cpu > 0.01
    with pytest.raises(clock.FailedError, match="status 3: so it is"):
        clock.once(stopwatch, "echo so it is >&2; exit 3", os.environ)


def test_a_preloaded_library_makes_every_flush_void(tmp_path):
    program = ("import ctypes, os; c = ctypes.CDLL(None); f = os.open('x', os.O_CREAT | os.O_RDWR | os.O_DSYNC); os.write(f, b'1');"
               "os.fsync(f); os.fdatasync(f); c.syncfs(f); os.sync()")
    command = f"cd {tmp_path} && {sys.executable} -c \"{program}\""
    environment = {"PATH": os.environ["PATH"]}
    counted = flushes.flushes(command, environment)
    if counted is None:
        assert machine.which("strace") is None
        pytest.skip("strace is not installed")
    assert counted == {"O_SYNC opens": 1, "fdatasync": 1, "fsync": 1, "sync": 1, "syncfs": 1}
    assert flushes.flushes(command, {**environment, "LD_PRELOAD": compiled(str(tmp_path), "noflush")}) == {}


# -- layers --------------------------------------------------------------------------------------------------------------


def test_a_layer_is_the_same_whenever_it_is_made_and_its_blobs_hold_one_tar(tmp_path):
    (one,) = layers.cached(str(tmp_path / "a"), ["sample"], say=lambda _text: None)
    (other,) = layers.cached(str(tmp_path / "b"), ["sample"], say=lambda _text: None)
    assert {c: b.digest for c, b in one.blobs.items()} == {c: b.digest for c, b in other.blobs.items()}
    import layerstore

    with layerstore.open(tmp_path / "store") as store:
        for blob in one.blobs.values():
            expected = layerstore.Descriptor(digest=blob.digest, size=blob.size, media_type="")
            with store.stage(layerstore.TarDiffer(blob.path, expect=expected, diff_id=one.diff_id)) as staged:
                assert staged.output.diff_size == one.tar_size
        image = store.pull(f"oci:{layers.image(str(tmp_path / 'a'), [one], 'zstd')}:t")
        assert [layer.diff_id for layer in store.layers()] == [one.diff_id]
        assert len(image.layers) == 1


def test_a_cached_layer_is_not_made_again(tmp_path, monkeypatch):
    layers.cached(str(tmp_path), ["sample"], say=lambda _text: None)
    monkeypatch.setitem(recipes.RECIPES, "sample", None)
    said = []
    assert layers.cached(str(tmp_path), ["sample"], say=said.append)[0].files == 300
    assert said == []


def test_where_a_tool_is_missing_a_generated_tree_stands_in_and_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(recipes.machine, "which", lambda _program: None)
    monkeypatch.setitem(recipes.RECIPES, "node", recipes._or_generated(recipes._node, lambda _rng: 7, 250, "srv/app"))
    (layer,) = layers.cached(str(tmp_path), ["node"], say=lambda _text: None)
    assert layer.made_of == "GENERATED (npm is not installed)"
    assert (layer.files, layer.median_size) == (250, 7)


def test_a_streamed_layer_has_the_files_and_bytes_that_it_was_asked_for(tmp_path):
    with open(tmp_path / "tar", "wb") as file:
        stream.write(file.fileno(), "files", 2500, 700)
    with tarfile.open(tmp_path / "tar") as archive:
        members = archive.getmembers()
        assert [m.size for m in members if m.isreg()] == [700] * 2500
        assert sum(m.isdir() for m in members) == 3
        assert archive.extractfile(members[-1]).read() == stream._PIECE[:700]
    with open(tmp_path / "tar", "wb") as file:
        stream.write(file.fileno(), "files", 1, (3 << 20) + 5)
    with tarfile.open(tmp_path / "tar") as archive:
        assert archive.extractfile("d00000/f0000000").read() == stream._PIECE * 3 + stream._PIECE[:5]


@pytest.mark.parametrize("kind", stream.KINDS)
def test_a_streamed_layer_of_any_kind_has_as_many_paths_as_it_was_asked_for(kind, tmp_path):
    with open(tmp_path / "tar", "wb") as file:
        stream.write(file.fileno(), kind, 2_000, 3)
    with tarfile.open(tmp_path / "tar") as archive:
        members = [member.name for member in archive]
    paths = {path for name in members for path in (name, *map(str, Path(name).parents))} - {"."}
    files = {"files": 2_002, "one directory": 2_001, "implied directories": 2_001, "symbolic links": 2_002, "attributes": 2_002,
             "replaced": 2_001, "deep": 2_008}
    assert len(paths) == files.get(kind, 2_000)
    assert (len(members) > len(set(members))) == (kind == "replaced")


def test_trees_that_differ_in_anything_but_attributes_are_told_apart(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name / "d").mkdir(parents=True)
        (tmp_path / name / "d" / "file").write_text("same")
        (tmp_path / name / "link").symlink_to("d")
        for path in ("d/file", "d"):
            os.utime(tmp_path / name / path, (1, 1))
        os.utime(tmp_path / name / "link", (1, 1), follow_symlinks=False)
    one, other = str(tmp_path / "a"), str(tmp_path / "b")
    assert trees.differences(one, other) == []
    (tmp_path / "b" / "d" / "file").write_text("Same")
    os.utime(tmp_path / "b" / "d" / "file", (1, 1))
    assert trees.differences(one, other) == ["d/file: contents"]
    os.chmod(tmp_path / "b" / "d", 0o700)
    (tmp_path / "b" / "more").touch()
    assert [line.partition(":")[0] for line in trees.differences(one, other)] == ["more", "d", "d/file"]


# -- the page ------------------------------------------------------------------------------------------------------------


def test_a_table_refuses_a_row_of_another_width_and_escapes_bars():
    assert tables.table(("a", "b"), [("x|y", "1")]) == "| a | b |\n|---|---:|\n| x\\|y | 1 |\n"
    with pytest.raises(ValueError, match="1 cells under 2 heads"):
        tables.table(("a", "b"), [("x",)])


RUNS = [run("ours", n, 1.0 + n / 10) for n in range(3)] + [run("storage", n, 1.5, marked=n == 1) for n in range(3)] + [
    run("ours-unsynced", n, 0.6) for n in range(3)]


def test_the_page_names_who_is_missing_and_says_of_every_target_whether_it_is_reached():
    text = unpack_page.page(result(RUNS, failed={"tar+sync": "no such option"}), None)
    assert "| the umoci | **missing** (umoci: not installed) | not counted |" in text
    assert ("| both unsynced: layerstore / containers-storage | ≤ 0.45 | 0.40 (0.40–0.40) on `small`, gzip; 1 of 1 reach it | "
            "reached |") in text
    assert "≤ 0.55 | 0.73 (0.67–0.80) on `small`, gzip; 0 of 1 reach it | **not reached** |" in text
    assert "| the storage | 1.50 |" in text
    assert "1 × syncfs" in text
    assert "| the ours-unsynced | ours-unsynced 1.0 | none |" in text
    assert "1 of 9 runs were disturbed" in text
    assert "tar+sync **failed**: no such option" in text
    assert "The tree of `small` is the same as GNU tar's" in text


def test_a_tree_that_differs_from_gnu_tars_is_told():
    assert "**differs from GNU tar's**: usr: mode" in unpack_page.page(result(RUNS, equal={"small": ["usr: mode"]}), None)


def test_the_page_is_written_from_the_results_that_are_there(tmp_path):
    facts = {"processor": "2 × abacus", "date": "2026-01-01"}
    (tmp_path / "unpack.json").write_text(json.dumps({"machine": facts, "quick": True, **result(RUNS)}))
    (tmp_path / "memory.json").write_text(json.dumps({"machine": facts, "cannot": "no root here"}))
    text = write_page(tmp_path, tmp_path / "page.md", MEASURES)
    assert (tmp_path / "page.md").read_text() == text
    assert "2 × abacus; 2026-01-01" in text
    assert "## Unpacking a layer\n\n*A quick run" in text
    assert text.index("## What was promised, and what is\n\n| ") < text.index("## Unpacking a layer")
    assert "## memory\n\nNot measured: no root here." in text
    assert "Opening" not in text


@pytest.mark.parametrize(("end", "said"), [(KeyboardInterrupt(), "stopped"), (machine.CannotError("the disk is full"), "the disk is full")])
def test_what_was_found_before_a_run_ended_early_is_kept_and_said_to_be_a_part(tmp_path, monkeypatch, end, said):
    def measure(options):
        options.keep(result(RUNS))
        raise end

    monkeypatch.setattr("bench.unpack.measure", measure)
    with contextlib.suppress(KeyboardInterrupt):
        assert main(["run", "unpack", "--out", str(tmp_path)]) == 1
    text = write_page(tmp_path, tmp_path / "page.md", MEASURES)
    assert f"*Not finished: {said}.*" in text
    assert "| the storage | 1.50 |" in text


def test_the_picture_shows_everybody_who_ran_and_the_same_figures_give_the_same_bytes(tmp_path):
    pytest.importorskip("matplotlib")
    text = unpack_page.page(result(RUNS), tmp_path / "performance")
    assert "](performance/unpack.svg)" in text
    drawn = (tmp_path / "performance" / "unpack.svg").read_bytes()
    assert b"the storage" in drawn
    assert b"the umoci" not in drawn
    unpack_page.page(result(RUNS), tmp_path / "again")
    assert (tmp_path / "again" / "unpack.svg").read_bytes() == drawn


def test_without_matplotlib_the_page_says_that_there_is_no_picture(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert "No picture: matplotlib is not installed" in unpack_page.page(result(RUNS), tmp_path)


@pytest.mark.parametrize("name", MEASURES)
def test_every_measure_says_what_it_is_and_has_the_three_functions(name):
    module = importlib.import_module(MEASURES[name])
    assert len(module.__doc__) > 80
    assert all(callable(getattr(module, each)) for each in ("arguments", "measure", "page"))


def test_memory_and_image_are_told_beside_their_targets():
    from bench import image, memory

    runs = [{"kind": "files", "verb": "apply", "files": n, "size": 20, "rss": rss, "wall": 1.0}
            for n, rss in ((1000, 30.0), (10_000, 50.0), (100_000, 151.0))]
    runs += [{"kind": "one file", "verb": "apply", "files": 1, "size": n << 20, "rss": rss, "wall": 1.0}
             for n, rss in ((8, 30.0), (16, 40.0), (32, 44.0))]
    runs += [{"kind": "deep", "verb": verb, "files": 1000, "size": 20, "rss": rss, "wall": 1.0}
             for verb, rss in (("apply", 60), ("check", 61.4))]
    text = memory.page({"runs": runs}, None)
    assert "| 1,000: deep | 60 | 61 | 1.00 |" in text
    assert "| peak memory of any layer, apply (files) | ≤ 150 MiB | 151 MiB | **not reached** |" in text
    assert "| peak memory of any layer, check (deep) | ≤ 150 MiB | 61 MiB | reached |" in text
    assert "| peak memory, with 10 times the files | ≤ 1.25 times | 3.02 times | **not reached** |" in text
    assert "| peak memory, with a file 2 times as large | ≤ 1.25 times | 1.10 times | reached |" in text
    ways = {"pull": {"label": "at once", "missing": None}, "one by one": {"label": "apart", "missing": None},
            "skopeo": {"label": "skopeo", "missing": "skopeo: not installed"}}
    runs = [{"way": way, "round": n, "wall": wall, "rss": 50.4, "marked": False}
            for n in range(3) for way, wall in (("pull", 4.0), ("one by one", 5.0))]
    text = image.page({"layers": ["base", "small"], "ways": ways, "runs": runs}, None)
    assert "| skopeo | **missing** (skopeo: not installed) | 0 | – |" in text
    assert "| an image pulled at once / its layers one by one | ≤ 0.85 | 0.80 (0.80–0.80) | reached |" in text


def test_the_least_is_what_the_first_image_has_nowhere_once_and_what_gives_the_tar_back():
    def layer(blob, entries, split):
        return family._Layer(blob, 1000, {"entries": entries}, 500, 20, split)

    old = {"type": "reg", "digest": "d:old", "offset": 0, "endOffset": 100}
    new = {"type": "reg", "digest": "d:new", "offset": 110, "endOffset": 150}
    large = [{"type": "reg", "digest": "d:large", "chunkDigest": "d:old", "offset": 200, "endOffset": 300},
             {"type": "chunk", "chunkDigest": "d:zeros", "chunkType": "zeros", "offset": 250},
             {"type": "chunk", "chunkDigest": "d:end", "offset": 250}]
    found = {"first": [layer("base", [old], 7)], "second": [layer("base", [old], 7), layer("top", [old, new, *large, new], 7)]}
    made = family._form(found)
    assert made["least_of"] == {"chunks": 40 + 50, "tables": 20, "headers": 7}
    assert made["size"] == 1000
    found["second"][1] = layer("top", [old, new, *large], 0)
    assert family._form(found)["least_of"]["headers"] == 500 - 8 - (100 + 40 + 100), "what lies between"


def test_what_a_check_costs_is_told_by_pairs_of_one_round():
    from bench import checking

    runs = [{"sha256sum": 1.0, "content": 1.0 + n, "pull alone": 1.0 + n, "pull beside": 2.0 + n} for n in range(3)]
    result = {"workers": 2, "layers": ["base"], "runs": runs, "structure": {"layers": 20_000, "runs": [9.0, 11.0, 9.5], "cpu": [8.0]}}
    assert [(measured, reached) for _, _, measured, reached in checking.targets(result)] == [
        ("0.50 (0.33–1.00)", False), ("1.50 (1.33–2.00)", True), ("9.50", True)]
    assert "| structure of 20,000 layers, processor | 8.00 |" in checking.page(result, None)


def test_a_familys_second_image_is_told_beside_its_targets():
    from bench import partial

    forms = {"today": {"size": 9_000, "least": 1_000, "least_of": {"chunks": 800, "tables": 150, "headers": 50}}}
    runs = [{"way": way, "round": n, "wall": wall, "cpu": 1.0, "marked": False}
            for n in range(3) for way, wall in (("parts", 1.0), ("full", 2.0), ("skopeo", 4.0))]
    found = {"quick": False, "family": {"made_by": "skopeo", "forms": forms}, "images": [[{"name": "a"}], [{"name": "b"}]],
             "fetched": {"parts": 1_040, "full": 9_000}, "wire": {"parts": 1_060, "full": 9_900}, "runs": runs}
    text = partial.page(found, None)
    assert "| bytes of blobs fetched / the least, form of today | ≤ 1.05 | 1.040 | reached |" in text
    assert "| bytes over the wire / the least, form of today | ≤ 1.05 | 1.060 | **not reached** |" in text
    assert "| a family's second image in parts / our full pull | ≤ 0.4 | 0.50 (0.50–0.50) | **not reached** |" in text
    assert "| a family's second image in parts / skopeo's full pull | ≤ 0.4 | 0.25 (0.25–0.25) | reached |" in text
    assert not [row for row in partial.targets({**found, "quick": True}) if "full pull" in row[0]]


def test_the_familys_second_image_is_told_by_the_speed_of_the_network():
    from bench import network

    walls = {100: {"parts": 4.0, "full": 8.0, "skopeo": 12.0}, 1_000: {"parts": 3.0, "full": 3.0, "skopeo": 4.0}}
    runs = [{"rate": rate, "way": way, "round": n, "wall": wall, "cpu": 1.0, "marked": n == 2}
            for n in range(3) for rate, by in walls.items() for way, wall in by.items()]
    found = {"quick": False, "rounds": 3, "rates": [100, 1_000], "runs": runs, "wire": {"parts": 1_060, "full": 9_900}}
    text = network.page(found, None)
    assert "| 100 Mbit/s | 4.00 | 8.00 | 12.0 | 0.50 (0.50–0.50) | 0.33 (0.33–0.33) |" in text
    assert "| 1,000 Mbit/s | 3.00 | 3.00 | 4.00 | 1.00 (1.00–1.00) | 0.75 (0.75–0.75) |" in text
    assert "| a family's second image in parts / skopeo's full pull, 100 Mbit/s | ≤ 0.4 | 0.33 (0.33–0.33) | reached |" in text
    assert "6 of 18 runs were disturbed" in text
    assert network.targets({**found, "quick": True}) == []


SENDING = """
import socket, threading, time
from bench.local_registry import own_loopback

def seconds():
    with socket.create_server(("127.0.0.1", 0)) as server:
        def send():
            with server.accept()[0] as connection:
                connection.sendall(bytes(2_000_000))
        thread = threading.Thread(target=send)
        begun = time.monotonic()
        with socket.create_connection(server.getsockname()) as connection:
            thread.start()
            while connection.recv(1 << 20):
                pass
        thread.join()
        return time.monotonic() - begun

quick = seconds()
with own_loopback(8):
    slow = seconds()
print(quick, slow, seconds())
"""


@pytest.mark.root
def test_a_narrow_loopback_lets_so_much_through_and_is_left_again():
    """Two megabytes at 8 Mbit/s are two seconds, less what the bucket holds; elsewhere they are milliseconds."""
    done = subprocess.run([sys.executable, "-c", SENDING], cwd=ROOT, check=True, capture_output=True, text=True)
    before, within, after = map(float, done.stdout.split())
    assert within > 1.5 and within > 2 * before and within > 2 * after


def test_a_section_from_another_machine_or_day_says_so(tmp_path):
    facts = {"processor": "2 × abacus", "date": "2026-01-02"}
    for name, machine_, verb in (("memory", facts, "apply"), ("store", {**facts, "date": "2026-01-03"}, "")):
        run_ = {"verb": verb, "kind": "files", "files": 1, "size": 1, "rss": 1.0, "wall": 1.0}
        own = {"runs": [run_]} if verb else {"figures": {
            "machine": {"cores": 2, "cpu": "abacus", "memory_gib": 1, "kernel": "6", "python": "3", "peer": None, "load": 0.0},
            "startup": {"layerstore --version": {"n": 3, "p50": 0.1, "p99": 0.2, "max": 0.2}}}}
        (tmp_path / f"{name}.json").write_text(json.dumps({"machine": machine_, "quick": False, **own}))
    text = write_page(tmp_path, tmp_path / "page.md", MEASURES)
    assert text.count("*Measured on another machine or day than what is above: 2026-01-03.*") == 1
    assert text.index("another machine") > text.index("## A store as it grows")


def test_of_memory_the_kinds_are_chosen_by_name(capsys):
    from bench.__main__ import parser

    assert parser().parse_args(["run", "memory", "--kinds", "files,deep"]).kinds == ("files", "deep")
    assert "hard links" in parser().parse_args(["run", "memory"]).kinds
    with pytest.raises(SystemExit):
        parser().parse_args(["run", "memory", "--kinds", "files,shallow"])
    assert "there is no kind 'shallow'" in capsys.readouterr().err


def test_a_measure_of_the_store_begins_where_there_are_no_figures(tmp_path, monkeypatch):
    """``bench.store`` adds to what is there."""
    from bench import growing
    from bench.store import __main__ as store_command

    def run(command, **_how):
        store_command.measure(["startup"], {}, str(tmp_path), command[command.index("--json") + 1])
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(store_command, "_each", lambda *_: iter([("startup", {"layerstore --version": {"p50": 0.1}})]))
    monkeypatch.setattr(growing.subprocess, "run", run)
    monkeypatch.setattr(store_command.figures, "machine", dict)
    found = growing.measure(argparse.Namespace(cache=str(tmp_path), quick=True))
    assert found["figures"]["startup"] == {"layerstore --version": {"p50": 0.1}}


def test_what_a_store_costs_as_it_grows_becomes_a_section_of_the_page():
    from bench import growing

    facts = {"cores": 2, "cpu": "abacus", "memory_gib": 1, "kernel": "6", "python": "3", "peer": None, "load": 0.0}
    started = {"layerstore --version": {"n": 3, "p50": 0.1, "p99": 0.2, "max": 0.2}}
    text = growing.page({"figures": {"machine": facts, "startup": started}}, None)
    assert [line for line in text.splitlines() if line.startswith("#")] == [
        "## A store as it grows, and while it is in use", "### Targets", "### The command line"]
    assert "| `layerstore --version` | ≤ 150 ms | 100 ms | met |" in text


# -- all of it -------------------------------------------------------------------------------------------------------------


@pytest.mark.root
def test_a_second_run_with_the_same_cache_is_refused_and_leaves_no_mount(tmp_path):
    program = ("from bench import disk, machine\n"
               f"with disk.private({str(tmp_path)!r}, gib=0.1):\n"
               "    try:\n"
               f"        with disk.private({str(tmp_path)!r}, gib=0.1): pass\n"
               "    except machine.CannotError as error: print(error)\n")
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stdout == "another run is under way with this cache\n", done.stderr
    assert str(tmp_path) not in Path("/proc/self/mounts").read_text()


@pytest.mark.root
def test_a_disk_that_fills_is_made_again_and_no_directory_is_used_twice(tmp_path):
    program = ("import os\n"
               "from bench import disk\n"
               f"with disk.private({str(tmp_path)!r}, gib=0.1) as d:\n"
               "    first = d.new(); open(first + '/big', 'wb').write(bytes(30 << 20))\n"
               "    d.room_for(10 << 20, 10); print(os.path.exists(first))\n"
               "    d.room_for(60 << 20, 10); print(os.path.exists(first), d.new() != first)\n"
               "    try: d.room_for(1 << 30, 10)\n"
               "    except disk.machine.CannotError as error: print(error)\n")
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stdout == ("True\nFalse True\n1024 MiB and 10 inodes do not fit into the private file system\n"), done.stderr


@pytest.mark.root
def test_the_command_measures_us_and_gnu_tar_on_a_private_file_system_and_their_trees_are_equal(tmp_path):
    command = [sys.executable, "-m", "bench", "run", "unpack", "--layers", "sample", "--compressions", "gzip", "--rounds", "2",
               "--contenders", "ours", "ours-unsynced", "tar+sync", "tar", "--tries", "1", "--disk-gib", "0.25",
               "--cache", str(tmp_path / "cache"), "--out", str(tmp_path / "out")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "out" / "unpack.json").read_text())
    assert "cannot" not in found, found
    assert found["equal"] == {"sample": []}
    assert found["failed"] == {}
    who = [(each["round"], each["contender"]) for each in found["runs"]]
    assert sorted(who) == [(n, c) for n in range(2) for c in ("ours", "ours-unsynced", "tar", "tar+sync")]
    assert who[0] != who[4], "each round begins with another one"
    assert all(each["wall"] > 0 and each["cpu"] > 0 and each["rss"] > 0 for each in found["runs"])
    assert all(seconds >= 0 for seconds in found["bounds"]["sample"]["gzip"].values())
    if machine.which("strace"):
        assert found["flushes"]["ours-unsynced"] == {}
        assert found["flushes"]["ours"]["syncfs"] == 1
    assert "### The physical bound" in (tmp_path / "out" / "performance.md").read_text()
    assert str(tmp_path) not in Path("/proc/self/mounts").read_text()
    loops = subprocess.run(["losetup", "-a"], capture_output=True, text=True, check=False).stdout
    assert str(tmp_path) not in loops


@pytest.mark.root
def test_sandboxes_are_measured_and_their_mounts_are_gone_with_the_child(tmp_path):
    from bench import forks

    program = "import json, sys; from pathlib import Path; from bench import forks; forks.FILES, forks._OPENINGS = 60, 1; " \
              "print(json.dumps(forks.forks(Path(sys.argv[1]), 5)))"
    done = subprocess.run([sys.executable, "-c", program, tmp_path], cwd=ROOT, capture_output=True, text=True, check=True)
    text = forks.page({**json.loads(done.stdout), "count": 5, "files": 60}, None)
    assert text.count(" ms | ") >= 10
    assert re.search(r"a sandbox with that file [1-9][\d,]+ bytes, a copy [1-9]", text)
    assert str(tmp_path) not in Path("/proc/self/mountinfo").read_text()


# -- where the time goes -----------------------------------------------------------------------------------------------


def test_what_a_process_says_of_itself_adds_up_to_all_that_was_measured_of_it():
    report = {"watched_from": 100.0, "begun": 100.25, "ended": 101.0, "start": 0.25, "pipeline": 0.25, "end": 0.125,
              "threads": {"layerstore-read": 0.5}, "children": 0.25}
    found = profile.told(report, clock.Run(1.5, 1.5, 40.0, 0.0))
    assert found["phases"] == {"start": 0.25, "pipeline": 0.75, "end": 0.5}
    assert found["cpu"] == {"main: start": 0.25, "main: parse, make what is large": 0.25, "main: end": 0.125,
                            "read and decompress": 0.5, "hash blob and tar": 0.0, "hash large files": 0.0,
                            "feed processes": 0.0, "processes that make small files": 0.25, "exit": 0.125}


def test_shares_are_by_what_a_shared_object_is_for_and_no_module_of_c_counts_as_python():
    said = (" 40.00% ;[kernel.kallsyms]   \n 30.00% ;libpython3.11.so.1.0\n 20.00% ;isal_zlib.cpython-311-x86_64-linux-gnu.so\n"
            "  5.00% ;python3.12\n  4.00% ;libc.so.6\n  1.00% ;something.cpython-311-x86_64-linux-gnu.so\n")
    assert profile.shares_of(said) == {"kernel": 0.4, "Python": 0.35, "ISA-L": 0.2, "libc": 0.04, "other": 0.01}


def test_a_profile_without_perf_says_so_and_tells_the_rest():
    cpu = dict.fromkeys(profile._ROWS, 0.125)
    run = {"layer": "base", "compression": "zstd", "wall": 2.0, "total": 1.0, "cpu": cpu, "marked": True,
           "phases": dict.fromkeys(profile._PHASES, 0.5)}
    text = profile.page({"rounds": 1, "hertz": 9, "runs": [run], "objects": [], "no_perf": "perf is not installed"}, None)
    assert "| `base`, zstd | 0.500 | 0.500 | 0.500 | 2.00 |" in text
    assert "1 of 1 were disturbed" in text
    assert "could not be measured: perf is not installed." in text


@pytest.mark.root
def test_a_profile_of_a_small_layer_finds_every_phase_and_thread_and_says_what_perf_could_not(tmp_path):
    command = [sys.executable, "-m", "bench", "run", "profile", "--layers", "sample", "--compressions", "gzip", "--rounds", "1",
               "--tries", "1", "--disk-gib", "0.25", "--cache", str(tmp_path / "cache"), "--out", str(tmp_path / "out")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads((tmp_path / "out" / "profile.json").read_text())
    (run,) = found["runs"]
    assert all(value > 0 for value in run["phases"].values())
    for row in ("main: start", "main: parse, make what is large", "main: end", "read and decompress", "hash blob and tar"):
        assert run["cpu"][row] > 0, row
    assert (found["no_perf"] is None) == bool(found["objects"])
    for each in found["objects"]:
        assert sum(each["shares"].values()) == pytest.approx(1, abs=0.05)
        assert each["shares"]["Python"] > 0
    assert "## Where the time of an apply goes" in (tmp_path / "out" / "performance.md").read_text()


@pytest.mark.root
def test_the_contender_without_privilege_has_none(tmp_path):
    from types import SimpleNamespace

    from bench import peers

    place = peers.Place(str(tmp_path / "disk"), str(tmp_path / "run"), str(tmp_path))
    os.mkdir(place.path)
    info = tarfile.TarInfo("owned")
    info.uid = 1000
    with tarfile.open(tmp_path / "layer.tar", "w") as archive:
        archive.addfile(info)
    ordinary = peers.contenders()["ours-ordinary"]
    assert ordinary.missing() is None
    ordinary.prepare(place)
    subprocess.run(ordinary.command(place, SimpleNamespace(path=str(tmp_path / "layer.tar"))), shell=True, check=True,
                   env=peers.environment(place, ordinary), capture_output=True)
    made = os.path.join(ordinary.tree(place), "owned")
    assert os.lstat(made).st_uid == 0
    assert os.getxattr(made, "user.containers.override_stat") == b"1000:0:0644:file"
