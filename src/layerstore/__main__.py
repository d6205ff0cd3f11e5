"""``python -m layerstore``: the command line."""

from __future__ import annotations

import sys

from layerstore.cli import program

if __name__ == "__main__":
    sys.exit(program())
