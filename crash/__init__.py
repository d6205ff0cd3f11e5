"""The crash rigs: what kills, starves, reorders and misleads the store, and what looks at what is left.

Not part of the installed package; they drive it through its public API. Common to all rigs:

* ``content``    the layers and images they use, and the trees those must become
* ``workloads``  what is done to a store, by name, each with its ledger
* ``wreck``      a store with everything in flight at once
* ``lost``       stores whose database is lost or damaged, and is rebuilt
* ``state``      one explored crash state as a line of JSON; counting, floors, the summary
* ``workers``    jobs in forked workers, results in order
* ``strace``     a program traced and killed from outside
* ``persistence``  a strict-POSIX model over recorded calls: which states a power loss may leave
* ``disk``       a disk of ours under real file systems: it logs, loses and fails writes
* ``shim``       an interposed libc: counts, records, kills, tears and fails calls
* ``__main__``   ``python -m crash``: run a rig for as long as it is told, write states, print what was found

Each rig is a package or module of its own; none imports another. ``docs/crash-model.md`` says what each shows.
"""
