"""De-duplication: content that committed layers have already, found by its digest, taken safely; and who uses what space.

Nothing here is needed to keep or recover a store: what it finds saves fetching and writing, and what it cannot find is
fetched. The side file that it goes by is ``digests``; how the unpacker is given files is ``donors``.

    candidates   which layers to look in, and in what order      finder   the search, and its bounds
    places       one piece of content: read or cloned, verified  probing  chunks of layers that know only whole files
    suspects     files that were found rotten, for ``check``     usage    who uses what space
"""

from layerstore.dedup.finder import LayerFinder

__all__ = ["LayerFinder"]
