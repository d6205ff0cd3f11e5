"""Mounting a stack of layer trees with overlayfs, unmounting it, asking whether it is there. Knows no store.

What overlayfs asks for, and what is done about it (Documentation/filesystems/overlayfs.rst,
fs/overlayfs/params.c):

* Options in one page: 4095 bytes are full at some fifty layers. Since Linux 6.8 each layer is its own
  fsconfig(2) call (``lowerdir+``); before, or where a sandbox forbids fsopen(2), long chains go to mount(2)
  with descriptor numbers as paths, relative to /proc/self/fd. Both carry the kernel's maximum of 500 layers.
* Two layers at least, if there is no upper one: an empty directory goes beneath a single layer. (A bind mount
  would show the layer's whiteouts as devices.)
* An opaque *root* is not looked at by the kernel: what lies beneath such a layer is left out of the stack
  here.
* Whiteouts in a directory that one layer alone has: listed, but not found, unless that directory carries an
  ``overlay.origin`` attribute (``ovl_path_check_origin_xattr``). Setting it is for who makes the tree.
* ``trusted.*`` attributes are invisible, without an error, outside the initial user namespace. A mount would
  then show what opaque directories hide, so it is refused.

A label (SELinux) is the mount option ``context``, which stands for all that the mount shows. It is a string of its own to
fsconfig(2); in mount(2)'s data it is put into double quotes, for categories have commas (security/selinux/hooks.c,
``selinux_sb_eat_lsm_opts``). What could end the quotes, or begin another option, is in no label.

Every mount has ``redirect_dir=nofollow,metacopy=off,index=off``, whatever the kernel's defaults: no layer can
lead elsewhere, and an upper directory holds whole files at their own names, so that it can be packed as a
layer. Mounts are ``nodev``, and read-only ones ``ro``. They are not ``nosuid``, for images need that: keep
the target, as container engines do, beneath a directory that other users cannot enter.
"""

from __future__ import annotations

import errno
import os
import re
import threading
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress

from layerstore.errors import BusyError, HostError, InvalidArgumentError, PrivilegeError, UnknownMountError
from layerstore.system import faults, fs, kernel
from layerstore.trees.mounted import Mounted, table
from layerstore.values import dataclass

__all__ = [
    "MAX_LAYERS", "OverlaySupport", "check_label", "is_overlay_mounted", "mount_id", "mount_overlay", "overlay_targets",
    "probe", "unmount",
]

MAX_LAYERS = 500                         # OVL_MAX_STACK, fs/overlayfs/params.h
_FORMS = ("trusted", "user")
_OPTIONS = ("redirect_dir=nofollow", "metacopy=off", "index=off")
_LABEL = re.compile(r"[A-Za-z0-9_.-]+(:[A-Za-z0-9_.-]+){2}(:[A-Za-z0-9_.,:-]+)?\Z")   # user:role:type[:level]
_MAX_STRING = 255                        # bytes of an fsconfig(2) string
_MAX_DATA = os.sysconf("SC_PAGE_SIZE") - 1  # bytes of mount(2)'s data
_MS_RDONLY, _MS_NODEV = 1, 4             # sys/mount.h
_UMOUNT_NOFOLLOW = 8
_NO_OVERLAY_HINT = "load the kernel's module (modprobe overlay), or use 'layerstore extract'"
_NO_PRIVILEGE = {
    "trusted": "run as root, or use 'layerstore extract'; in a user namespace trusted.* attributes cannot be "
               "read, so this store cannot be mounted there",
    "user": "run as root or in a user namespace of your own (unshare --user --map-root-user --mount), "
            "or use 'layerstore extract'",
}


class _NotByPiecesError(Exception):
    """The kernel, or a sandbox, does not let us append layers one by one."""


@dataclass(frozen=True, slots=True)
class _Stack:
    """What is to be mounted: paths, absolute; the topmost layer first."""

    lowers: tuple[str, ...]
    upper: str | None
    work: str | None
    options: tuple[str, ...]             # "flag" or "key=value", without commas in them
    label: str | None                    # checked: no quotes in it, perhaps commas

    @property
    def writable(self) -> bool:
        return self.upper is not None


@dataclass(frozen=True, slots=True)
class OverlaySupport:
    """What this process may do here. ``appends``: layers one by one, as Linux 6.8 can.

    ``trusted``: trusted.* attributes are readable, so that trees of that form can be mounted.
    """

    can_mount: bool
    appends: bool
    trusted: bool


