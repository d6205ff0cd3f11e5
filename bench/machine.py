"""What the measures ran on, and what is missing there. Facts only, none that names the machine or its owner."""

from __future__ import annotations

import datetime as dt
import os
import platform
import shutil
import subprocess


class CannotError(Exception):
    """Something that a measure cannot do without is not here; the text says what."""


def facts() -> dict[str, str]:
    release = platform.freedesktop_os_release().get("PRETTY_NAME", "Linux")
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / (1 << 30)
    return {
        "processor": f"{os.cpu_count()} × {_processor()}",
        "memory": f"{memory:.0f} GiB of memory",
        "system": f"{release}, Linux {platform.release().split('-')[0]}",
        "python": f"Python {platform.python_version()}",
        "date": dt.datetime.now(dt.UTC).date().isoformat(),
    }


def _processor() -> str:
    with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
        for line in file:
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.machine()


def need_root(what: str = "a private file system") -> None:
    if os.geteuid() != 0:
        raise CannotError(f"{what} needs root")


def need(*programs: str) -> None:
    """CannotError for the first of *programs* that is not on PATH."""
    for program in programs:
        if which(program) is None:
            raise CannotError(f"{program} is not installed")


def which(program: str) -> str | None:
    """Where *program* is, also where only root looks."""
    return shutil.which(program, path=os.environ.get("PATH", os.defpath) + ":/usr/sbin:/sbin")


def debian_version(package: str) -> str | None:
    """The version of a Debian package that is installed, or None."""
    if which("dpkg-query") is None:
        return None
    done = subprocess.run(["dpkg-query", "-W", "-f", "${Version}", package], capture_output=True, text=True, check=False)
    return done.stdout.strip() or None
