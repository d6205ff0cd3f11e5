"""Staging and applying: what is promised, what is refused, and what is left."""

import errno
import os

import imagemaker
import pytest

import layerstore
from layerstore import DirectoryDiffer, LayerSpec, Limits, StageOptions, TarDiffer, default_layer_id, errors
from layerstore.verbs import claiming
from storekit import add, differ, digest, failing_at, finished, killed_at, observed, states, tar, tree_names


def test_a_tar_becomes_a_committed_layer_with_its_digests(store):
    data = tar({"hello": b"world\n"})
    with store.stage(TarDiffer(data)) as staged:
        layer = store.apply_staged_layer(staged, names=["first"])
    assert layer.created
    assert layer.state == "committed"
    assert layer.diff_id == layer.blob_digest == digest(data)
    assert layer.id == default_layer_id(None, layer.diff_id) == layer.diff_id[7:]
    assert layer.names == ("first",)
    with store.layer_paths(layer.id) as (diff,):
        assert open(os.path.join(diff, "hello"), "rb").read() == b"world\n"


def test_the_default_id_is_the_fields_chain_id():
    # checked against containers/image: sha256 of "<parent>+<diffID hex>"
    import hashlib

    parent, diff = "a" * 64, "b" * 64
    assert default_layer_id(parent, f"sha256:{diff}") == hashlib.sha256(f"{parent}+{diff}".encode()).hexdigest()


def test_a_staged_layer_is_not_visible(store):
    with store.stage(differ()) as staged:
        assert (store.layers(), states(store)) == ([], ["staging"])
        staged.seal()
        assert (store.layers(), states(store)) == ([], ["staged"])


def test_leaving_the_with_unapplied_discards_it(store, root):
    with store.stage(differ()):
        pass
    assert states(store) == []
    assert tree_names(root, "staging") == []


def test_a_failing_differ_leaves_nothing(store, root):
    class Failing:
        content_key = None

        def apply_diff(self, target):
            os.mkdir("half", dir_fd=target.diff_fd)
            raise RuntimeError("the differ failed")

    with pytest.raises(RuntimeError):
        store.stage(Failing())
    assert states(store) == []
    assert tree_names(root, "staging") == []


def test_ctrl_c_while_staging_leaves_nothing(store, root):
    class Interrupted:
        content_key = None

        def apply_diff(self, target):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        store.stage(Interrupted())
    assert tree_names(root, "staging") == []
    add(store)


def test_a_layer_stands_on_its_parent(store):
    base = add(store)
    top = add(store, {"x": b""}, parent=base.id)
    assert top.parent == base.id
    assert [layer.id for layer in store.chain(top.id)] == [base.id, top.id]


def test_applying_the_same_content_again_is_success_and_not_created(store, root):
    first, again = add(store), add(store)
    assert (again.id, again.created) == (first.id, False)
    assert tree_names(root, "layers") == [first.id]
    assert tree_names(root, "staging") == []


def test_the_same_id_with_other_content_is_refused_and_the_layer_untouched(store):
    first = add(store, id="a" * 64)
    with store.stage(differ({"other": b""})) as staged:
        with pytest.raises(errors.DuplicateLayerError):
            store.apply_staged_layer(staged, id="a" * 64)
    assert store.layer("a" * 64) == first
    assert store.check(content=True).sound


def test_a_refused_apply_leaves_the_handle_good(store):
    with store.stage(differ()) as staged:
        with pytest.raises(errors.ParentUnavailableError):
            store.apply_staged_layer(staged, parent="b" * 64)
        assert states(store) == ["staging"]
        assert store.apply_staged_layer(staged).created


def test_a_handle_is_good_for_one_apply(store):
    with store.stage(differ()) as staged:
        store.apply_staged_layer(staged)
        with pytest.raises(errors.StagedHandleError):
            store.apply_staged_layer(staged)


def test_a_handle_of_another_store_is_refused(store, tmp_path):
    with layerstore.open(tmp_path / "other") as other, other.stage(differ()) as staged:
        with pytest.raises(errors.StagedHandleError):
            store.apply_staged_layer(staged)


