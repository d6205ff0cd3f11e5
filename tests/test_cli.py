"""The command line's contract: commands, JSON, exit statuses, errors in two lines."""

import json
import os
import shutil
import subprocess
import sys

import pytest

import imagemaker
import layerstore
import treediff
from fuzz import nasties
from layerstore.cli import output
from storekit import image


def run(root, *arguments, status=0, **environment):
    done = subprocess.run(
        [sys.executable, "-m", "layerstore", *(["--root", str(root)] if root else []), *map(str, arguments)],
        capture_output=True, text=True, check=False, env={**os.environ, **environment},
    )
    assert done.returncode == status, (done.returncode, done.stdout, done.stderr)
    return done


def read(root, *arguments, **options):
    return json.loads(run(root, *arguments, "--json", **options).stdout)


@pytest.fixture
def pulled(root, tmp_path):
    made = image(tmp_path)
    run(root, "pull", made.reference, "--name", "app")
    return made


def test_pull_prints_the_id_and_progress_goes_to_standard_error(root, tmp_path):
    made = image(tmp_path)
    done = run(root, "pull", made.reference)
    assert done.stdout == made.config_digest[7:] + "\n"
    assert "staged" in done.stderr


def test_the_last_line_of_a_pull_says_what_was_fetched_and_what_was_saved(root, tmp_path):
    made = image(tmp_path)
    whole = sum(each.size for each in made.layers)
    first = run(root, "pull", made.reference).stderr.splitlines()[-1]
    assert first == f"fetched {output.size(whole)} of {output.size(whole)}, found locally 0 B, saved 0 B"
    again = run(root, "pull", made.reference).stderr.splitlines()[-1]
    assert again == f"fetched 0 B of {output.size(whole)}, found locally 0 B, saved {output.size(whole)}"


def test_a_pull_tells_the_same_as_json(root, tmp_path):
    made = image(tmp_path)
    told = json.loads(run(root, "pull", "--json", made.reference).stdout)["transfer"]
    assert (told["fetched"], told["resumed"], told["found_locally"], told["saved"]) == (told["size"], 0, 0, 0)
    assert [each["diff_id"] for each in told["layers"]] != []
    assert {each["state"] for each in told["layers"]} == {"staged"}


def test_images_is_an_array_of_objects(root, pulled):
    (found,) = read(root, "images")
    assert {"id", "names", "layers"} <= set(found)
    assert found["names"] == ["app"]
    assert found["id"] == pulled.config_digest[7:]


def test_layers_is_an_array_of_objects(root, pulled):
    found = read(root, "layers")
    assert [layer["diff_id"] for layer in sorted(found, key=lambda x: pulled.diff_ids.index(x["diff_id"]))] == list(pulled.diff_ids)
    assert all({"id", "parent", "diff_id", "state"} <= set(layer) for layer in found)
    assert {layer["state"] for layer in found} == {"committed"}


def test_create_makes_an_empty_store_with_a_map_of_ids(root):
    run(root, "create", "--uid-map", f"0:{os.geteuid()}:1", "--gid-map", f"0:{os.getegid()}:1")
    config = json.loads((root / "store.json").read_text())
    assert config["id_map"] == {"uid": [[0, os.geteuid(), 1]], "gid": [[0, os.getegid(), 1]]}
    assert config["overlay_form"] == "user"
    assert read(root, "images") == []


@pytest.mark.parametrize("arguments", [
    ["--uid-map", "0:1"], ["--uid-map", "0:1:x"], ["--uid-map", "0:1:0"], ["--overlay-form", "other"],
])
def test_create_refuses_a_map_that_cannot_be(root, arguments):
    run(root, "create", *arguments, status=2)
    assert not (root / "store.json").exists()


def test_create_does_not_touch_a_store_that_is_there(root):
    run(root, "create")
    before = (root / "store.json").read_bytes()
    assert "already" in run(root, "create", "--uid-map", "0:1:1", status=2).stderr
    assert (root / "store.json").read_bytes() == before


def test_an_empty_store_lists_empty_arrays(root):
    run(root, "recover", status=1)
    run(root, "gc")
    assert read(root, "images") == read(root, "layers") == []


