"""A view: what it shows, what it keeps, how it is brought up to date and taken away, and what a kill leaves of it."""

import dataclasses
import errno
import os
import shutil
import tempfile
from pathlib import Path

import pytest

import layerstore
from crash.beside import viewreading
from layerstore import errors
from layerstore.cli.commands import run
from layerstore.formats.containers_storage.names import big_data_file, image_names, link_name
from layerstore.testing import copy_store, kill_at, passings, start_child
from storekit import add, differ, failing_at, image, observed


@pytest.fixture
def at(tmp_path):
    return tmp_path / "view"


def pull(store, tmp_path, name, **options):
    return store.pull(image(tmp_path, name=name, salt=name, **options).reference, names=[f"{name}:1"])


def shown(path):
    return {name for names in viewreading.read_view(path).values() for name in names}


# -- what is shown -----------------------------------------------------------------------------------------------


def test_a_view_shows_the_committed_images_and_nothing_else(store, tmp_path, at):
    pulled = pull(store, tmp_path, "one")
    add(store, {"alone": b"no image's"})
    with store.stage(differ({"staged": b"1"})):
        report = store.view(at)
    assert viewreading.read_view(at) == {pulled.id: ("localhost/one:1",)}
    assert report.images == (pulled.id,) and set(report.layers) == set(pulled.layers) == set(report.added)


def test_an_image_with_a_quarantined_layer_is_left_out_and_named(root, tmp_path, at):
    with layerstore.open(root) as store:
        bad, good = pull(store, tmp_path, "bad"), pull(store, tmp_path, "good")
        store.view(at)
    shutil.rmtree(root / "layers" / bad.layers[1])
    with layerstore.open(root) as store:   # finds it, and quarantines the layer
        report = store.view(at)
    assert list(report.left_out) == [bad.id] and bad.layers[1] in report.left_out[bad.id]
    assert viewreading.read_view(at) == {good.id: ("localhost/good:1",)}


def test_the_same_images_give_the_same_view_whatever_the_store(tmp_path):
    for name in ("a", "b"):
        with layerstore.open(tmp_path / name, clock=lambda: 1_700_000_000_123_456_789) as store:
            pull(store, tmp_path, "one")
            store.view(tmp_path / f"view-{name}")
    first, second = (viewreading.files(tmp_path / f"view-{name}") for name in "ab")
    differing = {path for path in first if first[path] != second.get(path)}
    assert first.keys() == second.keys()
    assert {os.path.basename(path) for path in differing} == {"view.json", "diff"}


def test_the_same_image_with_another_manifest_is_shown_with_that_one(store, tmp_path, at):
    plain = image(tmp_path, name="plain", compression=("none",))
    pulled = store.pull(plain.reference)
    store.view(at)
    store.delete_image(pulled.id)
    again = store.pull(image(tmp_path, name="packed", compression=("gzip",)).reference)
    assert (again.id, again.manifest_digest == pulled.manifest_digest) == (pulled.id, False)
    store.view(at)
    assert viewreading.read_view(at)
    assert viewreading.read_json(f"{at}/overlay-images/images.json")[0]["digest"] == again.manifest_digest


@pytest.mark.parametrize(("name", "called"), [
    ("demo", "localhost/demo:latest"), ("demo:1", "localhost/demo:1"), ("a/b:1", "localhost/a/b:1"),
    ("example.test/a:2", "example.test/a:2"), ("example.test:5000/a", "example.test:5000/a:latest"),
    ("localhost/a:1", "localhost/a:1"), ("Upper:1", None), ("a@b", None), ("a:b:c", None), ("example.test/", None),
])
def test_a_name_is_completed_as_podman_would_or_left_out(name, called):
    assert image_names([name]).get(name) == called


def test_of_two_names_that_come_to_the_same_the_whole_one_has_it():
    assert image_names(["demo:1", "localhost/demo:1"]) == {"localhost/demo:1": "localhost/demo:1"}
    assert image_names(["demo", "demo:latest"]) == {"demo": "localhost/demo:latest"}


def test_links_are_26_characters_and_keys_are_files_as_the_field_has_them():
    assert link_name("0" * 64) == link_name("0" * 64) != link_name("1" * 64) and len(link_name("0" * 64)) == 26
    assert big_data_file("manifest") == "manifest"
    assert big_data_file("zstd-chunked-manifest") == "=enN0ZC1jaHVua2VkLW1hbmlmZXN0"