def probe() -> OverlaySupport:
    """Try out, without mounting anything, what the kernel and this process's privileges allow."""
    trusted = kernel.has_trusted_xattrs()
    try:
        fd = kernel.fsopen("overlay")
    except OSError as error:
        # before Linux 5.2 only a mount itself tells
        perhaps = error.errno == errno.ENOSYS and os.geteuid() == 0
        return OverlaySupport(can_mount=perhaps, appends=False, trusted=trusted)
    try:
        kernel.fsconfig(fd, kernel.FSCONFIG_SET_STRING, "lowerdir+", b"/")
    except OSError:
        return OverlaySupport(can_mount=True, appends=False, trusted=trusted)
    finally:
        os.close(fd)
    return OverlaySupport(can_mount=True, appends=True, trusted=trusted)


def mount_overlay(
    lowers: Sequence[str], target: str, *, overlay_form: str, upper: str | None = None,
    work: str | None = None, empty_dir: str | None = None, label: str | None = None,
) -> None:
    """Mount the layer trees *lowers*, topmost first, at the existing directory *target*.

    With *upper* and *work* (on one file system) it is writable; else read-only. *empty_dir*, an empty
    directory that lives as long as the mount, is needed for a read-only mount of a single layer.
    *overlay_form* is the attribute namespace of the trees: ``trusted`` or ``user``. *label* is a security context (SELinux)
    for all that the mount shows; None: each file's own.

    Raises InvalidArgumentError for paths that are not directories, for more than 500 layers and for what is no label,
    PrivilegeError without the right to mount, BusyError if *upper* is in use, HostError without overlayfs, or where the
    kernel does not take the label, IoError for the rest.

    Durability: none: a mount is gone at reboot. A crash before the last step leaves nothing; what is written
    to *upper* is written back by the kernel when it likes, unless who writes it calls fsync.
    """
    _check_directory(target, "the mount point", hint="make it first")
    stack = _stack(lowers, upper=upper, work=work, form=overlay_form, empty_dir=empty_dir, label=label)
    doing = f"mounting {len(stack.lowers)} layers at {target}"
    if overlay_form == "trusted" and not kernel.has_trusted_xattrs():
        raise PrivilegeError(
            f"{doing}: this process cannot read trusted.* attributes, and would see deleted files",
            hint=_NO_PRIVILEGE["trusted"],
        )
    try:
        with faults.point("overlay.mount"):
            try:
                _mount_by_pieces(stack, target)
            except _NotByPiecesError:
                _mount_at_once(stack, target)
    except OSError as error:
        raise _typed(error, doing, overlay_form, label) from error


def check_label(label: str) -> str:
    """Return *label* if it has the form of a security context, ``user:role:type[:level]``; else InvalidArgumentError."""
    if not isinstance(label, str) or not _LABEL.match(label) or len(label) > _MAX_STRING:
        raise InvalidArgumentError(
            f"{label!r} is no label for a mount", hint="write user:role:type[:level], as 'ls -Z' shows it",
        )
    return label


def unmount(target: str) -> None:
    """Unmount the overlay that is topmost at *target*.

    Raises UnknownMountError if there is none, BusyError while something uses it or another mount covers it,
    PrivilegeError without the right to.

    Durability: what was written to the upper directory is with the kernel, as after any write; nothing is
    synced.
    """
    here = _mounts_at(target)
    if not any(each.fstype == "overlay" for each in here):
        raise UnknownMountError(f"no overlay is mounted at {target}", hint="look at /proc/self/mountinfo")
    top = _topmost(here)
    if top.fstype != "overlay":
        raise BusyError(f"the overlay at {target} is covered by a mount ({top.fstype})", hint="unmount that")
    try:
        with faults.point("overlay.unmount"):
            kernel.umount2(target, _UMOUNT_NOFOLLOW)
    except OSError as error:
        doing = f"unmounting {target}"
        if error.errno == errno.EBUSY:
            raise BusyError(
                f"{doing}: {error.strerror}", hint="end what has open files or its working directory there",
            ) from error
        if error.errno == errno.EINVAL:  # gone between the look and the call; or locked by a user namespace
            raise UnknownMountError(f"{doing}: it is not a mount that can be unmounted here") from error
        if error.errno == errno.EPERM:
            raise PrivilegeError(f"{doing}: {error.strerror}", hint="run as who mounted it") from error
        raise fs.host_error(error, doing) from error


def is_overlay_mounted(target: str) -> bool:
    """Whether an overlay is mounted at *target* in this mount namespace, even if another mount covers it."""
    return any(each.fstype == "overlay" for each in _mounts_at(target))