@pytest.mark.parametrize("bad", ["", "abc", "A" * 64, "g" * 64, "a" * 63, "a" * 65, "../" + "a" * 61, "a" * 12])
def test_an_id_that_is_not_64_hex_digits_is_refused(store, bad):
    with store.stage(differ()) as staged:
        with pytest.raises(errors.InvalidArgumentError):
            store.apply_staged_layer(staged, id=bad)
    assert store.layers() == []


@pytest.mark.parametrize("bad", ["", "-x", "a b", "x" * 256, "a\n", "f" * 64])
def test_a_name_that_cannot_be_is_refused(store, bad):
    with store.stage(differ()) as staged:
        with pytest.raises(errors.InvalidArgumentError):
            store.apply_staged_layer(staged, names=[bad])


def test_a_name_that_is_taken_is_refused_unless_it_is_to_move(store):
    first = add(store, names=["n"])
    with store.stage(differ({"b": b""})) as staged:
        with pytest.raises(errors.DuplicateNameError):
            store.apply_staged_layer(staged, names=["n"])
        second = store.apply_staged_layer(staged, names=["n"], replace_names=True)
    assert store.resolve("n") == ("layer", second.id)
    assert store.layer(first.id).names == ()


def test_big_data_is_kept_beside_the_layer_with_its_digest(store, root):
    layer = add(store, big_data={"key": b"value"})
    assert layer.big_data == {"key": digest(b"value")}
    assert open(root / "layers" / layer.id / "big-data" / "key", "rb").read() == b"value"


def test_a_failure_before_the_commit_point_rolls_back_to_staged(store):
    with store.stage(differ()) as staged:
        with failing_at("apply.big-data.write", "ENOSPC"), pytest.raises(errors.NoSpaceError):
            store.apply_staged_layer(staged, names=["n"], big_data={"k": b"v"})
        assert states(store) == ["staged"]
        assert store.apply_staged_layer(staged, names=["n"]).names == ("n",)


def test_a_failure_after_the_commit_point_is_pending_and_finished_by_the_next_open(root):
    with layerstore.open(root) as store, store.stage(differ()) as staged:
        with failing_at("publish.rename", "EIO"), pytest.raises(errors.PendingError):
            store.apply_staged_layer(staged)
        assert store.layers() == []
    with layerstore.open(root) as store:
        assert [a.do.value for a in store.recovery.actions] == ["finish"]
        assert len(store.layers()) == 1


def test_a_failing_syncfs_poisons_the_handle_and_is_not_retried(root):
    with layerstore.open(root) as store:
        with store.stage(differ(keyed=True)) as staged, store.stage(differ({"b": b""}, keyed=True)) as other:
            with failing_at("stage.sync", "EIO"), pytest.raises(errors.OutcomeUnknownError):
                store.apply_staged_layer(staged)
            for call in (lambda: store.stage(differ()), lambda: store.apply_staged_layer(other),
                         lambda: store.apply_staged_layer(staged), staged.seal):
                with pytest.raises(errors.PoisonedError):
                    call()
            assert store.layers() == []
    with layerstore.open(root) as store:
        assert sorted(a.do.value for a in store.recovery.actions) == ["sweep", "sweep"], "nobody may take them over"
        assert add(store).created


def test_an_interrupted_sync_is_not_done_again_by_the_same_handle_but_its_tree_is_taken_over_after_a_look(root):
    from layerstore.system import faults

    def interrupt(name, when):
        if (name, when) == ("stage.sync", "after"):
            raise KeyboardInterrupt

    with layerstore.open(root) as store:
        staged = store.stage(differ(keyed=True))
        previous = faults.install(interrupt)
        try:
            with pytest.raises(KeyboardInterrupt):
                store.apply_staged_layer(staged)
        finally:
            faults.install(previous)
        with pytest.raises(errors.StagedHandleError):
            store.apply_staged_layer(staged)
        with store.stage(differ(keyed=True)) as again:
            assert again.adopted
            assert store.apply_staged_layer(again).created


