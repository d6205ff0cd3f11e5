"""Mounting a stack of layer trees with overlayfs, and unmounting it: what may be asked for, what an error means.

Knows no store. How the kernel is asked is ``attach``'s, whether something is mounted ``mounted``'s. What overlayfs wants,
and what is done about it here (Documentation/filesystems/overlayfs.rst, fs/overlayfs/params.c):

* Two layers at least, if there is no upper one: an empty directory goes beneath a single layer. (A bind mount
  would show the layer's whiteouts as devices.)
* An opaque *root* is not looked at by the kernel: what lies beneath such a layer is left out of the stack
  here.
* Whiteouts in a directory that one layer alone has: listed, but not found, unless that directory carries an
  ``overlay.origin`` attribute (``ovl_path_check_origin_xattr``). Setting it is for who makes the tree.
* ``trusted.*`` attributes are invisible, without an error, outside the initial user namespace. A mount would
  then show what opaque directories hide, so it is refused.

A label (SELinux) stands for all that the mount shows. What could end the quotes around it, or begin another option, is in
no label.

Every mount has ``redirect_dir=nofollow,metacopy=off,index=off``, whatever the kernel's defaults: no layer can
lead elsewhere, and an upper directory holds whole files at their own names, so that it can be packed as a
layer. Mounts are ``nodev``, and read-only ones ``ro``. They are not ``nosuid``, for images need that: keep
the target, as container engines do, beneath a directory that other users cannot enter.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Sequence
from contextlib import suppress

from layerstore.errors import BusyError, HostError, InvalidArgumentError, PrivilegeError, UnknownMountError
from layerstore.system import faults, fs, kernel
from layerstore.trees.attach import MAX_STRING, Stack, attach
from layerstore.trees.mounted import mounts_at, topmost

__all__ = ["check_label", "mount_overlay", "unmount"]

_MAX_LAYERS = 500                         # OVL_MAX_STACK, fs/overlayfs/params.h
_FORMS = ("trusted", "user")
_OPTIONS = ("redirect_dir=nofollow", "metacopy=off", "index=off")
_LABEL = re.compile(r"[A-Za-z0-9_.-]+(:[A-Za-z0-9_.-]+){2}(:[A-Za-z0-9_.,:-]+)?\Z")   # user:role:type[:level]
_UMOUNT_NOFOLLOW = 8
_NO_OVERLAY_HINT = "load the kernel's module (modprobe overlay), or use 'layerstore extract'"
_NO_PRIVILEGE = {
    "trusted": "run as root, or use 'layerstore extract'; in a user namespace trusted.* attributes cannot be "
               "read, so this store cannot be mounted there",
    "user": "run as root or in a user namespace of your own (unshare --user --map-root-user --mount), "
            "or use 'layerstore extract'",
}


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
            attach(stack, target)
    except OSError as error:
        raise _typed(error, doing, overlay_form, label) from error


def check_label(label: str) -> str:
    """Return *label* if it has the form of a security context, ``user:role:type[:level]``; else InvalidArgumentError."""
    if not isinstance(label, str) or not _LABEL.match(label) or len(label) > MAX_STRING:
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
    here = mounts_at(target)
    if not any(each.fstype == "overlay" for each in here):
        raise UnknownMountError(f"no overlay is mounted at {target}", hint="look at /proc/self/mountinfo")
    top = topmost(here)
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


# -- before mounting -----------------------------------------------------------------------------------------


def _stack(
    lowers: Sequence[str], *, upper: str | None, work: str | None, form: str, empty_dir: str | None,
    label: str | None,
) -> Stack:
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
    if len(visible) > _MAX_LAYERS:
        raise InvalidArgumentError(
            f"{len(visible)} layers are more than the {_MAX_LAYERS} that overlayfs takes",
            hint="use 'layerstore extract', or an image with fewer layers",
        )
    if len(visible) == 1 and upper is None:
        if empty_dir is None:
            raise InvalidArgumentError("a read-only mount of one layer needs an empty directory beneath it")
        visible.append(empty_dir)
    options = _OPTIONS + (("userxattr",) if form == "user" else ())
    return Stack(
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