@pytest.mark.parametrize("which", ["name", "id", "prefix"])
def test_show_takes_a_name_an_id_or_a_prefix(root, pulled, which):
    image_id = pulled.config_digest[7:]
    shown = read(root, "show", {"name": "app", "id": image_id, "prefix": image_id[:10]}[which])
    assert (shown["kind"], shown["id"]) == ("image", image_id)
    layer = read(root, "show", shown["layers"][0][:12])
    assert (layer["kind"], layer["diff_id"]) == ("layer", pulled.diff_ids[0])


def test_where_something_is_written_a_prefix_is_refused(root, pulled):
    done = run(root, "rm", pulled.config_digest[7:20], status=2)
    assert "hint" in done.stderr
    assert len(read(root, "images")) == 1
    run(root, "rm", "app")
    assert read(root, "images") == read(root, "layers") == []


def test_a_name_is_given_moved_only_when_asked_and_taken_away(root, pulled, tmp_path):
    run(root, "tag", "app", "stable")
    assert read(root, "show", "stable")["id"] == read(root, "show", "app")["id"]
    other = image(tmp_path / "other", layers=1)
    run(root, "pull", other.reference, "--name", "next")
    run(root, "tag", "next", "stable", status=1)
    run(root, "tag", "next", "stable", "--replace")
    assert read(root, "show", "stable")["id"] == other.config_digest[7:]
    run(root, "untag", "stable")
    run(root, "show", "stable", status=1)
    run(root, "untag", "stable", status=1)


def test_leases_are_listed_and_can_be_let_go_of(root, pulled, tmp_path):
    layer = read(root, "images")[0]["layers"][0]
    with layerstore.open(root) as store:
        store.take_lease("build", [layer])
    assert [(each["name"], each["layers"]) for each in read(root, "leases")] == [("build", [layer])]
    assert run(root, "leases").stdout.startswith("build\t")
    assert read(root, "leases", "--drop", "build") == []
    assert "no lease" in run(root, "leases", "--drop", "build", status=1).stderr


@pytest.mark.root
def test_mounts_are_listed_until_they_are_unmounted(root, pulled, tmp_path):
    (tmp_path / "m").mkdir()
    run(root, "mount", "app", tmp_path / "m", "--writable")
    try:
        (listed,) = read(root, "mounts")
        assert (listed["target"], listed["writable"], listed["mounted"]) == (str(tmp_path / "m"), True, True)
        assert run(root, "mounts").stdout.split("\t")[:2] == [str(tmp_path / "m"), "writable"]
    finally:
        run(root, "unmount", tmp_path / "m", "--keep-upper")
    assert run(root, "mounts").stdout.split("\t")[1] == "kept"


def test_extract_gives_the_merged_tree(root, pulled, tmp_path):
    run(root, "extract", "app", tmp_path / "out")
    assert sorted(os.listdir(tmp_path / "out")) == ["layer1", "layer2", "shared"]
    assert (tmp_path / "out" / "shared" / "file").read_bytes() == b"from 2"
    run(root, "extract", "app", tmp_path / "out", status=2)


@pytest.mark.root
@pytest.mark.parametrize("writable", [False, True])
def test_mount_shows_what_extract_gives_and_unmount_ends_it(root, pulled, tmp_path, writable):
    target = tmp_path / "mnt"
    target.mkdir()
    run(root, "extract", "app", tmp_path / "out")
    run(root, "mount", "app", target, *(["--writable"] if writable else []))
    try:
        # directories that only the archive's names imply have no times of their own
        assert not [d for d in treediff.differences(tmp_path / "out", target) if "mtime" not in str(d)]
        if writable:
            (target / "new").write_text("x")
            (target / "layer1").unlink()
        else:
            with pytest.raises(OSError, match="Read-only"):
                (target / "new").write_text("x")
        layer = read(root, "images")[0]["layers"][0]
        assert "mount" in run(root, "rm", layer, status=1).stderr, "a mounted layer cannot go"
        run(root, "rm", "app")
        assert len(read(root, "layers")) == 3
    finally:
        run(root, "unmount", target)
    assert os.listdir(target) == []
    assert os.listdir(root / "uppers") == []
    run(root, "gc", "--grace", "0")
    assert read(root, "layers") == []
    run(root, "unmount", target, status=1)


@pytest.mark.root
def test_a_writable_mounts_upper_survives_a_lost_mount_and_is_taken_up_again(root, pulled, tmp_path):
    target = tmp_path / "mnt"
    target.mkdir()
    run(root, "mount", "app", target, "--writable")
    (target / "precious").write_text("data")
    subprocess.run(["umount", str(target)], check=True)    # a reboot, as far as the store can tell
    run(root, "recover")
    run(root, "mount", "app", target, "--writable")
    try:
        assert (target / "precious").read_text() == "data"
    finally:
        run(root, "unmount", target)


