"""Why a barrier stays that no crash state shows to be needed. A reason for one that is shown is an error.

But for ``SELDOM``: a long look shows them, a short one may not.
"""

_EMPTY = (
    "What it keeps is a store that holds nothing yet: no fact of a ledger depends on it, a lost one is made again, and the "
    "first `stage.sync` covers it. It stays so that a store that was opened is there after a power cut."
)

REASONS: dict[str, str] = {
    "(making the journal's tables)":
        "LMDB commits each new table by itself. It happens aside, in `journal.new/`, and `journal.create.sync` follows "
        "before the journal gets its name; LMDB cannot leave it out but by NOSYNC, which is never set.",
    "(probing the file system)": "It tries out whether syncfs works here. Nothing rests on what it makes durable.",
    "create.parent.sync": _EMPTY,
    "create.root.sync":
        "Without it the root's directory may have what was made after `store.json`, the reserve, and not that: neither a "
        "store nor empty. It takes a long look to see just that.",
    "push.blob.parent.sync":
        "`push.settle.sync` makes the names of all blobs durable at once, before the index. It stays because a file is "
        "put in its place by one function, for which an archive's name needs it (`push.archive.parent.sync`).",
    "push.document.parent.sync": "As for a blob.",
    "view.remove.dir.sync":
        "An empty directory that is back shows nothing, and is removed again, or a view again, when it is asked for.",
    "create.sync":
        "It and `journal.create.parent.sync` stand in for each other, so that only a long look sees it: without both, "
        "`store.json` may be there without its journal; without it alone, the root's own entry may be lost "
        "with all of the store.",
    "journal.create.commit":
        "As the tables': aside, and covered by `journal.create.sync` before the journal gets its name.",
    "journal.create.parent.sync":
        "`create.sync` stands in for it. It is the promise of the journal's library, whose users need not "
        "be this store: a journal that was created is there.",
    "journal.create.sync":
        "All of the new journal is on disk before it gets its name. It takes a long look: most of what may be lost there "
        "loses the name as well, and a store without a journal is made anew.",
    "rebuild.journal.sync":
        "The new database takes its name before a rebuild returns. It takes a long look to see just that rename lost, and "
        "nothing else, after it was told.",
}
SELDOM = frozenset({"create.root.sync", "create.sync", "journal.create.sync", "rebuild.journal.sync"})
