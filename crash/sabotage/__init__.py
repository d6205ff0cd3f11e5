"""Planted mistakes: does anything notice, when the product is wrong?

``patches.toml`` has the mistakes, each one line in the product's source. For each, ``python -m crash.sabotage`` copies
the product, plants the mistake in the copy, and lets the rigs and then the ordinary tests run against it, until one
fails. A mistake that nothing notices *survives*, and that is a failure of the rigs. ``found.json`` remembers what
noticed each, so that it can be shown again quickly.

* ``table``  the mistakes, and planting one in a copy
* ``ways``   in what order rigs and tests are tried, and for how long
* ``hunt``   trying them, and what came of it
* ``child``  what runs inside the process that has the copy
"""
