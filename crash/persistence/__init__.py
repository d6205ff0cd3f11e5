"""What POSIX promises to be there after a power loss: a model over recorded calls, with no file system of its own.

Durable is only what was asked for: a file's data by fsync or fdatasync of *that* file (or O_DSYNC, for the one
write), its attributes by fsync, a directory's entries by fsync of *that* directory, everything by syncfs. A rename is
one step, there or not. Whatever is not durable may be there or not, in any subset: blocks of a write lost or torn, the
size without the data, the entry without the file's content and the content without the entry, attributes too. That is
more than any file system loses; what holds here rests on no accident of one.

* ``recording``  run something under the interposed libc, with fault points and the ledger as marks; read it back
* ``history``    the calls as effects, each with the sync that made it durable
* ``image``      a subset of the effects as a tree of nodes: its digest, and writing it to a directory
* ``choose``     which crash states to look at, representative ones first
* ``explore``    each of them given to the oracle, by several workers

Used by the rigs ``posix``, ``sequences`` and ``barriers``.
"""
