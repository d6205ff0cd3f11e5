"""``python -m crash.shim MODULE OPTIONS``: what ``stream`` starts, with the shim loaded. States go to stdout, as lines.

stdout itself is kept for the states: what anything else prints goes to stderr.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import sys

lines = os.fdopen(os.dup(1), "w", buffering=1)
os.dup2(2, 1)
for state in importlib.import_module(sys.argv[1]).preloaded(argparse.Namespace(**json.loads(sys.argv[2]))):
    lines.write(state.line() + "\n")
