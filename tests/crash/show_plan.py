"""Tell of a crashed store, as one canonical line: its catalog's dump, and what recovery would do. Changes nothing.

    show_plan.py STORE [--clock=SECONDS] [--backwards] [--chdir=DIRECTORY]

``--backwards``: directories are listed in the opposite order.
"""

import json
import os
import sys
import time

import layerjournal
import layerstore


def show(root):
    with layerstore.open(root, readonly=True) as store:
        plan = store.recovery.as_json() | {"seconds": 0}
        dump = layerjournal.canonical_dump(store._handle.journal.fold())
    return json.dumps({"dump": dump.hex(), "plan": plan}, sort_keys=True)


def backwards():
    listdir, scandir = os.listdir, os.scandir

    class Reversed(list):
        def __enter__(self):
            return iter(self)

        def __exit__(self, *_exc):
            pass

    os.listdir = lambda path=".": listdir(path)[::-1]
    os.scandir = lambda path=".": Reversed(list(scandir(path))[::-1])


if __name__ == "__main__":
    store, *arguments = sys.argv[1:]
    for argument in arguments:
        name, _, value = argument.partition("=")
        if name == "--clock":
            now = int(value)
            time.time, time.time_ns = (lambda: float(now)), (lambda: now * 10**9)
        elif name == "--backwards":
            backwards()
        elif name == "--chdir":
            os.chdir(value)
        else:
            raise SystemExit(f"{argument}?")
    print(show(store))
