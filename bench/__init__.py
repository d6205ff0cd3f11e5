"""What things cost: measures, each a module of its own, and one command that runs them and writes them down.

``python -m bench list`` names them. A measure is a module with

* ``arguments(parser)``: its own options, beside ``--out --cache --quick`` that all have;
* ``measure(options) -> dict``: does it, and returns what goes to ``OUT/<name>.json``, as JSON; prints how it goes; a long one
  hands what it has so far to ``options.keep``;
* ``page(result, pictures) -> str``: its section of the page in Markdown; a picture that it draws goes to the directory
  *pictures* (None: none is wanted);
* ``targets(result) -> [(what, target, measured, reached)]``, if anything was promised of what it measures.

Common to all: ``layers`` (what is unpacked), ``disk`` (the private file system), ``compiled`` (small C programs), ``clock``
(one run), ``ratios`` (medians of paired ratios), ``machine`` (what it ran on), ``tables`` (Markdown). ``peers`` has every
program under comparison, as a command line. Nothing in the product knows this package, and nothing here changes how
the product works.
"""
