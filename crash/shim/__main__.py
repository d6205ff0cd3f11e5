"""``python -m crash.shim MODULE OPTIONS``: what ``stream`` starts, with the shim loaded. States go to stdout, as lines.

stdout itself is kept for the states: what anything else prints goes to stderr.
"""

from __future__ import annotations

import argparse
import ctypes
import importlib
import json
import os
import signal
import sys
from contextlib import closing

_PR_SET_PDEATHSIG = 1
ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)   # a rig that is killed leaves nobody behind who goes on
lines = os.fdopen(os.dup(1), "w", buffering=1)
os.dup2(2, 1)
options = argparse.Namespace(**json.loads(sys.argv[2]))
if getattr(options, "sabotage", None):   # a planted mistake, "module:function", before anything else
    module, function = options.sabotage.split(":")
    getattr(importlib.import_module(module), function)()
with closing(importlib.import_module(sys.argv[1]).preloaded(options)) as states:
    try:
        for state in states:
            lines.write(state.line() + "\n")
    except BrokenPipeError:   # whoever reads has had enough
        os.dup2(2, lines.fileno())   # what is still buffered goes elsewhere, not into a traceback