def test_check_is_sound_or_exits_3_and_names_the_file(root, pulled):
    assert read(root, "check", "--content")["sound"] is True
    layer = read(root, "layers")[0]["id"]
    path = next(p for p in (root / "layers" / layer / "diff").rglob("*") if p.is_file())
    path.write_bytes(b"rot")
    assert read(root, "check", "--content", status=3)["findings"]
    assert path.name in run(root, "check", "--content", status=3).stdout
    run(root, "check")


def test_recover_says_what_it_did_and_a_dry_run_what_it_would(root, tmp_path):
    made = image(tmp_path)
    run(root, "pull", made.reference, status=-9, LAYERSTORE_FAULT="publish.rename:after:kill:2")
    planned = read(root, "recover", "--dry-run")
    assert planned["planned_only"]
    assert {a["do"] for a in planned["actions"]} == {"finish"}
    assert read(root, "images") == [], "reading commands recover nothing"
    done = read(root, "recover")
    assert done["actions"]
    assert read(root, "recover")["actions"] == []
    assert len(read(root, "images")) == 1


def test_the_journal_can_be_read_offline_from_a_copy_of_journal_alone(root, pulled, tmp_path):
    run(root, "rm", "app")
    shutil.copytree(root / "journal", tmp_path / "copy")
    for path in (root, tmp_path / "copy"):
        records = read(None, "journal", "log", path)
        assert records[0]["entity"] == "journal"
        assert [r["seq"] for r in records] == list(range(1, len(records) + 1))
        assert read(None, "journal", "verify", path)["sound"] is True
        replayed = read(None, "journal", "replay", path)
        assert replayed["identical"] is True
        assert {r["state"] for r in replayed["recovery"]} == {"gone"}
        before = next(r["seq"] for r in records if r["trigger"] == "delete") - 1
        then = read(None, "journal", "state", path, "--at", before)
        assert [i["names"] for i in then["images"]] == [["app"]]
        assert read(None, "journal", "state", path)["images"] == []


def test_the_journal_can_be_read_from_bare_segments(root, pulled, tmp_path):
    import layerstore

    with layerstore.open(root) as store:
        store.checkpoint(archive=True)
    segments = sorted((root / "journal" / "segments").iterdir())
    found = read(None, "journal", "state", *segments)
    assert [i["names"] for i in found["images"]] == [["app"]]
    assert read(None, "journal", "verify", *segments)["sound"] is True
    data = bytearray(segments[0].read_bytes())
    data[len(data) // 2] ^= 1
    segments[0].write_bytes(bytes(data))
    run(None, "journal", "log", *segments, status=3)


def test_a_catalog_that_is_not_what_the_log_says_is_damage(root, pulled):
    path = root / "journal" / "data.mdb"
    data = path.read_bytes()
    at = data.rfind(b"committed")
    path.write_bytes(data[:at] + b"kommitted" + data[at + 9:])
    run(None, "journal", "verify", root, status=3)


@pytest.mark.parametrize(("arguments", "status"), [
    (["frobnicate"], 2), (["pull"], 2), (["pull", "nonsense"], 2), (["pull", "oci:/nowhere"], 1), (["show", "nope"], 1),
    (["--no-such-option"], 2),
])
def test_an_error_is_one_line_what_and_one_line_what_to_do(root, arguments, status):
    run(root, "gc")
    done = run(root, *arguments, status=status)
    assert "Traceback" not in done.stderr
    if arguments[0] in ("show",) or arguments[-1].startswith(("oci:", "nonsense")):
        what, hint = done.stderr.strip().splitlines()
        assert what.startswith("layerstore: ")
        assert hint.startswith("  hint: ")


def test_a_traceback_only_with_debug(root):
    assert "Traceback" in run(root, "--debug", "show", "nope", status=1).stderr


def test_without_a_root_it_is_a_usage_error():
    done = subprocess.run([sys.executable, "-m", "layerstore", "images"], capture_output=True, text=True, check=False,
                          env={k: v for k, v in os.environ.items() if k != "LAYERSTORE_ROOT"})
    assert done.returncode == 2
    assert "--root" in done.stderr


def test_apply_takes_a_tar_or_a_directory(root, tmp_path):
    (tmp_path / "l.tar").write_bytes(imagemaker.make_tar({"f": b"1"}))
    base = run(root, "apply", tmp_path / "l.tar", "--name", "base").stdout.strip()
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "g").write_text("2")
    run(root, "apply", tmp_path / "d", "--parent", "base", "--name", "top")
    shown = read(root, "show", "top")
    assert shown["chain"][0] == base