def test_everybody_may_read_a_view_whatever_the_umask(store, tmp_path, at):
    pull(store, tmp_path, "one")
    before = os.umask(0o077)
    try:
        store.view(at)
    finally:
        os.umask(before)
    for parent, folders, names in os.walk(at):
        for name in [*folders, *names]:
            path = os.path.join(parent, name)
            if not os.path.islink(path) and name != "view.json":
                assert os.stat(path).st_mode & 0o777 == (0o755 if os.path.isdir(path) else 0o644), path


# -- what it keeps, and bringing it up to date -------------------------------------------------------------------


def test_what_a_view_shows_cannot_be_deleted_until_it_is_refreshed(store, tmp_path, at):
    pulled = pull(store, tmp_path, "one")
    store.view(at)
    store.delete_image(pulled.id)
    with pytest.raises(errors.InUseError, match=r"lease view:.*/view@"):
        store.delete_layer(pulled.layers[-1])
    store.collect_garbage(grace=0)
    assert shown(at) == {"localhost/one:1"}
    report = store.view(at)
    assert report.removed == tuple(sorted(pulled.layers)) and shown(at) == set() and not store.leases()
    assert len(store.collect_garbage(grace=0).layers) == len(pulled.layers)


def test_a_refresh_makes_only_what_is_new(store, tmp_path, at):
    pull(store, tmp_path, "one")
    store.view(at)
    before = {path: os.lstat(at / path).st_ino for path in viewreading.files(at)}
    two = pull(store, tmp_path, "two")
    report = store.view(at)
    assert set(report.added) == set(two.layers) and shown(at) == {"localhost/one:1", "localhost/two:1"}
    after = {path: os.lstat(at / path).st_ino for path in viewreading.files(at)}
    rewritten = {path for path in before if after.get(path) != before[path]}
    assert {path.split("/")[0] for path in rewritten} <= {"current", "generations"}


def test_a_refresh_without_a_change_writes_nothing(store, tmp_path, at):
    pull(store, tmp_path, "one")
    store.view(at)
    with observed([]) as passed:
        assert store.view(at).added == ()
    assert [point for point in passed if not point.startswith(("reader.", "tree."))] == ["view.current.sync"]


def test_a_layer_that_somebody_took_out_of_the_view_is_put_back(store, tmp_path, at):
    pulled = pull(store, tmp_path, "one")
    store.view(at)
    shutil.rmtree(at / "overlay" / pulled.layers[1])
    assert store.view(at).added == (pulled.layers[1],)
    assert shown(at) == {"localhost/one:1"}


def take(path):
    """Whatever it is."""
    shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


def without_generation(path):
    """What lies in a view, whatever its generation is called."""
    current = os.path.basename(os.readlink(path / "current"))
    return {name.replace(current, "CURRENT"): content for name, content in viewreading.files(path).items() if name != "current"}


def test_whatever_somebody_took_out_of_a_view_a_refresh_puts_back(store, tmp_path, at):
    for name in ("one", "two"):
        pull(store, tmp_path, name)
    store.view(at)
    whole = without_generation(at)
    paths = sorted(set(viewreading.files(at)) - {"view.json"})
    for kind in ("/lower", "/diff", ".tar-split.gz", "layers.lock", "images.lock", "overlay/l/", "generations/", "/manifest"):
        assert any(kind in path for path in paths), kind
    lost = []
    for path in paths:
        if not os.path.lexists(at / path):   # the generation is another by now
            path = path.replace(path.split("/")[1], os.path.basename(os.readlink(at / "current")))
        take(at / path)
        store.view(at)
        if without_generation(at) != whole:
            lost.append(path)
        viewreading.read_view(at)
    assert not lost and len(paths) > 50
    with observed([]) as passed:
        store.view(at)
    assert "view.switch.rename" not in passed


def test_a_view_without_what_says_whose_it_is_is_nobodys(store, tmp_path, at):
    pull(store, tmp_path, "one")
    store.view(at)
    (at / "view.json").unlink()
    for verb in (store.view, store.remove_view):
        with pytest.raises(errors.InvalidArgumentError):
            verb(at)
    assert shown(at) == {"localhost/one:1"}


def test_what_is_put_back_takes_nothing_else_of_the_layer_away_meanwhile(store, tmp_path, at):
    layer = pull(store, tmp_path, "one").layers[1]
    store.view(at)
    before = {path: os.lstat(at / path).st_ino for path in viewreading.files(at)}
    os.unlink(at / f"overlay-layers/{layer}.tar-split.gz")
    assert store.view(at).added == (layer,)
    after = {path: os.lstat(at / path).st_ino for path in viewreading.files(at)}
    assert {path for path in before if after[path] != before[path]} <= {"current", f"overlay-layers/{layer}.tar-split.gz"}


