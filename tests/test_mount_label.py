"""The label of a mount (SELinux): what is one, how the kernel is told, and that a mount keeps its own.

Where SELinux is not, the kernel refuses; what it would be told is looked at all the same.
"""

import os

import pytest
from test_overlay import Place, in_namespace, place, way  # noqa: F401 - fixtures

import layerstore
from layerstore import errors
from layerstore.cli.commands import run
from layerstore.system import kernel
from layerstore.trees import overlay
from layerstore.verbs import mount as verb
from storekit import add

LABEL = "system_u:object_r:container_file_t:s0:c12,c345"


# -- what is one -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("label", [LABEL, "u:r:t", "system_u:object_r:container_ro_file_t:s0-s0:c0.c1023"])
def test_what_ls_shows_is_a_label(label):
    assert overlay.check_label(label) == label


@pytest.mark.parametrize("label", [
    "", "t", "u:r", "u:r:", ":r:t", 'u:r:t:s0"', 'u:r:t:s0",lowerdir=/', "u:r:t,x", "u:r:t:s0 ", "u:r:t:s0\n", "u:r:t:s0\\",
    "u:r:t:s0'", "u:r:t:s0=", "u:r:t:s0\0", "u:r:é", "u:r:t:" + "c" * 250, None, 7,
])
def test_what_could_be_another_option_is_none(label):
    with pytest.raises(errors.InvalidArgumentError, match="is no label"):
        overlay.check_label(label)


# -- how the kernel is told --------------------------------------------------------------------------------------------


@pytest.fixture
def told(monkeypatch):
    """What the kernel is told, in both ways; nothing is mounted."""
    said = []
    monkeypatch.setattr(kernel, "mount", lambda *args: said.append(args[4]))
    monkeypatch.setattr(kernel, "fsmount", lambda *_args: os.open("/", os.O_PATH))
    monkeypatch.setattr(kernel, "move_mount", lambda *_args: None)
    monkeypatch.setattr(kernel, "fsconfig", lambda _fd, _command, key=None, value=None: said.append((key, value)))
    return said


def test_by_pieces_the_label_is_a_string_of_its_own(place, told, monkeypatch):  # noqa: F811
    monkeypatch.setattr(kernel, "fsopen", lambda _name: os.open("/", os.O_PATH))
    place.layer(form="user").file("f")
    place.mount(form="user", label=LABEL)
    assert ("context", LABEL.encode()) in told
    told.clear()
    place.mount(form="user")
    assert "context" not in dict(told)


def test_at_once_the_label_is_in_quotes_for_it_has_commas(place, told, monkeypatch):  # noqa: F811
    monkeypatch.setattr(kernel, "fsopen", _absent)
    place.layer(form="user").file("f")
    place.mount(form="user", label=LABEL)
    place.mount(form="user")
    assert told[0].endswith(f',context="{LABEL}"')
    assert "context" not in told[1]


def _absent(_name):
    raise OSError(38, "Function not implemented")


@in_namespace
def test_a_kernel_that_does_not_take_it_is_a_typed_error(place, way):  # noqa: F811
    """Without SELinux, or with it and without such a type."""
    place.layer().file("f")
    with pytest.raises(errors.HostError, match="with the label u:r:nobody_knows_this_t") as caught:
        place.mount(label="u:r:nobody_knows_this_t")
    assert "SELinux" in caught.value.hint
    assert place.names() == []


# -- a mount keeps its own ---------------------------------------------------------------------------------------------


@pytest.fixture
def labels(monkeypatch):
    """The labels of mounts that are made; here they are made without."""
    asked = []

    def mounting(*args, label=None, **more):
        asked.append(label)
        overlay_mount(*args, **more)

    overlay_mount = overlay.mount_overlay
    monkeypatch.setattr(verb.overlay, "mount_overlay", mounting)
    return asked


@pytest.mark.root
@in_namespace
def test_the_label_is_in_the_row_and_a_mount_without_one_has_none(root, tmp_path, labels):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    with layerstore.open(root) as store:
        layer = add(store)
        assert store.mount(layer.id, tmp_path / "a", label=LABEL).label == LABEL
        assert store.mount(layer.id, tmp_path / "b").label is None
        with store._handle.read() as view:
            assert sorted("label" in row for _, row in view.scan("mounts")) == [False, True]
    assert labels == [LABEL, None]
    with layerstore.open(root) as store:
        assert sorted(str(each.label) for each in store.mounts()) == ["None", LABEL]


@pytest.mark.root
@in_namespace
def test_what_was_kept_is_mounted_again_with_the_label_that_it_had_or_with_another(root, tmp_path, labels):
    target = tmp_path / "target"
    target.mkdir()
    with layerstore.open(root) as store:
        layer = add(store)
        store.mount(layer.id, target, writable=True, label=LABEL)
    overlay.unmount(str(target))                     # as a reboot does
    with layerstore.open(root) as store:
        (kept,) = store.mounts()
        assert (kept.mounted, kept.label) == (False, LABEL)
        assert store.mount(layer.id, target, writable=True).label == LABEL
    overlay.unmount(str(target))
    with layerstore.open(root) as store:
        assert store.mount(layer.id, target, writable=True, label="u:r:other").label == "u:r:other"
        store.unmount(target)
    assert labels == [LABEL, LABEL, "u:r:other"]


@pytest.mark.root
@in_namespace
def test_a_mount_that_is_refused_for_its_label_leaves_nothing(root, tmp_path):
    target = tmp_path / "target"
    target.mkdir()
    with layerstore.open(root) as store:
        layer = add(store)
        for label, expected in (("u:r:nobody_knows_this_t", errors.HostError), ('u:r:t"', errors.InvalidArgumentError)):
            with pytest.raises(expected):
                store.mount(layer.id, target, writable=True, label=label)
        assert store.mounts() == []
        assert os.listdir(root / "uppers") == []
        store.delete_layer(layer.id)


def test_the_command_passes_it_on(root, tmp_path, capsys):
    with layerstore.open(root) as store:
        add(store, names=["app"])
    assert run(["--root", str(root), "mount", "app", str(tmp_path), "--label", "no label"]) == 2
    assert "is no label for a mount" in capsys.readouterr().err
