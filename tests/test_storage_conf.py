"""Which stores podman uses, as storage.conf has it: the same as podman itself says."""

import os

import pytest

import layerstore
import namespaces
from layerstore import errors
from layerstore.sources import storage_conf
from podmanrun import Podman

VARIABLES = ("CONTAINERS_STORAGE_CONF", "CONTAINERS_GRAPHROOT", "XDG_CONFIG_HOME", "XDG_DATA_HOME", "_CONTAINERS_ROOTLESS_UID")


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """A machine whose files of the system are in *tmp_path*; made by ``machine(system=…, own=…, uid=…)``."""
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.setattr(storage_conf, "_SYSTEM", (str(tmp_path / "etc"), str(tmp_path / "usr")))

    def make(*, uid=0, own=None, environment=(), **files):
        monkeypatch.setattr(os, "geteuid", lambda: uid)
        for name, text in files.items():
            (tmp_path / name).write_text(text)
        if own is not None:
            (tmp_path / "own/containers").mkdir(parents=True)
            (tmp_path / "own/containers/storage.conf").write_text(own)
            monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "own"))
        for name, text in environment:
            monkeypatch.setenv(name, text)

    return make


def conf(**settings):
    return "[storage]\n" + "".join(f'{key} = "{text}"\n' for key, text in settings.items())


@pytest.mark.parametrize(("given", "found"), [
    ({}, ["/var/lib/containers/storage"]),
    ({"usr": conf(graphroot="/a")}, ["/a"]),
    ({"usr": conf(graphroot="/a"), "etc": conf(graphroot="/b")}, ["/b"]),
    ({"usr": conf(graphroot="/a"), "etc": conf(driver="overlay")}, ["/var/lib/containers/storage"]),
    ({"etc": conf(graphroot="/b") + '[storage.options]\nadditionalimagestores = ["/c", "/d/"]\n'}, ["/b", "/c", "/d"]),
    ({"etc": conf(rootless_storage_path="/b")}, ["/var/lib/containers/storage"]),
    ({"own": conf(graphroot="/mine")}, ["/var/lib/containers/storage"]),
    ({"uid": 7}, ["/home/me/.local/share/containers/storage"]),
    ({"uid": 7, "environment": [("XDG_DATA_HOME", "/data")]}, ["/data/containers/storage"]),
    ({"uid": 7, "etc": conf(graphroot="/roots", rootless_storage_path="/users/$UID")}, ["/users/7"]),
    ({"uid": 7, "own": conf(graphroot="$HOME/mine")}, ["/home/me/mine"]),
    ({"uid": 7, "own": conf(graphroot="/mine", rootless_storage_path="/no")}, ["/mine"]),
    ({"uid": 7, "own": conf(rootless_storage_path="/mine"), "etc": conf(rootless_storage_path="/users")}, ["/mine"]),
    ({"uid": 7, "own": conf(driver="overlay"), "etc": conf(rootless_storage_path="/users")}, ["/users"]),
    ({"environment": [("_CONTAINERS_ROOTLESS_UID", "7")]}, ["/home/me/.local/share/containers/storage"]),
    ({"environment": [("_CONTAINERS_ROOTLESS_UID", "7"), ("CONTAINERS_GRAPHROOT", "/g")]}, ["/g"]),
    ({"environment": [("CONTAINERS_GRAPHROOT", "/g")]}, ["/var/lib/containers/storage"]),
])
def test_the_stores_are_those_that_podman_would_use(machine, given, found):
    machine(**given)
    assert list(storage_conf.stores()) == found


@pytest.mark.parametrize("uid", [0, 7])
def test_the_file_that_the_environment_names_is_the_one(machine, tmp_path, uid):
    machine(uid=uid, etc=conf(graphroot="/b"), own=conf(graphroot="/mine"), named=conf(graphroot="/c"),
            environment=[("CONTAINERS_STORAGE_CONF", str(tmp_path / "named"))])
    assert storage_conf.stores() == ("/c",)


@pytest.mark.parametrize(("text", "says"), [
    ("[storage", "malformed"), (b"\xff", "malformed"), (conf(driver="vfs"), "driver 'vfs'"),
])
def test_a_file_that_cannot_be_used_is_named(machine, tmp_path, text, says):
    machine(etc="")
    (tmp_path / "etc").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(errors.SourceError, match=says) as caught:
        storage_conf.stores()
    assert str(tmp_path / "etc") in str(caught.value)


@pytest.mark.parametrize("text", ["storage = 1", "[storage]\noptions = 1", "[storage]\noptions = {additionalimagestores = 1}"])
def test_what_a_file_has_in_places_where_nothing_of_the_kind_belongs_is_passed_over(machine, text):
    machine(etc=text)
    assert storage_conf.stores() == ("/var/lib/containers/storage",)


def test_a_pull_that_names_no_store_says_which_it_looked_at(machine, tmp_path):
    machine(etc=conf(graphroot=tmp_path / "none"))
    with layerstore.open(tmp_path / "store") as store, pytest.raises(
            errors.SourceError, match=f"{tmp_path}/none/overlay-images/images.json is missing") as caught:
        store.pull("containers-storage:demo:1")
    assert "storage.conf" in caught.value.hint


@pytest.mark.root
@pytest.mark.timeout(120)
@pytest.mark.parametrize("rootless", [False, True])
def test_podman_itself_says_the_same(home, rootless, monkeypatch):
    (home / "view").mkdir()
    os.chown(home / "view", namespaces.USER, namespaces.GROUP)
    with Podman(home / "podman", home / "view", rootless=rootless) as podman:
        path = podman.home / "storage.conf"
        path.write_text(path.read_text().replace(f'graphroot = "{podman.home}/graph"', 'graphroot = "$HOME/graph"'))
        text = "podman info --format '{{.Store.GraphRoot}}'\n" + rootless * "podman unshare printenv\n"
        said = podman.script(text).splitlines()
        inside = dict(line.split("=", 1) for line in said[1:])
        for name, text in {"HOME": str(podman.home), "CONTAINERS_STORAGE_CONF": str(path), **inside}.items():
            monkeypatch.setenv(name, text)
        monkeypatch.setattr(os, "geteuid", lambda: 0)   # in the namespace, too
        assert storage_conf.stores() == (said[0], str(home / "view"))
        if rootless:
            assert inside["_CONTAINERS_ROOTLESS_UID"] == str(namespaces.USER)
            for name in ("_CONTAINERS_ROOTLESS_UID", "CONTAINERS_GRAPHROOT"):
                monkeypatch.delenv(name)
            monkeypatch.setattr(os, "geteuid", lambda: namespaces.USER)
            assert storage_conf.stores() == (said[0], str(home / "view"))
