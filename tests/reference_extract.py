"""An independent oracle for extraction: GNU tar lays the layers over each other, one after the other.

Nothing of layerstore is used. Whiteouts and replacements are done first, layer by layer, by removing from the
result what the layer hides; then tar puts the layer's own entries in. Slow and simple on purpose. Needs root
for owners and devices.
"""

import gzip
import json
import os
import shutil
import stat
import subprocess
import tarfile
import tempfile

# -P: no placeholders for symbolic links, whose hard links and directories would come out wrong
_TAR = [
    "tar", "-P", "--warning=no-timestamp", "--xattrs", "--xattrs-include=*", "--xattrs-exclude=*.overlay.*",
    "--numeric-owner",
]
# an archive may come back to a directory that it has left
_EXTRACT = [*_TAR, "--delay-directory-restore"]


def apply_trees(diffs, dest):
    """Lay trees in overlay on-disk form over each other, base first, in the empty directory *dest*."""
    for diff in map(os.fsencode, map(os.fspath, diffs)):
        members = [b"."]
        _strip(os.fsencode(dest))
        if _opaque(diff):
            _empty(os.fsencode(dest))
        for base, directories, files in os.walk(diff):
            for name in directories + files:
                full = os.path.join(base, name)
                path = os.path.relpath(full, diff)
                status = os.lstat(full)
                there = os.path.join(os.fsencode(dest), path)
                if stat.S_ISCHR(status.st_mode) and status.st_rdev == 0:
                    _remove(there)
                    continue
                members.append(path)
                _make_way(there, is_dir=stat.S_ISDIR(status.st_mode))
                if stat.S_ISDIR(status.st_mode) and _opaque(full):
                    _empty(there)
        with subprocess.Popen(
            [*_TAR, "--format=posix", "--no-recursion", "--null", "-C", diff, "-cpf", "-", "-T", "-"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        ) as packing:
            with tempfile.TemporaryFile() as listed:  # tar must never wait for us while we wait for it
                packing.stdin.write(b"\0".join(members))
                packing.stdin.close()
                shutil.copyfileobj(packing.stdout, listed)
                assert packing.wait() == 0
                listed.seek(0)
                subprocess.run([*_EXTRACT, "-C", dest, "-xpf", "-"], stdin=listed, check=True)


def apply_layout(layout, dest, *, tag=None):
    """Lay an OCI layout's (single-platform) image over the empty directory *dest*; see ``apply_archive``."""
    def blob(digest):
        return os.path.join(layout, "blobs", *digest.split(":"))

    with open(os.path.join(layout, "index.json")) as file:
        manifests = json.load(file)["manifests"]
    chosen = [
        m for m in manifests
        if tag is None or m.get("annotations", {}).get("org.opencontainers.image.ref.name") == tag
    ]
    assert len(chosen) == 1, f"{len(chosen)} manifests match {tag!r}"
    with open(blob(chosen[0]["digest"])) as file:
        layers = json.load(file)["layers"]
    implied = set()
    for layer in layers:
        with tempfile.NamedTemporaryFile(suffix=".tar") as plain:
            _decompress(blob(layer["digest"]), plain)
            plain.flush()
            implied |= apply_archive(plain.name, dest)
    return implied


def apply_archive(archive, dest):
    """Apply one plain layer archive over *dest*.

    Return the directories that entries lie in but that the archive has no entry for: tar leaves their
    attributes as lower layers had them, where a store that keeps each layer as a tree of its own must make
    something up.
    """
    with tarfile.open(archive, "r:", errors="surrogateescape") as tar:
        members = [(os.path.normpath(m.name.lstrip("/") or "."), m.isdir()) for m in tar]
    own = {name for name, _is_dir in members}
    implied = set()
    for name, _is_dir in members:
        parent, base = os.path.split(name)
        here = os.path.join(dest, parent)
        if base == ".wh..wh..opq":
            if _is_plain_dir(dest, parent):
                _empty(here)
        elif base.startswith(".wh.") and not base.startswith(".wh..wh."):
            if _is_plain_dir(dest, parent):
                _remove(os.path.join(here, base[len(".wh."):]))
    for name, is_dir in members:
        parent = os.path.dirname(name)
        while parent:
            if parent not in own:
                implied.add(parent)
                if not _is_plain_dir(dest, parent):
                    _make_way(os.path.join(dest, parent), is_dir=True)
            parent = os.path.dirname(parent)
        if not os.path.basename(name).startswith(".wh.") and _is_plain_dir(dest, os.path.dirname(name)):
            _make_way(os.path.join(dest, name), is_dir=is_dir)
    if "." not in own:
        implied.add(".")
    subprocess.run([*_EXTRACT, "--exclude=.wh.*", "-C", dest, "-xpf", archive], check=True)
    return implied


def _decompress(path, out):
    with open(path, "rb") as file:
        magic = file.read(4)
        file.seek(0)
        if magic[:2] == b"\x1f\x8b":
            with gzip.open(file) as stream:
                shutil.copyfileobj(stream, out)
        elif magic == b"\x28\xb5\x2f\xfd":
            import zstandard

            with zstandard.ZstdDecompressor().stream_reader(file, read_across_frames=True) as stream:
                shutil.copyfileobj(stream, out)
        else:
            shutil.copyfileobj(file, out)


def _is_plain_dir(dest, path):
    """Whether *path* has only directories in it: nothing is removed through a symbolic link."""
    at = dest
    for part in path.split(os.sep) if path else ():
        at = os.path.join(at, part)
        if os.path.islink(at) or not os.path.isdir(at):
            return False
    return True


def _make_way(there, *, is_dir):
    """Remove what an entry of this type replaces; a directory on a directory merges."""
    if is_dir and os.path.isdir(there) and not os.path.islink(there):
        _strip(there)
    elif os.path.lexists(there):
        _remove(there)


def _strip(there):
    """Remove a directory's attributes: tar sets those it has, but does not remove others."""
    for name in os.listxattr(there):
        if name.startswith("user."):
            os.removexattr(there, name)


def _remove(there):
    if os.path.isdir(there) and not os.path.islink(there):
        shutil.rmtree(there)
    elif os.path.lexists(there):
        os.unlink(there)


def _empty(there):
    for name in os.listdir(there) if os.path.isdir(there) else ():
        _remove(os.path.join(there, name))


def _opaque(path):
    names = {"trusted.overlay.opaque", "user.overlay.opaque"}.intersection(os.listxattr(path))
    return any(os.getxattr(path, name) == b"y" for name in names)
