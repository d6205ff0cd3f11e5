"""The command line: a thin shell over the library. Needs the extra ``cli`` (click and rich).

``program`` is the entry point, ``main`` the same for who goes on after it: it turns errors into one line what and one line
what to do, and into exit statuses: 0 ok, 1 failed, 2 usage, 3 damage found. ``commands`` has the options before the
commands, and says which module each of them is in: the store's ones, and ``journal``, the offline ones. ``options`` and
``output`` are what they share, ``terminal`` what only people see.
"""

from __future__ import annotations

import gc
import sys

# between two looks for cycles: what a command imports stays, and fifty looks at it took a twelfth of the start
_ALLOCATIONS = 50_000


def program(arguments: list[str] | None = None) -> int:
    """``main`` for a process that ends with it: the console script. Changes for good how this process looks for cycles."""
    gc.set_threshold(_ALLOCATIONS)
    try:
        return main(arguments)
    finally:
        gc.freeze()   # at its end Python looks for cycles several times more: a sixth of a short command


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    try:
        import click  # noqa: F401, PLC0415
        import rich  # noqa: F401, PLC0415
    except ImportError as error:
        print(f"layerstore: the command line needs {error.name}", file=sys.stderr)  # noqa: T201
        print("  hint: pip install 'layerstore[cli]'", file=sys.stderr)  # noqa: T201
        return 1
    from layerstore.cli.commands import run  # noqa: PLC0415

    return run(arguments)