def test_documents_of_a_view_that_are_not_what_they_were_are_replaced_by_the_switch(store, tmp_path, at):
    pull(store, tmp_path, "one")
    store.view(at)
    whole = without_generation(at)
    for name, text in (("layers.json", b"[]"), ("images.json", b"["), ("images.json", b'[{"id": "x", "names": []}]')):
        with open(at / "current" / name, "wb") as file:
            file.write(text)
        store.view(at)
        assert without_generation(at) == whole and shown(at) == {"localhost/one:1"}


def test_a_view_whose_present_state_cannot_be_read_loses_nothing(store, tmp_path, at, monkeypatch):
    """A disk that fails is not an empty view: what it shows would be taken for left over."""
    pull(store, tmp_path, "one")
    store.view(at)
    whole = viewreading.files(at)
    real = os.readlink

    def failing(path, **options):
        if path == "current":
            raise OSError(errno.EIO, "Input/output error")
        return real(path, **options)

    monkeypatch.setattr(os, "readlink", failing)
    with pytest.raises(errors.IoError):
        store.view(at)
    monkeypatch.undo()
    assert viewreading.files(at) == whole


def test_everything_is_on_disk_before_the_switch_and_nothing_is_removed_before_it(store, tmp_path, at):
    one = pull(store, tmp_path, "one")
    store.view(at)
    store.delete_image(one.id)
    pull(store, tmp_path, "two")
    with observed([]) as passed:
        store.view(at)
    made = [n for n, point in enumerate(passed) if point in ("view.mkdir", "view.file", "view.link", "view.tar-split")]
    removed = [n for n, point in enumerate(passed) if point == "view.sweep"]
    leases = [n for n, point in enumerate(passed) if point == "txn.lease"]
    order = [passed.index(point) for point in ("view.sync", "view.switch.rename", "view.switch.sync")]
    assert leases[0] < min(made) and max(made) < order[0] and order == sorted(order)
    assert order[-1] < min(removed) and max(removed) < leases[1] and len(leases) == 2


@pytest.mark.root
def test_where_the_store_is_on_another_file_system_that_is_synced_too_before_the_switch(store, tmp_path):
    pull(store, tmp_path, "one")
    with tempfile.TemporaryDirectory(dir="/dev/shm") as memory:
        assert os.stat(memory).st_dev != os.stat(store.root).st_dev
        with observed([]) as passed:
            store.view(f"{memory}/view")
        assert passed.index("view.sync") < passed.index("view.store.sync") < passed.index("view.switch.rename")


@pytest.mark.parametrize("point", ["view.sync", "view.switch.rename", "view.file", "view.tar-split", "txn.lease"])
def test_a_refresh_that_fails_leaves_the_view_as_it_was(store, tmp_path, at, point):
    pull(store, tmp_path, "one")
    store.view(at)
    pull(store, tmp_path, "two")
    with failing_at(point, "EIO"), pytest.raises(errors.LayerstoreError):
        store.view(at)
    assert shown(at) == {"localhost/one:1"}


def test_a_refresh_whose_new_layer_has_rotted_fails_by_its_name_and_shows_what_was_shown(store, tmp_path, at):
    """podman itself would find the checksums right: they would be made of what is there."""
    pull(store, tmp_path, "one")
    store.view(at)
    bad = pull(store, tmp_path, "two").layers[1]
    with open(f"{store.root}/layers/{bad}/diff/layer1", "r+b") as file:
        file.write(b"T")   # it is "two1"
    with pytest.raises(errors.LayerDamagedError, match=bad):
        store.view(at)
    assert shown(at) == {"localhost/one:1"}


def test_layers_that_are_deleted_while_a_view_is_planned_are_not_shown(store, tmp_path, at, monkeypatch):
    from layerstore.verbs import view

    pull(store, tmp_path, "stays")
    goes = pull(store, tmp_path, "goes")
    planned, looked = [], view._shown

    def looking(handle):
        found = looked(handle)
        if not planned:
            store.delete_image(goes.id)
        planned.append(len(found[0]))
        return found

    monkeypatch.setattr(view, "_shown", looking)
    store.view(at)
    assert planned == [2, 1] and shown(at) == {"localhost/stays:1"}


