"""The command line: a thin shell over the library. Needs the extra ``cli`` (click and rich).

``main`` is the entry point: it turns errors into one line what and one line what to do, and into exit statuses:
0 ok, 1 failed, 2 usage, 3 damage found. ``commands`` has the store's commands, ``journal`` the offline ones,
``committing`` commits a mount, ``holding`` has names, leases and mounts, ``completing`` completes in a shell, ``output``
has what is printed, ``terminal`` what only people see.
"""

from __future__ import annotations

import gc
import sys

_RARELY = 50_000             # new objects that refer to others, between two looks for cycles (Python's own: 700)


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; return the exit status (the console script exits with it)."""
    try:
        import click  # noqa: F401, PLC0415
        import rich  # noqa: F401, PLC0415
    except ImportError as error:
        print(f"layerstore: the command line needs {error.name}", file=sys.stderr)  # noqa: T201
        print("  hint: pip install 'layerstore[cli]'", file=sys.stderr)  # noqa: T201
        return 1
    from layerstore.cli.commands import run  # noqa: PLC0415

    if arguments is None:                # else it is somebody's process, in which we have no say
        # a pull makes a hundred thousand objects that stay, and hardly a cycle: to look at them again and again takes 0.2
        # of its 4 s, and so rarely 0.06
        gc.freeze()
        gc.set_threshold(_RARELY, 10, 10)
    return run(arguments)
