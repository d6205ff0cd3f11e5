"""Running something as an ordinary user, and in user namespaces, without changing the machine.

Root makes the child and, for a namespace, writes its maps itself: nothing is entered into /etc/subuid. An ordinary user
who runs the tests is the ordinary user, and can have the namespace with one ID only.
"""

import os
import pwd
import shutil
import tempfile
import traceback
from contextlib import contextmanager
from pathlib import Path

from layerstore.system import kernel

IS_ROOT = os.geteuid() == 0
USER = 65534 if IS_ROOT else os.geteuid()
GROUP = 65534 if IS_ROOT else os.getegid()
SUBIDS = 1_000_000                       # the host ids that a namespace's 1 … 65535 are
SUBID_COUNT = 65_535
ONE = [(0, USER, 1)]
FULL = [(0, USER, 1), (1, SUBIDS, SUBID_COUNT)]
NEWNS, NEWUSER = 0x20000, 0x10000000
MS_BIND = 0x1000
PRIVATE = 0x4000 | 0x40000               # MS_REC | MS_PRIVATE


@contextmanager
def users_directory():
    """A directory of the ordinary user's, on a disk; gone afterwards, whatever is in it."""
    path = tempfile.mkdtemp(dir="/var/tmp", prefix="layerstore-rootless-")
    os.chown(path, USER, GROUP)
    try:
        yield Path(path)
    finally:
        shutil.rmtree(path, ignore_errors=not IS_ROOT)


def as_user(work, *, subids=None):
    """Run *work* in a child as the ordinary user; what it raises fails the test.

    *subids*: the first of its subordinate ids, or 0 for none; in a mount namespace with its own /etc/subuid and
    /etc/subgid, so that the machine's stay as they are. Root only.
    """
    _run(work, None, subids)


def in_namespace(work, ids=ONE, *, user=USER):
    """The same, in a user and mount namespace of its own whose user 0 it is. *ids*: (inside, outside, size)."""
    _run(work, ids, user=user)


def _enter_subids(first):
    kernel.unshare(NEWNS)
    kernel.mount("none", "/", None, PRIVATE, None)
    name = pwd.getpwuid(USER).pw_name
    for kind in ("uid", "gid"):
        with tempfile.NamedTemporaryFile("w", dir="/dev/shm", delete=False) as file:
            os.fchmod(file.fileno(), 0o644)
            file.write(f"{name}:{first}:{SUBID_COUNT}\n" if first else "")
        kernel.mount(file.name, f"/etc/sub{kind}", None, MS_BIND, None)
        os.unlink(file.name)


def _run(work, ids, subids=None, user=USER):
    told, teller = os.pipe()
    mapped, mapper = os.pipe()
    told_us, tell_us = os.pipe()
    pid = os.fork()
    if not pid:
        code = 1
        try:
            os.close(mapper), os.close(told), os.close(told_us)
            if subids is not None:
                _enter_subids(subids)
            if IS_ROOT:
                os.setgroups([])
                group = GROUP if user == USER else user
                os.setresgid(group, group, group)
                os.setresuid(user, user, user)
            if ids is not None:
                kernel.unshare(NEWUSER | NEWNS)
                os.write(tell_us, b"here")
                os.read(mapped, 1)
                if not IS_ROOT:
                    _own_map(ids)
                os.setresgid(0, 0, 0)
                os.setresuid(0, 0, 0)
                kernel.mount("none", "/", None, PRIVATE, None)
            work()
            code = 0
        except BaseException:
            os.write(teller, traceback.format_exc().encode()[-16_000:])
        finally:
            os._exit(code)
    os.close(teller), os.close(tell_us), os.close(mapped)
    with os.fdopen(told_us, "rb") as waiting:
        if ids is not None and waiting.read(4) == b"here" and IS_ROOT:
            for kind in ("uid", "gid"):
                with open(f"/proc/{pid}/{kind}_map", "w") as file:
                    file.write("".join(f"{a} {b} {c}\n" for a, b, c in ids))
    os.close(mapper)
    with os.fdopen(told, "rb") as pipe:
        text = pipe.read().decode()
    status = os.waitpid(pid, 0)[1]
    assert not text, text
    assert status == 0, f"the child ended with {os.waitstatus_to_exitcode(status)}"


def _own_map(ids):
    assert len(ids) == 1, "an ordinary user can map itself only"
    with open("/proc/self/setgroups", "w") as file:
        file.write("deny")
    for kind, own in (("uid", USER), ("gid", GROUP)):
        with open(f"/proc/self/{kind}_map", "w") as file:
            file.write(f"0 {own} 1\n")


def _warm():
    """Import now what is imported late: the ordinary user may not be able to read it."""
    import layerstore
    from layerstore import TarDiffer

    with tempfile.TemporaryDirectory() as path, layerstore.open(os.path.join(path, "s")) as store:
        with store.stage(TarDiffer(bytes(1024))) as staged:
            layer = store.apply_staged_layer(staged)
        store.extract(layer.id, os.path.join(path, "out"))
        with store.diff(layer.id) as chunks:
            assert len(b"".join(chunks)) == 1024
        assert store.check(content=True).sound


_warm()