def test_two_processes_that_refresh_at_once_leave_one_whole_view(root, tmp_path, at):
    with layerstore.open(root) as store:
        pull(store, tmp_path, "one")

    def refresh():
        with layerstore.open(root) as store:
            for n in range(5):
                store.view(at)
                store.set_name(f"name-{os.getpid()}-{n}", "one:1")

    children = [start_child(refresh) for _ in range(2)]
    assert [os.waitpid(pid, 0)[1] for pid in children] == [0, 0]
    with layerstore.open(root) as store:
        store.view(at)
    assert len(shown(at)) == 11


# -- whose it is, and taking it away -----------------------------------------------------------------------------


def test_removing_a_view_leaves_nothing_of_it(store, tmp_path, at):
    pull(store, tmp_path, "one")
    store.view(at)
    store.remove_view(at)
    assert not at.exists() and not store.leases()
    with pytest.raises(errors.InvalidArgumentError, match="no view"):
        store.remove_view(at)


def test_a_view_that_was_removed_by_hand_lets_go_of_its_layers_when_it_is_removed(store, tmp_path, at):
    pull(store, tmp_path, "one")
    store.view(at)
    shutil.rmtree(at)
    assert store.leases()
    store.remove_view(at)
    assert not store.leases()


def test_a_directory_with_something_in_it_is_not_taken(store, at):
    at.mkdir()
    (at / "precious").write_text("x")
    with pytest.raises(errors.InvalidArgumentError, match="not empty"):
        store.view(at)
    with pytest.raises(errors.InvalidArgumentError):
        store.remove_view(at)
    assert os.listdir(at) == ["precious"]


def test_what_podman_makes_in_an_empty_directory_is_no_hindrance(store, tmp_path, at):
    (at / "overlay-images").mkdir(parents=True)
    (at / "overlay-images" / "images.lock").touch()
    (at / "overlay-layers").mkdir()
    pull(store, tmp_path, "one")
    store.view(at)
    assert shown(at) == {"localhost/one:1"}


def test_another_stores_view_is_not_touched(store, tmp_path, at):
    pull(store, tmp_path, "one")
    store.view(at)
    with layerstore.open(tmp_path / "other") as other:
        for verb in (other.view, other.remove_view):
            with pytest.raises(errors.InvalidArgumentError, match="another store"):
                verb(at)
    assert shown(at) == {"localhost/one:1"}


def test_a_view_inside_the_store_is_refused(store, root):
    with pytest.raises(errors.InvalidArgumentError, match="inside the store"):
        store.view(root / "layers" / "view")


def test_the_view_of_a_store_that_was_moved_is_refused_until_it_is_removed(root, tmp_path, at):
    with layerstore.open(root) as store:
        pull(store, tmp_path, "one")
        store.view(at)
    os.rename(root, tmp_path / "moved")
    with layerstore.open(tmp_path / "moved") as store:
        with pytest.raises(errors.InvalidArgumentError, match="no longer"):
            store.view(at)
        store.remove_view(at)
        store.view(at)
    assert shown(at) == {"localhost/one:1"}


def test_a_store_whose_attributes_its_podman_could_not_read_is_refused(tmp_path, at):
    from layerstore.system import kernel

    other = "user" if kernel.has_trusted_xattrs() else "trusted"
    if other == "trusted":
        pytest.skip("a store of that form cannot be made by an ordinary user")
    with layerstore.open(tmp_path / "store", overlay_form=other) as store, pytest.raises(
            errors.PrivilegeError, match="deleted files"):
        store.view(at)


def test_the_command_says_what_is_shown_and_removes_it(root, tmp_path, at, capsys):
    with layerstore.open(root) as store:
        pull(store, tmp_path, "one")
    assert run(["--root", str(root), "view", str(at)]) == 0
    assert capsys.readouterr().out == f"1 images, 3 layers at {at}\n"
    assert run(["--root", str(root), "view", str(at), "--json"]) == 0
    assert '"added": []' in capsys.readouterr().out
    assert run(["--root", str(root), "view", str(at), "--remove"]) == 0
    assert not at.exists()


# -- kills -------------------------------------------------------------------------------------------------------


@dataclasses.dataclass
class Scene:
    """A store and a view beside it, put back to where they were before each kill: a view leads to absolute paths."""

    home: str

    @property
    def store(self):
        return f"{self.home}/store"

    @property
    def view(self):
        return f"{self.home}/view"

    def keep(self):
        shutil.rmtree(f"{self.home}.kept", ignore_errors=True)
        copy_store(self.home, f"{self.home}.kept")

    def back(self):
        shutil.rmtree(self.home)
        copy_store(f"{self.home}.kept", self.home)

    def do(self, verb):
        with layerstore.open(self.store) as store:
            getattr(store, verb)(self.view)