def test_a_batch_becomes_visible_in_one_transaction(store):
    with store.stage(differ({"a": b""})) as one, store.stage(differ({"b": b""})) as two:
        base, top = store.apply_batch([
            LayerSpec(one, id="1" * 64), LayerSpec(two, parent="1" * 64, id="2" * 64),
        ])
    assert top.parent == base.id
    with store._handle.read() as view:
        commits = [r.group for r in view.records() if r.trigger == "commit"]
    assert len(commits) == 2
    assert len(set(commits)) == 1


def test_a_batch_is_claimed_all_or_none(store):
    add(store, id="2" * 64)
    with store.stage(differ({"a": b""})) as one, store.stage(differ({"b": b""})) as two:
        with pytest.raises(errors.DuplicateLayerError):
            store.apply_batch([LayerSpec(one, id="1" * 64), LayerSpec(two, id="2" * 64)])
        assert [layer.id for layer in store.layers()] == ["2" * 64]
        assert states(store) == ["committed", "staging", "staging"]


def test_a_child_cannot_come_before_its_parent_in_a_batch(store):
    with store.stage(differ({"a": b""})) as one, store.stage(differ({"b": b""})) as two:
        with pytest.raises(errors.ParentUnavailableError):
            store.apply_batch([LayerSpec(two, parent="1" * 64, id="2" * 64), LayerSpec(one, id="1" * 64)])


def test_a_parent_claimed_as_such_cannot_be_deleted(store):
    base = add(store)
    add(store, {"x": b""}, parent=base.id)
    with pytest.raises(errors.InUseError, match="child"):
        store.delete_layer(base.id)


def test_the_parent_deleted_between_stage_and_apply_is_noticed(store):
    base = add(store)
    with store.stage(differ({"x": b""})) as staged:
        store.delete_layer(base.id)
        with pytest.raises(errors.ParentUnavailableError):
            store.apply_staged_layer(staged, parent=base.id)


def left_behind(root, *, sealed):
    """A process that was killed with a tree in hand that was staged, and sealed or not."""
    def scenario():
        with layerstore.open(root) as store:
            staged = store.stage(differ(keyed=True))
            if sealed:
                staged.seal()

    killed_at("txn.seal" if sealed else "stage.output", "after", scenario)


@pytest.mark.parametrize("sealed", [False, True])
def test_a_tree_staged_before_a_kill_is_adopted_and_its_blob_not_read_again(root, sealed):
    left_behind(root, sealed=sealed)
    read = []
    with layerstore.open(root) as store:
        assert store.recovery.clean
        with store.stage(differ(keyed=True), progress=read.append) as staged:
            assert staged.adopted
            assert store.apply_staged_layer(staged).created
    assert read == []


def in_its_place(path, change):
    """Change a file so that only its content tells."""
    times = path.stat()
    path.write_bytes(change(path.read_bytes()))
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


@pytest.mark.parametrize("sealed", [False, True])
def test_an_adopted_tree_is_hashed_again_and_not_used_if_it_rotted(root, sealed):
    left_behind(root, sealed=sealed)
    (txid,) = tree_names(root, "staging")
    in_its_place(root / "staging" / txid / "diff" / "hello", bytes.upper)
    with layerstore.open(root) as store, store.stage(differ(keyed=True)) as staged:
        assert not staged.adopted
        layer = store.apply_staged_layer(staged)
        assert store.check(content=True).sound
        assert layer.created


