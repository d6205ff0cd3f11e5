"""Fuzzing: bytes from strangers, thrown at everything that decodes them.

* ``targets/``       one module a target: its first line is its invariant; ``check(data)`` raises AssertionError if
                     it does not hold, and swallows nothing but the typed errors that the invariant allows
* ``nasties``        hand-made seeds, as code; what is fuzzed starts from these
* ``mutate``         small seeded mutations, for the ordinary test run, where no instrumentation is at hand
* ``dictionaries/``  tokens for the coverage-guided engine
* ``findings/``      inputs that broke something once, by target: they are replayed by the tests for ever
* ``scratch``        the files and trees in memory that targets write; ``canary``, what is around them
* ``golines``        a reader of what the Go tools read, to compare with
* ``packing`` ``pieces`` ``sums``   what targets make of an input before they hand it on
* ``cheap``          what the product does once a layer, and an engine once
* ``__main__``       ``python -m fuzz TARGET``: coverage-guided, by atheris (the extra ``fuzz``); ``campaign`` says what
                     is run next, ``supervise`` runs the ``engine`` in processes of its own, ``figures`` adds up

The product never imports anything of this.
"""
