"""A disk of our own under real file systems: what the rigs ``block`` and ``device`` stand on.

* ``daemon``       the disk: a program that answers the kernel on raw /dev/fuse, and logs, loses or fails what it is told to
* ``control``      start it, talk to it, end it
* ``kernel_calls`` mount, unmount, loop devices, namespaces: system calls, no subprocess
* ``filesystems``  the file systems: how each is made, what it must have, its own fsck
* ``crew``         processes with mounts of their own that yield crash states
* ``rig``          all of it in one ``with``: disk, loop device, file system, mounted

Nothing here knows layerstore. Everything runs in a process that has a mount namespace of its own.
"""
