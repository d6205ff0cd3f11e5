"""A layer's life is told from the journal: every record of it, in the table's words, archived and offline too."""

import json
import os
import pathlib
import re
import tarfile

import pytest

import imagemaker
import layerstore
from layerstore.verbs import explain
from layerstore.cli import main
from layerstore.errors import InvalidArgumentError, UnknownLayerError
from layerstore.lifecycle.states import TRANSITIONS
from storekit import add, image, killed_at

GOLDEN = pathlib.Path(__file__).parent / "golden"
ROOT = pathlib.Path(__file__).parent.parent
BASE_ID = "d" * 64


@pytest.fixture
def copied(tmp_path):
    """The frozen store: a layer was deleted and made again under its ID, the older records are archived."""
    with tarfile.open(GOLDEN / "v1" / "redo.tar.gz") as tar:
        tar.extractall(tmp_path / "golden", **({"filter": "fully_trusted"} if hasattr(tarfile, "fully_trusted_filter") else {}))
    return next((tmp_path / "golden").iterdir())


def test_a_life_of_the_frozen_store_is_told_word_for_word(copied, capsys):
    assert main(["journal", "explain", BASE_ID, str(copied)]) == 0
    assert capsys.readouterr().out == (GOLDEN / "explain.txt").read_text()


def test_a_copied_journal_alone_tells_the_same_and_so_do_its_segments_of_what_they_hold(copied, capsys):
    assert main(["journal", "explain", BASE_ID[:6], str(copied / "journal"), "--json"]) == 0
    whole = json.loads(capsys.readouterr().out)
    (segment,) = (copied / "journal" / "segments").iterdir()
    assert main(["journal", "explain", BASE_ID, str(segment), "--json"]) == 0
    part = json.loads(capsys.readouterr().out)
    assert part["steps"] == whole["steps"][:len(part["steps"])] != []


def test_every_transition_of_the_table_has_its_effects_and_every_effect_is_one_of_the_products():
    assert set(explain.BEFORE) == {(t.kind.value, t.trigger.value) for t in TRANSITIONS}
    product = "".join(path.read_text() for path in (ROOT / "src").rglob("*.py") if path.name != "explain.py")
    for points in [*explain.BEFORE.values(), *explain.AFTER.values()]:
        for point in points:
            stem = point.removesuffix(".write").removesuffix(".rename").removeprefix("txn.")
            assert f'"{point}"' in product or f'"{stem}"' in product, point


def normal(text, *ids):
    """Without what differs from run to run: txids and times."""
    for number, each in enumerate(ids):
        text = text.replace(each, f"<{number}>").replace(each[:12], f"<{number}>")
    return re.sub(r"[+-]\d+\.\d \w+", "<time>", re.sub(r"\d{4}-\d\d-\d\d [\d:.]+", "<when>", text))


def test_a_live_store_says_what_the_disk_says_now(root):
    with layerstore.open(root) as store:
        layer = add(store, {"a": b"1"}, names=["one"], big_data={"note": b"kept"})
        store.set_name("two", layer.id)
        store.take_lease("mine", [layer.id])
        life = store.explain("one")
        assert (life.kind, life.id) == ("layer", layer.id)
        assert [step.trigger for step in life.steps] == ["begin", "seal", "claim", "promise", "commit", "take", "take"]
        assert life.now == (f"tree {layer.txid[:12]}: committed; found layers/, side file right; recovery: leave (committed and in place)",)
        promise = normal(life.text(), layer.id, layer.txid).split("\n\n")[4]
        assert promise == (
            "    <time>; effects before it: apply.big-data.write · apply.big-data.sync\n"
            "     5  <when>  tree <1>: promise, creating → incomplete\n        the commit point: from here forward only"
        )
        os.unlink(os.path.join(root, "layers", layer.id, "layer"))
        assert "side file lost or torn; recovery: rewrite-side-file" in store.explain(layer.txid).now[0]