def test_an_ordinary_user_stages_and_extracts_and_is_told_so_when_mounting(pulled, tmp_path):
    """In a forked child that becomes nobody (or, run by an ordinary user, as that user)."""
    import layerstore
    from layerstore import errors
    from storekit import in_child

    with layerstore.open(tmp_path / "warm") as store:   # nobody may not be able to read what is imported late
        store.pull(pulled.reference)
    open_to_all = tmp_path / "open"
    shutil.copytree(pulled.path, open_to_all / "image")
    (open_to_all / "mnt").mkdir()
    os.chmod(open_to_all, 0o777)
    for path in (tmp_path, *tmp_path.parents):
        if os.geteuid() == 0 and path != path.parent and not os.stat(path).st_mode & 0o001:
            os.chmod(path, os.stat(path).st_mode | 0o001)

    def child():
        if os.geteuid() == 0:
            os.setgroups([])
            os.setgid(65534)
            os.setuid(65534)
        with layerstore.open(open_to_all / "mine") as store:
            store.pull(f"oci:{open_to_all}/image:latest", names=["app"])
            assert store.check(content=True).sound
            with pytest.raises(errors.PrivilegeError) as caught:
                store.mount("app", open_to_all / "mnt")
            assert "layerstore extract" in caught.value.hint
            assert store.mounts() == []
            store.extract("app", open_to_all / "out")
            assert (open_to_all / "out" / "shared" / "file").read_bytes() == b"from 2"

    assert in_child(child) == 0


def imported(*arguments):
    """The modules that a command has imported when it ends."""
    code = ("import sys\nfrom layerstore.cli import main\nmain(sys.argv[1:])\n"
            "print(*sys.modules, sep='\\n', file=sys.stderr)")
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True)
    return set(done.stderr.split())


def test_starting_up_imports_only_what_the_command_needs(root, pulled):
    """What takes its time to start is counted in modules."""
    assert not {"layerstore.store", "layerstore.model", "lmdb", "rich.console"} & imported("--version")
    listing = imported("--root", str(root), "layers")
    assert "layerstore.store" in listing
    assert not {"rich.console", "rich.progress", "layerstore.cli.journal"} & listing
    assert not {"layerstore.verbs.pull", "layerstore.verbs.stage", "layerstore.trees.unpack", "layerstore.verbs.check", "shutil", "secrets"} & listing


def test_a_writable_open_imports_every_verb_so_that_none_is_imported_half_way(root, pulled):
    from layerstore import store

    taken = imported("--root", str(root), "gc")
    assert {verb._name for verb in store._VERBS} <= taken


@pytest.mark.parametrize("command", ["apply", "pull"])
def test_a_command_that_makes_a_layer_imports_what_it_needs_and_no_more_before_it_begins(root, tmp_path, command):
    made = image(tmp_path)
    code = ("import sys\nfrom layerstore import store\nfrom layerstore.cli import main\n"
            "begin = store.open_for\n"
            "def begun(*args, **more):\n    opened = begin(*args, **more)\n    early.update(sys.modules)\n    return opened\n"
            "early, store.open_for = set(), begun\nmain(sys.argv[1:])\n"
            "print('early', *early)\nprint('late', *sys.modules.keys() - early)")
    what = made.layer_path(0) if command == "apply" else made.reference
    done = subprocess.run(
        [sys.executable, "-c", code, "--root", str(root), command, what], capture_output=True, text=True, check=True)
    early, late = (set(line.split()[1:]) for line in done.stdout.splitlines()[-2:])
    assert {f"layerstore.verbs.{command}", "layerstore.differs.tar"} <= early
    assert not {"layerstore.verbs.check", "layerstore.verbs.repair", "layerstore.verbs.push"} & (early | late)
    assert not {name for name in late if name.startswith("layer")}


