"""De-duplication: content that committed layers have already, found by its digest, and taken safely.

Nothing here is needed to keep or recover a store: what it finds saves fetching and writing, and what it cannot find is
fetched. The side file that it goes by is ``digests``; how the unpacker is given files is ``donors``. Why it is so, and
what was measured: docs/dedup.md.

    candidates   which layers to look in, and in what order      finder   the search, and its bounds
    places       one piece of content: read or cloned, verified  probing  chunks of layers that know only whole files
    ahead        content read before it is asked for, by a   reading  that process's program
                 process
    suspects     files that were found rotten, for ``check``
"""

from layerstore.dedup.finder import LayerFinder

__all__ = ["LayerFinder"]
