"""Two images of Debian's packages, and a store of them. By debootstrap, from where this machine's apt gets its packages.

``first``: a base system without its documentation, in two layers; packages on it; and a layer of everything awkward that a
layer may hold. ``second``: the same libraries and packages in one layer, as a build of few layers has them, and other
packages on it. So some content is in two layers, and the source of the first has it; some in one of these; some in neither.
Needs root.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from contextlib import suppress

import layerstore
from crash.content import Content, picture
from layerstore import TarDiffer

__all__ = ["made_store"]

_PACKAGES = ("python3-minimal", "libpython3.*-minimal", "python3.*-minimal", "libexpat1", "media-types")
_OTHERS = ("vim-tiny", "vim-common", "less", "openssh-client", "ca-certificates", "xz-utils")
_NOT_SLIM = ("usr/share/doc", "usr/share/man", "usr/share/info", "usr/share/locale", "usr/share/lintian",
             "usr/share/zoneinfo", "var/cache/apt", "var/lib/apt/lists", "var/log")
_IMAGES = ("first", "second")


def made_store(work: str, images: str) -> tuple[str, list[str]]:
    """A store beneath *work* with both images, which are made in *images* if they are not there; and the first's source.

    In its log: an archive that ends in the middle, work of all kinds after it, a layer that was deleted.
    """
    if not all(os.path.isdir(os.path.join(images, each)) for each in _IMAGES):
        _make_images(work, images)
    root = os.path.join(work, "real", "store")
    os.makedirs(os.path.dirname(root))
    first, second = (f"oci:{os.path.abspath(images)}/{each}:latest" for each in _IMAGES)
    with layerstore.open(root) as store:
        store.pull(first, names=["debian:slim"])
        doomed = _put(store, Content("doomed", _tar_of(work, lambda top: _write(top, "gone", b"deleted before"))))
        store.checkpoint(archive=True)
        store.pull(second, names=["debian:few"])
        store.set_quota(1 << 40)
        kept = _tar_of(work, lambda top: _write(top, "own", os.urandom(20_000)))
        _put(store, Content("own", kept), big_data={"notes": b"beside the layer"}, names=["own"])
        store.delete_layer(doomed)
        store.checkpoint()
    return root, [first]


def _put(store: layerstore.Store, what: Content, **options: object) -> str:
    with store.stage(TarDiffer(what.tar)) as staged:
        return store.apply_staged_layer(staged, **options).id  # type: ignore[arg-type] # big data and names


# -- the images --------------------------------------------------------------------------------------------------------


def _make_images(work: str, images: str) -> None:
    if os.geteuid() != 0 or shutil.which("debootstrap", path=_path()) is None:
        raise SystemExit("real images are made as root, with debootstrap; or give a store: --store ROOT --source …")
    base, libraries, packages, others = (os.path.join(work, each) for each in ("base", "libraries", "packages", "others"))
    suite = platform.freedesktop_os_release().get("VERSION_CODENAME", "bookworm")
    _run("debootstrap", "--variant=minbase", suite, base, *_mirror())
    for each in _NOT_SLIM:
        shutil.rmtree(os.path.join(base, each), ignore_errors=True)
        os.makedirs(os.path.join(base, each))
    os.makedirs(os.path.join(libraries, "usr"))
    os.rename(os.path.join(base, "usr/lib"), os.path.join(libraries, "usr/lib"))
    _unpack(packages, _PACKAGES)
    _unpack(others, _OTHERS)
    _write_images(work, images, base, libraries, packages, others)
    for each in (base, libraries, packages, others):
        shutil.rmtree(each)


def _write_images(work: str, images: str, base: str, libraries: str, packages: str, others: str) -> None:
    """From the directories that are to be their layers; *libraries* gets what is in *packages*, too."""
    layers = [Content(os.path.basename(each), _tar(each)) for each in (base, libraries, packages)]
    picture(os.path.join(images, "first"), [*layers, Content("awkward", _tar_of(work, _awkward))])
    _run("tar", "--keep-directory-symlink", "-C", libraries, "-x", given=layers[2].tar)
    picture(os.path.join(images, "second"), [Content("few", _tar(libraries)), Content("others", _tar(others))])


def _mirror() -> list[str]:
    """Where this machine's apt gets its packages from; nothing, which is debootstrap's own default, if it does not say."""
    told = _run("apt-get", "indextargets", "--format", "$(SITE) $(RELEASE)").decode()
    return re.findall(r"^(\S+/debian)/? ", told, re.MULTILINE)[:1]


def _unpack(top: str, packages: tuple[str, ...]) -> None:
    """As dpkg unpacks them, but for its database."""
    os.makedirs(top)
    with tempfile.TemporaryDirectory() as debs:
        wanted = [each for name in packages for each in _named(name)]
        _run("apt-get", "download", "-qq", *wanted, within=debs)
        for deb in sorted(os.listdir(debs)):
            _run("dpkg-deb", "-x", os.path.join(debs, deb), top)


def _named(pattern: str) -> list[str]:
    """The packages of that name, which may have a version in it."""
    if "*" not in pattern:
        return [pattern]
    found = _run("apt-cache", "pkgnames", pattern.split("*", maxsplit=1)[0]).decode().split()
    return sorted(each for each in found if re.fullmatch(pattern.replace(".", r"\.").replace("*", r"\d+"), each))[-1:]


def _awkward(top: str) -> None:
    """Whiteouts, an opaque directory, links of both kinds, nodes, attributes, odd owners, modes and names, a hole."""
    for name in ("usr/bin/.wh.perl", "usr/share/debconf/.wh..wh..opq", "opt/empty"):
        _write(top, name, b"")
    for number in range(20):
        path = _write(top, f"opt/t/x{number}", b"%d" % number * number * 50)
        os.chown(path, 1000 + number, 2000)
        os.setxattr(path, "user.note", b"%d" % number)
        os.link(path, f"{top}/opt/t/hard{number}")
        os.symlink(f"../t/x{number}", f"{top}/opt/t/symbolic{number}")
    os.mknod(f"{top}/opt/null", 0o020666, os.makedev(1, 3))
    os.mkfifo(f"{top}/opt/fifo")
    with open(f"{top}/opt/sparse", "wb") as file:
        file.seek(4 << 20)
        file.write(b"after a hole")
    os.chmod(_write(top, "opt/setuid", b"#!" * 500), 0o4755)
    capable = _write(top, "opt/capable", b"\x7fELF" * 300)
    with suppress(OSError):
        os.setxattr(capable, "security.capability", bytes.fromhex("0100000200200000000000000000000000000000"))
    _write(top, "opt/" + "n" * 120 + "/ünïcode-名前", b"deep" * 30)


# -- small things ------------------------------------------------------------------------------------------------------


def _write(top: str, name: str, data: bytes) -> str:
    path = os.path.join(top, name)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "wb") as file:
        file.write(data)
    return path


def _tar_of(work: str, fill: Callable[[str], object]) -> bytes:
    """The tar of a directory of what *fill* writes into it."""
    with tempfile.TemporaryDirectory(dir=work) as top:
        os.chmod(top, 0o755)
        fill(top)
        return _tar(top)


def _tar(top: str) -> bytes:
    """By GNU tar, as most layers are made."""
    return _run("tar", "--xattrs", "--xattrs-include=*", "--numeric-owner", "--sort=name", "-c", "-C", top, ".")


def _path() -> str:
    return os.environ.get("PATH", os.defpath) + ":/usr/sbin:/sbin"


def _run(*command: str, given: bytes | None = None, within: str | None = None) -> bytes:
    environment = {**os.environ, "PATH": _path(), "LC_ALL": "C.UTF-8", "DEBIAN_FRONTEND": "noninteractive"}
    done = subprocess.run(command, input=given, cwd=within, env=environment, capture_output=True, check=False)
    if done.returncode != 0:
        raise SystemExit(f"{command[0]} failed: {done.stderr.decode()[-500:]}")
    return done.stdout