def overlay_targets() -> frozenset[str]:
    """Where overlays are mounted in this mount namespace, as absolute paths without symbolic links; covered ones, too."""
    return frozenset(os.fsdecode(each.target) for each in _table() if each.fstype == "overlay")


def mount_id(target: str) -> int | None:
    """The kernel's ID of the topmost overlay at *target* (proc_pid_mountinfo(5)), or None. IDs are reused."""
    overlays = [each for each in _mounts_at(target) if each.fstype == "overlay"]
    return _topmost(overlays).id if overlays else None


# -- what is mounted -----------------------------------------------------------------------------------------


def _mounts_at(target: str) -> list[Mounted]:
    path = os.fsencode(os.path.realpath(target))
    return [each for each in _table(path) if each.target == path]


def _table(around: bytes = b"") -> list[Mounted]:
    try:
        return list(table(around=around))
    except OSError as error:
        raise fs.host_error(error, "reading /proc/self/mountinfo") from error


def _topmost(mounts: Sequence[Mounted]) -> Mounted:
    """Of mounts at one place, the one on which no other sits: the table's order does not tell."""
    parents = {each.parent for each in mounts}
    return next((each for each in reversed(mounts) if each.id not in parents), mounts[-1])


# -- before mounting -----------------------------------------------------------------------------------------


def _stack(
    lowers: Sequence[str], *, upper: str | None, work: str | None, form: str, empty_dir: str | None,
    label: str | None,
) -> _Stack:
    if form not in _FORMS:
        raise InvalidArgumentError(f"overlay form {form!r} is neither 'trusted' nor 'user'")
    if (upper is None) != (work is None):
        raise InvalidArgumentError("a writable mount needs an upper and a work directory, another neither")
    if not lowers:
        raise InvalidArgumentError("there is no layer to mount")
    for path in lowers:
        _check_directory(path, "the layer's tree")
    for own in (upper, work, empty_dir):
        if own is not None:
            _check_directory(own, "the overlay's own directory")
    visible = _visible(lowers, form)
    if len(visible) > MAX_LAYERS:
        raise InvalidArgumentError(
            f"{len(visible)} layers are more than the {MAX_LAYERS} that overlayfs takes",
            hint="use 'layerstore extract', or an image with fewer layers",
        )
    if len(visible) == 1 and upper is None:
        if empty_dir is None:
            raise InvalidArgumentError("a read-only mount of one layer needs an empty directory beneath it")
        visible.append(empty_dir)
    options = _OPTIONS + (("userxattr",) if form == "user" else ())
    return _Stack(
        lowers=tuple(map(os.path.abspath, visible)), upper=upper and os.path.abspath(upper),
        work=work and os.path.abspath(work), options=options, label=None if label is None else check_label(label),
    )


def _check_directory(path: str, what: str, hint: str | None = None) -> None:
    if "\0" in path or not os.path.isdir(path):
        raise InvalidArgumentError(f"{what} {path!r} is not an existing directory", hint=hint)


def _visible(lowers: Sequence[str], form: str) -> list[str]:
    """The layers down to the first whose root is opaque: the kernel does not look at that attribute."""
    visible = []
    for path in lowers:
        visible.append(path)
        with suppress(OSError):          # ENODATA: it is not; ENOTSUP: it cannot be
            if os.getxattr(path, f"{form}.overlay.opaque") == b"y":
                break
    return visible


# -- the two ways to mount -----------------------------------------------------------------------------------


def _mount_by_pieces(stack: _Stack, target: str) -> None:
    """Make the mount aside, one fsconfig(2) a layer, then put it in place: it appears at once and whole."""
    try:
        context = kernel.fsopen("overlay")
    except OSError as error:
        if error.errno in (errno.ENOSYS, errno.EPERM):  # EPERM: so some sandboxes answer to unknown calls
            raise _NotByPiecesError from error
        raise
    try:
        _configure(context, stack)
        attributes = kernel.MOUNT_ATTR_NODEV | (0 if stack.writable else kernel.MOUNT_ATTR_RDONLY)
        tree = kernel.fsmount(context, attributes)
        try:
            kernel.move_mount(tree, target)
        finally:
            os.close(tree)
    except OSError as error:
        said = "; ".join(kernel.fs_messages(context))
        if said:
            raise OSError(error.errno, f"{error.strerror} (the kernel says: {said})") from error
        raise
    finally:
        os.close(context)


