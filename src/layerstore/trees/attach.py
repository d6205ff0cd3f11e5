"""Attaching a stack of layer trees as one overlay: what is asked of the kernel, and the two ways to ask it.

Options are in one page: 4095 bytes are full at some fifty layers. Since Linux 6.8 each layer is its own fsconfig(2) call
(``lowerdir+``); before, or where a sandbox forbids fsopen(2), long chains go to mount(2) with descriptor numbers as
paths, relative to /proc/self/fd. Both carry the kernel's maximum of 500 layers. (Documentation/filesystems/overlayfs.rst,
fs/overlayfs/params.c.)

A label (SELinux) is the mount option ``context``. It is a string of its own to fsconfig(2); in mount(2)'s data it is put
into double quotes, for categories have commas (security/selinux/hooks.c, ``selinux_sb_eat_lsm_opts``).

What may be in a stack, and what an error means, is ``overlay``'s.
"""

from __future__ import annotations

import errno
import os
import re
import threading
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass

from layerstore.system import kernel

__all__ = ["MAX_STRING", "Stack", "attach", "escape"]

MAX_STRING = 255                         # bytes of an fsconfig(2) string
_MAX_DATA = os.sysconf("SC_PAGE_SIZE") - 1  # bytes of mount(2)'s data
_MS_RDONLY, _MS_NODEV = 1, 4             # sys/mount.h


class _NotByPiecesError(Exception):
    """The kernel, or a sandbox, does not let us append layers one by one."""


@dataclass(frozen=True, slots=True)
class Stack:
    """What is to be mounted: paths, absolute; the topmost layer first."""

    lowers: tuple[str, ...]
    upper: str | None
    work: str | None
    options: tuple[str, ...]             # "flag" or "key=value", without commas in them
    label: str | None                    # checked: no quotes in it, perhaps commas

    @property
    def writable(self) -> bool:
        return self.upper is not None


def attach(stack: Stack, target: str) -> None:
    """Mount *stack* at the directory *target*, whichever way this kernel takes it. OSError, as the kernel says it."""
    try:
        _mount_by_pieces(stack, target)
    except _NotByPiecesError:
        _mount_at_once(stack, target)


def _mount_by_pieces(stack: Stack, target: str) -> None:
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


def _configure(context: int, stack: Stack) -> None:
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
    if len(value) <= MAX_STRING:
        kernel.fsconfig(context, kernel.FSCONFIG_SET_STRING, key, value)
        return
    fd = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        kernel.fsconfig(context, kernel.FSCONFIG_SET_STRING, key, b"/proc/self/fd/%d" % fd)
    finally:
        os.close(fd)


def _mount_at_once(stack: Stack, target: str) -> None:
    """mount(2), for kernels without ``lowerdir+``."""
    data = _data(stack, escape)
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


def _mount2(stack: Stack, target: str, data: str) -> None:
    kernel.mount("overlay", target, "overlay", _MS_NODEV | (0 if stack.writable else _MS_RDONLY), data)


def _data(stack: Stack, name: Callable[[str], str]) -> str:
    options = [*stack.options, "lowerdir=" + ":".join(map(name, stack.lowers))]
    if stack.upper is not None and stack.work is not None:
        options += [f"upperdir={name(stack.upper)}", f"workdir={name(stack.work)}"]
    if stack.label is not None:
        options.append(f'context="{stack.label}"')
    return ",".join(options)


def escape(path: str) -> str:
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
