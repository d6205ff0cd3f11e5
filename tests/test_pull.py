"""Pulling images: whole or absent, verified, nothing read twice, names never moved silently."""

import os

import imagemaker
import pytest

import layerstore
from layerstore import PullOptions, errors
from storekit import digest, failing_at, finished, image, in_child, killed_at, states, tree_names


class Watch:
    def __init__(self):
        self.states, self.read = {}, 0

    def layer(self, layer, *, state, size):
        self.states.setdefault(layer, []).append(state)

    def advance(self, layer, n):
        self.read += n


@pytest.mark.parametrize("kind", ["oci", "oci-archive", "docker-archive"])
def test_an_image_is_pulled_from_each_kind_of_source(store, tmp_path, kind):
    maker = imagemaker.Image([imagemaker.Layer({"a": b"1"}), imagemaker.Layer({"b": b"2"}, compression="none")])
    if kind == "oci":
        made = maker.write_oci(tmp_path / "i", tag="t")
    elif kind == "oci-archive":
        made = maker.write_oci_archive(tmp_path / "i.tar", tag="t")
    else:
        made = maker.write_docker_archive(tmp_path / "i.tar", "local/i:t")
    pulled = store.pull(made.reference)
    assert pulled.created
    assert pulled.id == made.config_digest[7:]
    assert [layer.diff_id for layer in store.chain(pulled.layers[-1])] == list(made.diff_ids)
    manifest, config = store.image_documents(pulled.id)
    assert digest(config) == made.config_digest
    assert config == made.config
    assert store.check(content=True).sound
    if kind != "docker-archive":
        assert manifest == made.manifest


def test_image_and_layers_become_visible_in_one_transaction(store, tmp_path):
    store.pull(image(tmp_path).reference)
    with store._handle.read() as view:
        groups = {r.group for r in view.records() if r.trigger == "commit"}
        assert len([r for r in view.records() if r.trigger == "commit"]) == 4
    assert len(groups) == 1


def test_pulling_again_reads_no_blob_and_writes_no_record(store, tmp_path):
    made = image(tmp_path)
    first = store.pull(made.reference)
    for number in range(3):
        damaged(made, number, lambda d: os.urandom(len(d)))   # so that reading one would be noticed
    with store._handle.read() as view:
        head = view.head()
    again = store.pull(made.reference)
    assert (again.id, again.created) == (first.id, False)
    with store._handle.read() as view:
        assert view.head() == head


def test_layers_that_another_image_brought_are_not_read_again(store, tmp_path):
    store.pull(image(tmp_path, name="one", layers=2).reference)
    made = imagemaker.Image([
        imagemaker.Layer({"layer0": b"0", "shared/file": b"from 0"}), imagemaker.Layer({"new": b"x"}),
    ]).write_oci(tmp_path / "two", tag="t")
    damaged(made, 0, lambda d: os.urandom(len(d)))
    watch = Watch()
    store.pull(made.reference, progress=watch)
    assert watch.states[made.diff_ids[0]] == ["present"]
    assert watch.read == made.layers[1].size


def test_a_name_is_given_and_the_default_is_the_sources_own(store, tmp_path):
    made = image(tmp_path, name="app", tag="1.0")
    assert store.pull(made.reference).names == ("app:1.0",)
    assert store.pull(made.reference, names=["x", "y"]).names == ("app:1.0", "x", "y")


def test_a_name_of_another_image_is_refused_before_anything_is_read(store, tmp_path):
    store.pull(image(tmp_path, name="one").reference, names=["n"])
    made = image(tmp_path, name="two", salt="s")
    watch = Watch()
    with pytest.raises(errors.DuplicateNameError):
        store.pull(made.reference, names=["n"], progress=watch)
    assert watch.read == 0
    moved = store.pull(made.reference, names=["n"], options=PullOptions(replace_names=True))
    assert store.resolve("n") == ("image", moved.id)


def test_the_same_layer_twice_in_one_image_is_two_layers(store, tmp_path):
    layer = imagemaker.Layer({"same": b""})
    made = imagemaker.Image([layer, layer]).write_oci(tmp_path / "i", tag="t")
    pulled = store.pull(made.reference)
    assert len(set(pulled.layers)) == 2
    assert store.check(content=True).sound


def damaged(made, number, change):
    path = made.layer_path(number)
    data = path.read_bytes()
    os.chmod(path, 0o600)
    path.write_bytes(change(data))


@pytest.mark.parametrize(("what", "change", "error"), [
    ("truncated", lambda d: d[:-20], errors.InputError),
    ("flipped", lambda d: d[:30] + bytes([d[30] ^ 1]) + d[31:], errors.InputError),
    ("longer", lambda d: d + b"junk", errors.SizeMismatchError),
    ("empty", lambda d: b"", errors.InputError),
    ("other", lambda d: os.urandom(len(d)), errors.InputError),
], ids=lambda v: v if isinstance(v, str) else "")
@pytest.mark.parametrize("number", [0, 1, 2])
def test_a_damaged_blob_is_a_typed_error_and_leaves_nothing_visible(root, tmp_path, what, change, error, number):
    made = image(tmp_path)
    damaged(made, number, change)
    with layerstore.open(root) as store:
        with pytest.raises(error) as caught:
            store.pull(made.reference)
        assert caught.value.hint
        assert store.images() == []
        assert store.layers() == []
        assert set(states(store)) <= {"staging"}
        assert len(finished(store)) == len(states(store)), "what was whole is kept for the next pull, and nothing else"
    with layerstore.open(root) as store:
        assert store.check().sound


