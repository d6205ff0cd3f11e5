"""Unpacking: a tar stream becomes a tree in overlay on-disk form, a manifest and a tar-split. Hostile input stays inside.

The rules, where archives or the field leave a choice:

* Every path is walked component by component (``dirfds``). A parent that is a symbolic link *of this layer*
  is followed as if the tree's root were ``/`` (as a chroot would, and as the field does); where the link's
  target is not in this layer the archive is refused: whatever it was meant to reach lies in another layer's
  tree.
* A later entry replaces an earlier one, and what was beneath it; only a directory on a directory merges.
* Parents that the archive lacks are made 0755, root's, with time 0, so that the same archive always gives the
  same tree. The same holds for the tree's own directory if there is no entry ``./``.
* ``.wh.X`` is a whiteout at X (``whiteouts``). By the OCI specification it hides only what *lower* layers have:
  if this layer has X itself, in whatever order, that X stays, opaque if it is a directory. ``.wh..wh..opq``
  makes its directory opaque; anything else of AUFS's (``.wh..wh.*``) is skipped. A device 0:0 in an archive
  is refused.
* A hard link brings nothing of its own: owner, mode and times are those of the file it names.
* Of extended attributes only those that ``storable_xattr`` names are set; ``trusted.*`` and ACLs are counted and kept in
  the manifest (``meaningful_xattr``), the others are left out.
* What an ordinary user (or a file system) cannot have — other owners, devices, privileged attributes — is
  counted and kept in the manifest and, where it can be, in ``user.containers.override_stat`` (``override``); for a
  device that cannot be made an empty file stands. It never fails an unpacking.

Directories get owner, attributes, mode and time when all is in place, deepest first: until then they are
0700. Small files are made by threads of their own, and where they are many by processes beside them, because Python's
lock is one for all threads; what is written down of them keeps the archive's order, so tree, manifest and tar-split are
the same with and without.

    entries   what each kind of entry does       tree      where it goes, and what must make room
    regular   by whom a file is made, and when   making    batches of files that threads make
    files     one regular file, made             donated   one that has its content already
    records   manifest and tar-split, in order   process   another process that makes a thread's files
    creating  that process's program             hashing   a thread that hashes what is large
"""

from layerstore.trees.unpack.entries import Unpacked, unpack

__all__ = ["Unpacked", "unpack"]
