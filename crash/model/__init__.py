"""The model: every interleaving and every crash of the protocol, in a world small enough to be seen whole.

It reads the product's own table of states and asks the product's own planner; what is written here a second time is
only in which order the verbs take their steps. docs/model.md says how it maps to the code and what it leaves out.

* ``world``      rows, log, disk (what is there, and what a loss of power would leave), and their effects
* ``process``    one process, and the turn that it takes
* ``verbs``      what a process does: stage, apply, discard, delete; ``checkpointing``: checkpoint, archive
* ``recovering`` what it does when it opens the store
* ``resting``    what it does to bring one tree to rest, in recovery and in the verbs
* ``rules``      switches that break a rule each, for the negative controls
* ``oracle``     what must hold
* ``scopes``     how large a world, by name
* ``space``      states as integers, and what follows from each
* ``explore``    breadth first, to the end
* ``alone``      one recovery alone, crashed anywhere
* ``trace``      a counter-example, to be read
"""