def _configure(context: int, stack: _Stack) -> None:
    for option in stack.options:
        key, has_value, value = option.partition("=")
        if has_value:
            kernel.fsconfig(context, kernel.FSCONFIG_SET_STRING, key, value.encode())
        else:
            kernel.fsconfig(context, kernel.FSCONFIG_SET_FLAG, key)
    if stack.label is not None:
        kernel.fsconfig(context, kernel.FSCONFIG_SET_STRING, "context", stack.label.encode())
    for number, path in enumerate(stack.lowers):
        try:
            _set_path(context, "lowerdir+", path)
        except OSError as error:
            if error.errno == errno.EINVAL and number == 0:  # Linux before 6.8; else mount(2) will say what
                raise _NotByPiecesError from error
            raise
    for key, own in (("upperdir", stack.upper), ("workdir", stack.work)):
        if own is not None:
            _set_path(context, key, own)
    if not stack.writable:
        kernel.fsconfig(context, kernel.FSCONFIG_SET_FLAG, "ro")
    kernel.fsconfig(context, kernel.FSCONFIG_CMD_CREATE)


def _set_path(context: int, key: str, path: str) -> None:
    """A path too long for a parameter goes by way of a descriptor; the kernel resolves it during the call."""
    # the kernel unescapes the two others, but not lowerdir+
    value = os.fsencode(path if key == "lowerdir+" else path.replace("\\", "\\\\"))
    if len(value) <= _MAX_STRING:
        kernel.fsconfig(context, kernel.FSCONFIG_SET_STRING, key, value)
        return
    fd = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        kernel.fsconfig(context, kernel.FSCONFIG_SET_STRING, key, b"/proc/self/fd/%d" % fd)
    finally:
        os.close(fd)


def _mount_at_once(stack: _Stack, target: str) -> None:
    """mount(2), for kernels without ``lowerdir+``."""
    data = _data(stack, _escape)
    if len(os.fsencode(data)) <= _MAX_DATA:
        _mount2(stack, target, data)
        return
    with ExitStack() as descriptors:
        numbers: dict[str, str] = {}
        for path in (*stack.lowers, stack.upper, stack.work):
            if path is not None:
                fd = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
                descriptors.callback(os.close, fd)
                numbers[path] = str(fd)
        data, place = _data(stack, numbers.__getitem__), os.path.abspath(target)
        _in_directory("/proc/self/fd", lambda: _mount2(stack, place, data))


def _mount2(stack: _Stack, target: str, data: str) -> None:
    kernel.mount("overlay", target, "overlay", _MS_NODEV | (0 if stack.writable else _MS_RDONLY), data)


def _data(stack: _Stack, name: Callable[[str], str]) -> str:
    options = [*stack.options, "lowerdir=" + ":".join(map(name, stack.lowers))]
    if stack.upper is not None and stack.work is not None:
        options += [f"upperdir={name(stack.upper)}", f"workdir={name(stack.work)}"]
    if stack.label is not None:
        options.append(f'context="{stack.label}"')
    return ",".join(options)


def _escape(path: str) -> str:
    return re.sub(r"([\\:,])", r"\\\1", path)


def _in_directory(directory: str, act: Callable[[], None]) -> None:
    """Run *act* with *directory* as the working directory, and leave everybody else's as it is.

    A thread of its own that stops sharing the working directory with the others: needs no privilege and no
    fork.
    """
    failed: list[BaseException] = []

    def run() -> None:
        try:
            kernel.unshare(kernel.CLONE_FS)
            os.chdir(directory)
            act()
        except BaseException as error:  # noqa: BLE001 - handed over to the caller
            failed.append(error)

    thread = threading.Thread(target=run, name="layerstore-mount")
    thread.start()
    try:
        thread.join()
    finally:
        thread.join()                    # after an interrupt too: the descriptors must outlive the call
    if failed:
        raise failed[0]


def _typed(error: OSError, doing: str, form: str, label: str | None) -> HostError:
    text = f"{doing}: {error.strerror or error}"
    if error.errno in (errno.EINVAL, errno.EOPNOTSUPP) and label is not None:
        return HostError(
            f"{doing} with the label {label}: {error.strerror or error}",
            hint="SELinux must be enabled in this kernel (sestatus), and its policy must know the label; or leave it out",
        )
    if error.errno in (errno.EPERM, errno.EACCES):
        return PrivilegeError(text, hint=_NO_PRIVILEGE[form])
    if error.errno == errno.ENODEV:
        return HostError(f"{doing}: this kernel has no overlayfs", hint=_NO_OVERLAY_HINT)
    if error.errno == errno.EBUSY:
        return BusyError(text, hint="its upper or work directory is in use by another mount")
    return fs.host_error(error, doing)
