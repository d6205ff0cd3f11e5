"""Compare two directory trees completely; the one comparison that all tests use.

Compared: names, types, modes, owners, modification times to the nanosecond, extended attributes, hard-link
groups, targets of symbolic links, device numbers, sizes and content. Not compared: access and change times,
inode numbers, link counts (an overlay shows those of its layers), sizes of directories, holes.
"""

import hashlib
import os
import stat

# what overlayfs itself hides from view, and what belongs to the host and not to the content
_NOT_CONTENT = ("trusted.overlay.", "user.overlay.", "security.selinux", "system.")
_PARTS = (
    "type", "mode", "uid", "gid", "mtime_ns", "xattrs", "link_group", "target", "device", "size", "content",
)


def snapshot(root, *, phantoms=False):
    """``{path: {part: value}}`` of a tree, ``.`` the root; paths are str with surrogate escapes.

    With *phantoms*, names that are listed but cannot be looked up are left out: overlayfs lists, but does not
    show, the whiteouts of a directory that only one of its layers has.
    """
    found, groups = {}, {}
    for path, full in _walk(os.fspath(root), phantoms):
        status = os.lstat(full)
        kind = stat.S_IFMT(status.st_mode)
        entry = dict.fromkeys(_PARTS)
        entry.update(
            type=kind, mode=stat.S_IMODE(status.st_mode), uid=status.st_uid, gid=status.st_gid,
            mtime_ns=status.st_mtime_ns, xattrs=_xattrs(full),
        )
        if kind == stat.S_IFLNK:
            entry["target"] = os.readlink(full)
        elif kind in (stat.S_IFCHR, stat.S_IFBLK):
            entry["device"] = (os.major(status.st_rdev), os.minor(status.st_rdev))
        elif kind == stat.S_IFREG:
            entry["size"] = status.st_size
            with open(full, "rb") as file:
                entry["content"] = hashlib.file_digest(file, "sha256").hexdigest()
        if kind != stat.S_IFDIR and status.st_nlink > 1:
            groups.setdefault((status.st_dev, status.st_ino), []).append(path)
        found[path] = entry
    for members in groups.values():
        for path in members if len(members) > 1 else ():
            found[path]["link_group"] = tuple(sorted(members))
    return found


def differences(one, other, *, ignore=(), phantoms=False):
    """A list of lines, empty for equal trees: directories or snapshots. *ignore* names parts."""
    unknown = set(ignore) - set(_PARTS)
    assert not unknown, f"no such parts: {unknown}"
    a, b = (tree if isinstance(tree, dict) else snapshot(tree, phantoms=phantoms) for tree in (one, other))
    lines = []
    for path in sorted(a.keys() | b.keys()):
        if path not in a or path not in b:
            lines.append(f"{path}: only in the {'second' if path not in a else 'first'}")
            continue
        for part in _PARTS:
            if part not in ignore and a[path][part] != b[path][part]:
                lines.append(f"{path}: {part} {_show(part, a[path][part])} != {_show(part, b[path][part])}")
    return lines


def assert_same(one, other, **more):
    """Fail with every difference, if there is one."""
    lines = differences(one, other, **more)
    assert not lines, "\n".join(lines[:50])


def _walk(root, phantoms):
    todo = ["."]
    while todo:
        path = todo.pop()
        full = os.path.join(root, path)
        yield path, full
        if stat.S_ISDIR(os.lstat(full).st_mode):
            for name in os.listdir(full):
                child = name if path == "." else f"{path}/{name}"
                if not phantoms or os.path.lexists(os.path.join(root, child)):
                    todo.append(child)


def _xattrs(full):
    names = os.listxattr(full, follow_symlinks=False)
    return {n: os.getxattr(full, n, follow_symlinks=False) for n in names if not n.startswith(_NOT_CONTENT)}


def _show(part, value):
    return oct(value) if part in ("type", "mode") and value is not None else repr(value)