def torn(path):
    os.truncate(path, path.stat().st_size // 2)


@pytest.mark.parametrize("name", ["diff/hello", "manifest", "tar-split"])
@pytest.mark.parametrize("tear", [torn, lambda path: path.unlink(), lambda path: path.write_bytes(bytes(path.stat().st_size))],
                         ids=["half", "missing", "zeros"])
def test_whatever_a_loss_of_power_tore_of_a_tree_that_was_not_sealed_is_noticed_and_made_anew(root, name, tear):
    left_behind(root, sealed=False)
    (txid,) = tree_names(root, "staging")
    tear(root / "staging" / txid / name)
    with layerstore.open(root) as store:
        assert store.recovery.clean, "the tree still says that it is finished"
        with store.stage(differ(keyed=True)) as staged:
            assert not staged.adopted
            store.apply_staged_layer(staged)
        assert store.check(content=True).sound
        assert tree_names(root, "staging") == []


@pytest.mark.parametrize("tear", [torn, lambda path: path.unlink(), lambda path: path.write_bytes(b"")],
                         ids=["half", "missing", "empty"])
@pytest.mark.parametrize("name", ["output", "txid"])
def test_a_tree_that_does_not_say_whole_that_it_is_finished_and_which_it_is_is_swept(root, name, tear):
    left_behind(root, sealed=False)
    (txid,) = tree_names(root, "staging")
    tear(root / "staging" / txid / name)
    with layerstore.open(root) as store:
        assert [a.do.value for a in store.recovery.actions] == ["sweep"]
        assert tree_names(root, "staging") == []


def test_a_tree_that_was_torn_beneath_an_open_store_holds_nobody_up(store, root):
    store.stage(differ(keyed=True)).release()
    (txid,) = tree_names(root, "staging")
    torn(root / "staging" / txid / "txid")
    with store.stage(differ(keyed=True), options=StageOptions(wait=60)) as staged:
        assert not staged.adopted


def test_what_says_that_a_tree_is_finished_is_of_no_use_in_another_tree(root):
    left_behind(root, sealed=False)
    (txid,) = tree_names(root, "staging")
    said = (root / "staging" / txid / "output").read_bytes()
    killed_at("txn.begin", "after", lambda: layerstore.open(root).stage(differ({"other": b""}, keyed=True)))
    (other,) = {*tree_names(root, "staging")} - {txid}
    (root / "staging" / other / "output").write_bytes(said)
    with layerstore.open(root) as store:
        assert [(a.do.value, a.key) for a in store.recovery.actions] == [("sweep", other)]


def test_a_tree_whose_tar_is_not_what_it_says_is_not_adopted_although_every_file_fits(root, monkeypatch):
    """Nothing in the journal vouches for the diffID: the tar is made once more, and hashed."""
    from layerstore.formats import records

    real = records.output_file
    wrong = "sha256:" + "0" * 64
    with monkeypatch.context() as patched:
        patched.setattr(records, "output_file", lambda txid, output, ns: real(txid, {**output, "diff_id": wrong}, ns))
        left_behind(root, sealed=False)
    with layerstore.open(root) as store:
        assert [row["output"]["diff_id"] for row in finished(store).values()] == [wrong]
        with store.stage(differ(keyed=True)) as staged:
            assert not staged.adopted
            assert staged.output.diff_id == digest(tar({"hello": b"world\n"}))


def test_what_is_clean_in_the_cache_is_read_from_the_disk_before_a_tree_that_was_left_is_believed(root, monkeypatch):
    """After a write-back error that somebody else was told of, the cache calls pages clean that never reached the disk."""
    from layerstore.trees import left

    left_behind(root, sealed=False)
    (txid,) = tree_names(root, "staging")
    wanted = {entry.stat().st_ino for entry in (root / "staging" / txid).rglob("*") if entry.is_file()}
    assert len(wanted) == 5, "txid, diff/hello, manifest, tar-split, output"
    advised, looked_at = set(), []
    real = left.tree_problems

    def looking(*args, **options):
        looked_at.append(set(advised))
        return real(*args, **options)

    monkeypatch.setattr(left.os, "posix_fadvise", lambda fd, *_what: advised.add(os.fstat(fd).st_ino))
    monkeypatch.setattr(left, "tree_problems", looking)
    with layerstore.open(root) as store, store.stage(differ(keyed=True)) as staged:
        assert staged.adopted
    assert looked_at == [wanted]


def test_a_tree_without_a_content_key_is_not_kept_for_anybody(root):
    with layerstore.open(root) as store:
        store.stage(differ()).release()
        assert states(store) == []
        store.stage(differ({"held": b""}))
    with layerstore.open(root) as store:
        assert [a.do.value for a in store.recovery.actions] == ["sweep"]


def test_a_staged_layer_that_was_sealed_is_sealed_once_and_its_apply_syncs_no_more(store):
    with store.stage(differ()) as staged:
        staged.seal()
        staged.seal()
        assert states(store) == ["staged"]
        passed = []
        with observed(passed):
            assert store.apply_staged_layer(staged).created
        assert "stage.sync" not in passed
        with pytest.raises(errors.StagedHandleError):
            staged.seal()
    with store._handle.read() as view:
        assert [r.trigger for r in view.records()].count("seal") == 1


def test_an_apply_that_is_refused_syncs_nothing_and_one_that_fails_later_need_not_sync_again(store):
    add(store, names=["n"])
    with store.stage(differ({"b": b""})) as staged:
        with observed([]) as passed, pytest.raises(errors.DuplicateNameError):
            store.apply_staged_layer(staged, names=["n"])
        assert passed == []
        with failing_at("txn.claim", "ENOSPC") as failed, pytest.raises(errors.NoSpaceError):
            store.apply_staged_layer(staged)
        assert failed
        with observed([]) as passed:
            assert store.apply_staged_layer(staged).created
        assert "stage.sync" not in passed


def test_a_layer_that_is_there_already_is_not_synced_again(store):
    add(store)
    passed = []
    with observed(passed):
        assert not add(store).created
    assert "stage.sync" not in passed


def test_the_same_content_twice_at_once_in_one_thread_does_not_wait_for_itself(store):
    with store.stage(differ(keyed=True)) as one, store.stage(differ(keyed=True)) as two:
        base = store.apply_staged_layer(one)
        top = store.apply_staged_layer(two, parent=base.id)
    assert base.diff_id == top.diff_id
    assert base.id != top.id


def test_a_directory_becomes_a_layer(store, tmp_path):
    source = tmp_path / "source"
    (source / "sub").mkdir(parents=True)
    (source / "sub" / "file").write_bytes(b"content")
    os.symlink("sub/file", source / "link")
    with store.stage(DirectoryDiffer(source)) as staged:
        first = store.apply_staged_layer(staged)
    with store.stage(DirectoryDiffer(source)) as staged:
        assert store.apply_staged_layer(staged).id == first.id, "a directory's tar is canonical"
    with store.layer_paths(first.id) as (diff,):
        assert os.readlink(os.path.join(diff, "link")) == "sub/file"


@pytest.mark.root
def test_an_overlay_upper_directory_becomes_a_layer_with_its_whiteouts(store, tmp_path):
    upper = tmp_path / "upper"
    (upper / "opaque").mkdir(parents=True)
    os.setxattr(upper / "opaque", "trusted.overlay.opaque", b"y")
    os.mknod(upper / "removed", 0o020600, 0)
    with store.stage(DirectoryDiffer(upper)) as staged:
        layer = store.apply_staged_layer(staged)
    with store.layer_paths(layer.id) as (diff,):
        assert os.getxattr(os.path.join(diff, "opaque"), "trusted.overlay.opaque") == b"y"
        assert os.stat(os.path.join(diff, "removed")).st_rdev == 0
    assert store.check(content=True).sound


def test_a_limit_that_is_passed_names_itself_and_leaves_nothing(store, root):
    options = StageOptions(limits=Limits(max_entries=3))
    with pytest.raises(errors.LimitExceededError) as caught:
        store.stage(differ(imagemaker.many_files(10)), options=options)
    assert caught.value.limit == "max_entries"
    assert tree_names(root, "staging") == []


def test_layers_are_found_by_each_digest_and_after_a_delete_the_other_is(store):
    one, two = add(store, id="1" * 64), add(store, id="2" * 64)
    for kind, value in (("diff", one.diff_id), ("blob", one.blob_digest)):
        assert [layer.id for layer in store.layers_by_digest(value, kind=kind)] == [one.id, two.id]
    store.delete_layer(one.id)
    for kind, value in (("diff", two.diff_id), ("blob", two.blob_digest)):
        assert [layer.id for layer in store.layers_by_digest(value, kind=kind)] == [two.id]


def test_a_caller_can_write_a_differ_of_its_own(store):
    class Two:
        """Two tars, one after the other: whatever a caller can think of."""

        content_key = None

        def apply_diff(self, target):
            return TarDiffer(tar({"made": b"by a caller"})).apply_diff(target)

    with store.stage(Two()) as staged:
        assert store.apply_staged_layer(staged).entries >= 1


def test_a_layer_beside_one_that_is_there_with_its_big_data_already_is_committed(store):
    was = add(store, big_data={"k": b"v"})
    with store.stage(differ()) as again, store.stage(differ({"other": b"x"})) as new:
        there, made = store.apply_batch([LayerSpec(again, big_data={"k": b"v"}), LayerSpec(new, parent=was.id)])
    assert (there.id, there.created, made.created) == (was.id, False, True)
    assert {each.id for each in store.layers()} == {was.id, made.id}


def test_who_waits_to_promise_what_is_claimed_gives_up_in_time_and_rolls_back(store, monkeypatch):
    def in_the_way(_handle, _txn, _batch):
        raise claiming._ConflictError("image x")

    monkeypatch.setattr(claiming, "_promise", in_the_way)
    monkeypatch.setattr(claiming, "_PATIENCE_SECONDS", 0.05)
    with store.stage(differ()) as staged:
        with pytest.raises(errors.BusyError, match="image x"):
            store.apply_staged_layer(staged, big_data={"k": b"v"})
        assert states(store) == ["staged"]


def test_big_data_of_an_attempt_that_was_rolled_back_does_not_stay(store, root):
    with store.stage(differ()) as staged:
        with failing_at("apply.big-data.sync", "EDQUOT"), pytest.raises(errors.NoSpaceError):
            store.apply_staged_layer(staged, big_data={"old": b"1"})
        layer = store.apply_staged_layer(staged, big_data={"new": b"2"})
    assert tree_names(root, "layers", layer.id, "big-data") == ["new"]


def test_eio_while_big_data_is_synced_poisons_the_handle(store):
    with store.stage(differ()) as staged:
        with failing_at("apply.big-data.sync", "EIO"), pytest.raises(errors.HostError):
            store.apply_staged_layer(staged, big_data={"k": b"1"})
        with pytest.raises(errors.PoisonedError):
            store.apply_staged_layer(staged, big_data={"k": b"1"})


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC, errno.EDQUOT])
def test_a_sync_of_big_data_that_fails_poisons_before_anything_is_rolled_back(store, root, monkeypatch, number):
    def failing(fd):
        raise OSError(number, os.strerror(number))

    with store.stage(differ()) as staged:
        monkeypatch.setattr(os, "fsync", failing)
        with pytest.raises(errors.HostError):
            store.apply_staged_layer(staged, big_data={"k": b"1"})
        monkeypatch.undo()
        with pytest.raises(errors.PoisonedError):
            store.apply_staged_layer(staged, big_data={"k": b"1"})
    with store._handle.read() as view:
        assert [row["state"] for _, row in view.scan("layers")] == ["creating"], "nothing was offered for a retry"
    store.close()
    with layerstore.open(root) as reopened:
        assert [action.do.value for action in reopened.recovery.actions] == ["release"]


def test_damaged_big_data_is_found(store, root):
    layer = add(store, big_data={"k": b"value"})
    (root / "layers" / layer.id / "big-data" / "k").write_bytes(b"VALUE")
    assert [f.code for f in store.check(content=True).findings] == ["big-data-damaged"]


def test_when_the_disk_is_full_the_trash_is_emptied_for_the_next_attempt(store, root):
    store.delete_layer(add(store, {"gone": b""}).id)
    assert tree_names(root, "trash")
    with failing_at("stage.mkdir", "ENOSPC"), pytest.raises(errors.NoSpaceError):
        store.stage(differ())
    assert tree_names(root, "trash") == []


def test_a_listing_gives_each_layer_its_own_names(store):
    named = {add(store, {name: b""}, names=names).id: tuple(names)
             for name, names in (("a", ["one", "two"]), ("b", []), ("c", ["a/third"]))}
    assert {layer.id: layer.names for layer in store.layers()} == named
    assert {each: store.layer(each).names for each in named} == named