def test_what_was_deleted_is_told_by_its_id_its_tree_and_its_name(root):
    with layerstore.open(root) as store:
        layer = add(store, names=["gone"])
        store.delete_layer(layer.id)
        waiting = store.explain("gone")
        assert waiting.steps[-1].trigger == "remove"
        assert "gone; found trash/; recovery: leave" in waiting.now[0]
        store.checkpoint(archive=True)
        for reference in (layer.id, layer.id[:8], layer.txid, "gone"):
            assert store.explain(reference).steps[-1].trigger == "empty"
        assert store.explain("gone").now == (f"tree {layer.txid[:12]}: no row and no tree",)


def test_an_image_is_told_with_its_layers(root, tmp_path):
    with layerstore.open(root) as store:
        made = store.pull(image(tmp_path).reference)
        life = store.explain(made.id)
        assert life.kind == "image"
        assert [s.trigger for s in life.steps].count("commit") == len(made.layers) + 1
        assert len(life.now) == len(made.layers) + 1
        assert life.now[-1] == f"image {made.id[:12]}: committed; its side file is right"
        (root / "images" / made.id).write_bytes(b"torn")
        assert "side file is lost or torn" in store.explain(made.id).now[-1]
        store.delete_image(made.id)
        assert store.explain(made.id).now[-1] == f"image {made.id[:12]}: gone"
        store.checkpoint()
        assert store.explain(made.id).now[-1] == f"image {made.id[:12]}: no row"


def test_a_crash_and_what_recovery_did_are_part_of_the_life(root):
    killed_at("txn.begin", "after", lambda: add(layerstore.open(root)))
    (txid,) = os.listdir(root / "staging")
    with layerstore.open(root, readonly=True) as store:
        assert "staging; found staging/; recovery: sweep" in store.explain(txid).now[0]
    layerstore.open(root).close()
    with layerstore.open(root, readonly=True) as store:
        life = store.explain(txid)
    assert [step.trigger for step in life.steps] == ["begin", "sweep"]
    assert life.steps[-1].after == ("discard.unlink",)
    assert "effects after it: discard.unlink" in life.text()


def test_a_tree_without_a_row_is_said_to_be_garbage(root):
    killed_at("discard.unlink", "before", lambda: layerstore.open(root).stage(_Keyed()).discard())
    (txid,) = os.listdir(root / "staging")
    with layerstore.open(root, readonly=True) as store:
        assert store.explain(txid).now == (f"tree {txid[:12]}: no row, but it lies in staging/: the next open removes it",)


class _Keyed:
    content_key = "key"

    def apply_diff(self, target):
        return layerstore.TarDiffer(imagemaker.make_tar({"a": b""})).apply_diff(target)


def test_what_is_unknown_or_ambiguous_is_an_error(root):
    with layerstore.open(root) as store:
        ids = [c * 4 + "0" * 60 for c in "ab"]
        add(store, {"1": b""}, id="abcd" + "0" * 60)
        add(store, {"2": b""}, id="abcd" + "1" * 60)
        with pytest.raises(InvalidArgumentError):
            store.explain("abcd")
        with pytest.raises(UnknownLayerError):
            store.explain(ids[0])
        with pytest.raises(UnknownLayerError):
            store.explain("abc")


def test_the_page_stands_alone_and_a_name_cannot_write_into_it(root, tmp_path, capsys):
    with layerstore.open(root) as store:
        add(store, names=["plain"])
        layer = store.layer(store.resolve("plain")[1])
        target = tmp_path / "<script>alert(1)<"
        store._handle.update("x", lambda txn: explain_mount(txn, layer.id, str(target)))
    page = tmp_path / "life.html"
    assert main(["--root", str(root), "explain", "plain", "--html", str(page)]) == 0
    text = page.read_text()
    assert "<script" not in text
    assert "&lt;script&gt;alert" in text
    assert not re.search(r"(?:src|href|url)\s*[=(]", text)
    assert text.count("<li class=") == 6
    assert main(["--root", str(root), "explain", "plain"]) == 0
    assert "→ committed" in capsys.readouterr().out


def explain_mount(txn, layer_id, target):
    from layerstore.lifecycle.machine import fire
    from layerstore.lifecycle.states import Kind, Trigger

    fire(txn, Kind.MOUNT, "0" * 32, Trigger.TAKE, txid="0" * 32, payload={
        "layers": [layer_id], "target": target, "writable": False, "boot_id": "x", "namespace": "y",
    })