def test_images_looks_only_at_the_layers_of_images(root, pulled):
    """Its cost is that of the images, however many layers there are beside them."""
    code = ("import sys\nfrom layerstore.cli import main\nfrom layerstore.store import Store\n"
            "Store.layers = None\nsys.exit(main(sys.argv[1:]))")
    done = subprocess.run([sys.executable, "-c", code, "--root", str(root), "images"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "\t3\t" in done.stdout


def test_on_a_terminal_there_is_a_table_with_a_heading(root, pulled):
    leader, follower = os.openpty()
    try:
        command = [sys.executable, "-m", "layerstore", "--root", str(root), "images"]
        subprocess.run(command, stdout=follower, check=True, env={**os.environ, "COLUMNS": "120", "TERM": "dumb"})
        shown = os.read(leader, 65536).decode()
    finally:
        os.close(leader)
        os.close(follower)
    heading, row = shown.splitlines()[:2]
    assert heading.split() == ["ID", "NAMES", "LAYERS", "SIZE", "CREATED"]
    assert row.split()[1:3] == ["app", "3"]


def test_on_a_terminal_a_pull_shows_its_progress(root, tmp_path):
    leader, follower = os.openpty()
    try:
        command = [sys.executable, "-m", "layerstore", "--root", str(root), "pull", image(tmp_path).reference]
        subprocess.run(command, stderr=follower, stdout=subprocess.DEVNULL, check=True,
                       env={**os.environ, "COLUMNS": "120", "TERM": "xterm"})
        shown = os.read(leader, 1 << 20).decode()
    finally:
        os.close(leader)
        os.close(follower)
    assert "staged" in shown
    assert "\x1b[" in shown


EVIL = b"\x1b]0;owned\x07\x1b[31m\npath-content forged: \xff\xe2\x80\xae[bold]"


def test_a_name_in_an_archive_cannot_command_the_terminal_or_forge_a_line(root, tmp_path):
    (tmp_path / "evil.tar").write_bytes(nasties.file(EVIL, b"x") + nasties.END)
    layer = run(root, "apply", tmp_path / "evil.tar").stdout.strip()
    with open(os.path.join(os.fsencode(root), b"layers", layer.encode(), b"diff", EVIL), "wb") as file:
        file.write(b"y")
    found = run(root, "check", "--content", status=3).stdout
    assert len(found.splitlines()) == 3   # its time changed, too
    assert "\\x1b]0;owned\\x07\\x1b[31m\\npath-content forged: \\xff\\u202e[bold]" in found
    assert found.replace("\n", "").isprintable()


def test_an_error_that_quotes_an_archive_stays_in_its_two_lines(root, tmp_path):
    (tmp_path / "evil.tar").write_bytes(nasties.file(EVIL + b"/..", b"x") + nasties.END)
    said = run(root, "apply", tmp_path / "evil.tar", status=1).stderr
    assert len(said.splitlines()) == 2
    assert said.replace("\n", "").isprintable()


def test_a_table_on_a_terminal_shows_brackets_as_they_are_and_nothing_that_a_terminal_obeys(monkeypatch, capsys):
    from layerstore.cli import output

    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    output.table(("NAME",), [("[red]\x1b[31m",)])
    assert "[red]\\x1b[31m" in capsys.readouterr().out


def test_a_limit_is_named_by_its_error_and_set_by_the_command_line(root, tmp_path):
    (tmp_path / "two.tar").write_bytes(nasties.file(b"a") + nasties.file(b"b") + nasties.END)
    said = run(root, "apply", tmp_path / "two.tar", "--limit", "max_entries=1", status=1).stderr
    assert "more than 1 (max_entries)" in said
    run(root, "apply", tmp_path / "two.tar", "--limit", "max_entries=2")
    made = image(tmp_path)
    assert "(max_depth)" in run(root, "pull", made.reference, "--limit", "max_depth=1", status=1).stderr
    for wrong in ("max_entries", "entries=1", "max_entries=many"):
        assert "max_xattrs" in run(root, "pull", made.reference, "--limit", wrong, status=2).stderr


def test_a_process_that_ends_with_a_command_does_not_look_for_cycles_once_more_and_others_are_left_as_they_are():
    code = ("import gc\nfrom layerstore.cli import main, program\nbefore = gc.get_threshold(), gc.get_freeze_count()\n"
            "main(['nonsense'])\nprint((gc.get_threshold(), gc.get_freeze_count()) == before)\n"
            "print(program(['nonsense']), gc.get_threshold()[0] > before[0][0], gc.get_freeze_count() > 10_000)\n")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "True\n2 True True\n", done.stderr
