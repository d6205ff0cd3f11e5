"""One report of all that the rigs explored: ``report.json`` and one self-contained page, ``report.html``.

    python -m crash report --out DIR [--figures FILE.md] [--summary FILE.json]     from the lines in DIR, to DIR
    python -m crash figures FILE.json FILE.md                the page of figures, from a summary
    python -m crash show DIR RIG N [--again]                 one state of a rig, in full; run it again

* ``gather``  reading: the rigs' lines, their run notes, and the files of the other tools; nothing is made up
* ``places``  which crash point a state belongs to
* ``summary``  the figures alone, small enough to be committed
* ``pages``   writing: the templates filled

What is not in the lines is not in the report.
"""
