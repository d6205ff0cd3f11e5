"""Like for like: the same kills from outside, of this store's command line and of containers/storage's.

``supervise`` kills, ``subjects`` are the two stores, ``compare`` judges each kill point, ``table`` writes it down.
"""
