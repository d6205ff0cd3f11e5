"""The small C programs in ``c/``, compiled into the cache when first needed, under a name made of their text."""

from __future__ import annotations

import hashlib
import os
import subprocess
from pathlib import Path

from bench import machine

_HERE = Path(__file__).parent / "c"
_SHARED = {"noflush"}


def compiled(cache: str, name: str) -> str:
    """The path of *name*: a program, or for ``noflush`` a library to preload. CannotError without a compiler."""
    source = (_HERE / f"{name}.c").read_bytes()
    made = Path(cache, "tools", f"{name}-{hashlib.sha256(source).hexdigest()[:12]}" + (".so" if name in _SHARED else ""))
    if not made.exists():
        compiler = machine.which("gcc") or machine.which("cc")
        if compiler is None:
            raise machine.CannotError("there is no C compiler")
        made.parent.mkdir(parents=True, exist_ok=True)
        partial = f"{made}.{os.getpid()}"
        shared = ["-shared", "-fPIC"] if name in _SHARED else []
        subprocess.run([compiler, "-O2", "-Wall", *shared, "-o", partial, str(_HERE / f"{name}.c"), "-ldl"], check=True)
        os.rename(partial, made)
    return str(made)