def test_a_missing_blob_names_its_digest(store, tmp_path):
    made = image(tmp_path)
    os.unlink(made.layer_path(1))
    with pytest.raises(errors.SourceError, match=made.layers[1].digest):
        store.pull(made.reference)
    assert store.layers() == []


def test_a_wrong_diff_id_in_the_config_is_refused(store, tmp_path):
    def lie(config):
        config["rootfs"]["diff_ids"][1] = "sha256:" + "0" * 64

    made = imagemaker.Image(
        [imagemaker.Layer({"a": b"1"}), imagemaker.Layer({"b": b"2"})], edit_config=lie,
    ).write_oci(tmp_path / "i", tag="t")
    with pytest.raises(errors.DigestMismatchError):
        store.pull(made.reference)
    assert store.images() == []


def test_after_one_layer_failed_the_others_are_not_read_again(root, tmp_path):
    made = image(tmp_path)
    last = max(range(3), key=lambda n: made.layers[n].digest)   # so that others are finished before it
    whole = made.layer_path(last).read_bytes()
    damaged(made, last, lambda d: d[:-1] + bytes([d[-1] ^ 1]))
    with layerstore.open(root) as store:
        with pytest.raises(errors.InputError):
            store.pull(made.reference, options=PullOptions(workers=1))
        staged = len(finished(store))
        assert staged == 2
    made.layer_path(last).write_bytes(whole)
    watch = Watch()
    with layerstore.open(root) as store:
        store.pull(made.reference, progress=watch)
        assert sum(s[-1] in ("adopted",) for s in watch.states.values()) == staged


def test_a_kill_after_a_layer_was_staged_makes_the_next_pull_read_none_of_it(root, tmp_path):
    made = image(tmp_path)

    def scenario():
        with layerstore.open(root) as store:
            store.pull(made.reference, options=PullOptions(workers=1))

    killed_at("stage.output", "after", scenario)
    with layerstore.open(root) as store:
        (row,) = finished(store).values()
        kept = row["output"]
        watch = Watch()
        store.pull(made.reference, progress=watch)
    assert watch.states[kept["diff_id"]][-1] == "adopted"
    assert watch.read == sum(layer.size for layer in made.layers) - kept["blob_size"]


def test_a_failure_after_the_commit_point_is_pending_and_the_image_appears_at_the_next_open(root, tmp_path):
    made = image(tmp_path)
    with layerstore.open(root) as store:
        with failing_at("publish.image-file.write", "ENOSPC"), pytest.raises(errors.PendingError):
            store.pull(made.reference)
        assert store.images() == []
    with layerstore.open(root) as store:
        assert len(store.images()) == 1
        assert store.check(content=True).sound


def test_ctrl_c_while_pulling_leaves_nothing_half_made(root, tmp_path):
    made = image(tmp_path)

    class Interrupting(Watch):
        def advance(self, layer, n):
            raise KeyboardInterrupt

    with layerstore.open(root) as store:
        with pytest.raises(KeyboardInterrupt):
            store.pull(made.reference, progress=Interrupting())
        assert store.layers() == []
        assert tree_names(root, "staging") == []
        assert store.pull(made.reference).created


def test_an_image_that_was_deleted_can_be_pulled_again_before_its_trash_is_emptied(store, tmp_path):
    made = image(tmp_path)
    first = store.pull(made.reference)
    store.delete_image(first.id)
    again = store.pull(made.reference)
    assert again.created
    store.checkpoint()
    assert store.check(content=True).sound
    assert store.image(again.id).names == first.names


def test_a_store_is_pulled_into_by_a_child_while_the_parent_has_it_open(root, tmp_path):
    made = image(tmp_path)
    with layerstore.open(root) as store:
        def child():
            with layerstore.open(root) as mine:
                mine.pull(made.reference)

        assert in_child(child) == 0
        assert len(store.images()) == 1


def test_an_image_that_lies_about_a_blob_cannot_have_it_adopted_under_another_layers_id(root, tmp_path):
    """A blob that an earlier pull left staged is held to what *this* image promises of it."""
    good, evil, broken = (imagemaker.Layer({"who": who}, compression="gzip") for who in (b"good", b"evil", b"torn"))
    first = imagemaker.Image([evil, broken]).write_oci(tmp_path / "first", tag="t")
    damaged(first, 1, lambda d: d[:-1] + b"?")

    def lie(config):
        config["rootfs"]["diff_ids"][0] = good.diff_id

    second = imagemaker.Image([evil], edit_config=lie).write_oci(tmp_path / "second", tag="t")
    genuine = imagemaker.Image([good]).write_oci(tmp_path / "genuine", tag="t")
    with layerstore.open(root) as store:
        with pytest.raises(errors.InputError):
            store.pull(first.reference, options=PullOptions(workers=1))
        assert len(finished(store)) == 1, "the evil blob must have been left finished, or this shows nothing"
        with pytest.raises(errors.DigestMismatchError):
            store.pull(second.reference)
        pulled = store.pull(genuine.reference)
        with store.layer_paths(pulled.layers[0]) as (diff,):
            assert open(os.path.join(diff, "who"), "rb").read() == b"good"


def test_a_config_of_megabytes_fits(store, tmp_path):
    made = imagemaker.Image([imagemaker.Layer({"a": b""})], config={"author": "x" * (3 << 20)}).write_oci(tmp_path / "i", tag="t")
    pulled = store.pull(made.reference)
    assert store.image_documents(pulled.id)[1] == made.config
