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

System calls of each kind of entry, for root, where its name is free, its directory was used just now, and its time is one
that every file system holds. tests/test_system_calls.py counts them, by whomever a file is made:

    file                  openat write utimensat close
    empty file            openat utimensat close
    file of another's     openat write fchown utimensat close
    file, an attribute    openat write fsetxattr utimensat close
    file of 2 MiB         openat write*3 utimensat close
    file of 2 MiB, zeros  openat ftruncate utimensat close
    directory             mkdirat openat fchown fchmod utimensat close
    implied, and a file   newfstatat mkdirat openat*2 write fchown fchmod utimensat*2 close*2
    opaque directory      mkdirat openat fchown fsetxattr fchmod utimensat close
    symbolic link         symlinkat fchownat utimensat
    hard link             newfstatat*2 fcntl linkat close
    fifo, device          mknodat fchownat fchmodat utimensat
    whiteout              mknodat utimensat

* ``openat``, ``mkdirat``, ``symlinkat``, ``linkat``, ``mknodat`` make the name, and fail if it is taken: what is there must
  make room first. A file gets the mode that it shall have, where it is born with it (``files.Births``), else 0600, as
  directories 0700: nothing is more open than it will be. A directory is opened for what is made in it (``dirfds``), and
  at the end, for its attributes, if it was closed meanwhile.
* ``newfstatat`` (``fstat``): what is at the name of a directory that no entry made, for a link may be there; what a hard
  link is to, and what is in its place; how the first file of a mode is born. ``fcntl``: a hard link needs two directories,
  and opening the one may close the other.
* ``write``: once for each chunk of the stream; ``lseek`` before one that follows a hole, ``ftruncate`` for one at the end
  (sparse files, and zeros in files of more than ``files.SMALL`` bytes). ``sync_file_range``: each 8 MiB, so that the sync
  that makes all durable finds little left to write; it waits for nothing.
* ``fchown``, ``fchmod``: of files only where they were not born right; of the others always. ``fsetxattr``: for each
  attribute, and for overlayfs's marks. ``utimensat``: last, because all of these change the time.
* For all entries together: the openings and writes of manifest and tar-split, and an ``fstatfs`` each 4 MiB of the stream
  (``DiffTarget.keep_free``); where there are very many directories, those of the file that they are put away in
  (``nodes``).

    entries   what each kind of entry does       tree      where it goes, and what must make room
    regular   by whom a file is made, and when   making    batches of files that threads make
    files     one regular file, made             donated   one that has its content already
    records   manifest and tar-split, in order   process   another process that makes a thread's files
    creating  that process's program             hashing   a thread that hashes what is large
    nodes     directories, as they are remembered
"""

from layerstore.trees.unpack.entries import Unpacked, unpack

__all__ = ["Unpacked", "unpack"]