@pytest.fixture
def scene(tmp_path):
    """One image in the view that stays, one that goes, and one in the store that is to come."""
    with tempfile.TemporaryDirectory(dir="/dev/shm", prefix="layerstore-view-") as memory:
        yield made_scene(Scene(f"{memory}/scene"), tmp_path)


def made_scene(made, tmp_path):
    os.mkdir(made.home)
    with layerstore.open(made.store) as store:
        pull(store, tmp_path, "stays", layers=2)
        goes = pull(store, tmp_path, "goes", layers=2)
        store.view(made.view)
        store.delete_image(goes.id)
        pull(store, tmp_path, "comes", layers=2)
    made.keep()
    return made


OLD, NEW = {"localhost/stays:1", "localhost/goes:1"}, {"localhost/stays:1", "localhost/comes:1"}


def effects(scene, verb):
    """Where to kill: after an effect is before the next one, for nothing is written between."""
    scene.back()
    points = passings(lambda: scene.do(verb))
    return [each for each in points if each.when == "before"] + points[-1:]


def explored(scene, verb, states):
    """Kill *verb* before every effect, and after the last: the view is one of *states*; done again, the last, without a rest."""
    points = effects(scene, verb)
    whole = viewreading.files(scene.view) if os.path.isdir(scene.view) else None
    seen = []
    for passing in points:
        scene.back()
        kill_at(passing, lambda: scene.do(verb))
        now = shown(scene.view) if os.path.isdir(scene.view) else set()
        assert now in states, f"killed at {passing}: {now}"
        seen.append(states.index(now))
        scene.do(verb)
        assert (viewreading.files(scene.view) if os.path.isdir(scene.view) else None) == whole, f"killed at {passing}"
        with layerstore.open(scene.store) as store:
            held = {layer for lease in store.leases() for layer in lease.layers}
            assert held == {layer for each in store.images() for layer in each.layers if whole is not None}
            assert store.check().sound
    assert seen == sorted(seen) and set(seen) == set(range(len(states))), "there is one moment at which it changes"
    return len(points)


def test_a_refresh_killed_anywhere_leaves_the_old_view_or_the_new_one(scene, record_property):
    record_property("states", explored(scene, "view", [OLD, NEW]))


def test_a_first_view_killed_anywhere_shows_nothing_or_all(scene, record_property):
    scene.do("remove_view")
    scene.keep()
    record_property("states", explored(scene, "view", [set(), NEW]))


def test_a_removal_killed_anywhere_leaves_the_view_or_an_empty_one(scene, record_property):
    points = effects(scene, "remove_view")
    for passing in points:
        scene.back()
        kill_at(passing, lambda: scene.do("remove_view"))
        assert not os.path.isdir(scene.view) or shown(scene.view) in (OLD, set()), f"killed at {passing}"
        with layerstore.open(scene.store) as store:
            if os.path.isdir(scene.view) or store.leases():
                store.remove_view(scene.view)
            assert not os.path.exists(scene.view) and not store.leases()
    record_property("states", len(points))


def test_putting_back_what_was_lost_may_be_killed_anywhere(scene, record_property):
    """Some of it lies in what is shown already: a part of a file there would be taken for the whole by the next."""
    scene.do("view")
    whole = without_generation(Path(scene.view))
    for pattern in ("overlay/*/link", "overlay/*/lower", "overlay-layers/*.gz", "images/*/manifest", "overlay-images/images.lock"):
        os.unlink(sorted(Path(scene.view).glob(pattern))[-1])
    scene.keep()
    points = effects(scene, "view")
    assert {"view.restore.write", "view.restore.rename"} <= {each.point for each in points}
    for passing in points:
        scene.back()
        kill_at(passing, lambda: scene.do("view"))
        scene.do("view")
        assert without_generation(Path(scene.view)) == whole, f"killed at {passing}"
    record_property("states", len(points))


@pytest.mark.root
def test_the_view_of_a_store_with_a_map_of_ids_is_made_in_its_namespace(tmp_path, at):
    with layerstore.open(tmp_path / "mapped", uid_map=[(0, 100_000, 65_536)]) as store, pytest.raises(
            errors.InvalidArgumentError, match="map of ids") as caught:
        store.view(at)
    assert "podman unshare" in caught.value.hint and not at.exists()
