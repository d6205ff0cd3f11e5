"""Directories are opened beneath their root only, by the kernel's walk or by our own: both alike."""

import errno
import os

import pytest

from layerstore.system import kernel
from layerstore.trees import dirfds
from layerstore.trees.dirfds import DirFds


@pytest.fixture(params=["openat2", "component by component"])
def fds(tmp_path, monkeypatch, request):
    monkeypatch.setattr(dirfds, "_kernel_walks", request.param == "openat2")
    (tmp_path / "root" / "a" / "b" / "c" / "d").mkdir(parents=True)
    (tmp_path / "root" / "a" / "b" / "file").write_bytes(b"x")
    (tmp_path / "outside" / "e" / "f").mkdir(parents=True)
    root = os.open(tmp_path / "root", os.O_RDONLY)
    opened = DirFds(root)
    yield opened
    opened.close()
    os.close(root)


def test_a_deep_directory_is_the_one_at_that_path(fds, tmp_path):
    assert os.path.samestat(os.fstat(fds.get(b"a/b/c/d")), os.stat(tmp_path / "root" / "a" / "b" / "c" / "d"))
    assert os.path.samestat(os.fstat(fds.get(b"a/b")), os.stat(tmp_path / "root" / "a" / "b"))
    assert os.path.samestat(os.fstat(fds.get(b"")), os.stat(tmp_path / "root"))


def test_from_an_open_ancestor_the_rest_is_opened(fds, tmp_path):
    fds.get(b"a")
    assert os.path.samestat(os.fstat(fds.get(b"a/b/c/d")), os.stat(tmp_path / "root" / "a" / "b" / "c" / "d"))


@pytest.mark.parametrize("target", ["../../outside", "b", "/", "../.."])
@pytest.mark.parametrize("path", [b"a/link/e/f", b"a/link/c/d", b"a/link"])
def test_no_symbolic_link_is_followed_wherever_it_leads(fds, tmp_path, target, path):
    (tmp_path / "root" / "a" / "link").symlink_to(target)
    with pytest.raises(OSError) as caught:
        fds.get(path)
    assert caught.value.errno in (errno.ELOOP, errno.ENOTDIR)


@pytest.mark.parametrize(("path", "number"), [
    (b"a/b/file/x", errno.ENOTDIR), (b"a/b/file", errno.ENOTDIR), (b"a/none/c", errno.ENOENT), (b"none", errno.ENOENT),
])
def test_what_is_no_directory_or_not_there_is_told(fds, path, number):
    with pytest.raises(OSError) as caught:
        fds.get(path)
    assert caught.value.errno == number


def test_a_way_longer_than_the_kernel_takes_at_once_is_walked_and_the_kernel_is_asked_again_for_others(fds, tmp_path):
    long = b"/".join([b"n" * 255] * 17)
    at = os.open(tmp_path / "root", os.O_RDONLY)
    for name in long.split(b"/"):
        os.mkdir(name, dir_fd=at)
        at, above = os.open(name, os.O_RDONLY, dir_fd=at), at
        os.close(above)
    before = dirfds._kernel_walks
    assert os.path.samestat(os.fstat(fds.get(long)), os.fstat(at))
    assert dirfds._kernel_walks is before
    os.close(at)
    with pytest.raises(OSError) as caught:
        fds.get(b"a/" + b"n" * 256)
    assert caught.value.errno == errno.ENAMETOOLONG


def test_what_is_held_stays_open_when_it_is_evicted(fds, tmp_path, monkeypatch):
    monkeypatch.setattr(dirfds, "_CAPACITY", 2)
    number, owner = fds.held(b"a/b/c")
    for n in range(5):
        (tmp_path / "root" / f"n{n}").mkdir()
        fds.get(b"n%d" % n)
    assert owner is not None
    assert os.path.samestat(os.fstat(number), os.stat(tmp_path / "root" / "a" / "b" / "c"))
    del owner
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(number)


def test_a_directory_that_was_held_and_forgotten_is_opened_again_as_what_is_there_now(fds, tmp_path):
    held = fds.held(b"a/b/c")
    assert fds.held(b"a/b/c") == held
    fds.forget(b"a/b")
    (tmp_path / "root" / "a" / "b").rename(tmp_path / "root" / "gone")
    (tmp_path / "root" / "a" / "b" / "c").mkdir(parents=True)
    fd, owner = fds.held(b"a/b/c")
    assert os.path.samestat(os.fstat(fd), os.stat(tmp_path / "root" / "a" / "b" / "c"))
    assert owner is not None and owner.fd == fd


def test_a_deep_path_costs_one_call_where_the_kernel_walks(tmp_path, monkeypatch):
    (tmp_path / "a" / "b" / "c").mkdir(parents=True)
    calls = []
    monkeypatch.setattr(dirfds.kernel, "openat2", lambda *args: calls.append(args) or prepare(*args))
    root = os.open(tmp_path, os.O_RDONLY)
    try:
        opened = DirFds(root)
        opened.get(b"a/b/c")
        assert [call[1] for call in calls] == [b"a/b/c"]
        assert list(opened._open) == [b"a/b/c"]
        opened.close()
    finally:
        os.close(root)


prepare = kernel.openat2


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.EPERM])
def test_a_kernel_or_sandbox_that_refuses_is_asked_once(tmp_path, monkeypatch, number):
    asked = []

    def refusing(result, what):
        asked.append(what)
        raise OSError(number, "refused")

    (tmp_path / "a" / "b" / "c").mkdir(parents=True)
    monkeypatch.setattr(dirfds, "_kernel_walks", True)
    monkeypatch.setattr(dirfds.kernel, "checked", refusing)
    root = os.open(tmp_path, os.O_RDONLY)
    try:
        for _ in range(2):
            opened = DirFds(root)
            assert os.path.samestat(os.fstat(opened.get(b"a/b/c")), os.stat(tmp_path / "a" / "b" / "c"))
            opened.close()
        assert asked == [b"a/b/c"]
    finally:
        os.close(root)
