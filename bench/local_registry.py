"""Debian's docker-registry on loopback, while it is needed, and a loopback that is as slow as one wants.

The registry's data is a directory that stays.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from crash.disk.kernel_calls import enter_network, own_network

from bench import machine

_PATIENCE = 30.0             # seconds until it must listen


@contextmanager
def serving(data: Path) -> Iterator[str]:
    """A registry without access control and without TLS on *data*; its ``HOST:PORT``."""
    program = machine.which("docker-registry")
    if program is None:
        raise machine.CannotError("docker-registry is not installed")
    data.mkdir(parents=True, exist_ok=True)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        host = f"127.0.0.1:{probe.getsockname()[1]}"
    config = {
        "version": 0.1, "log": {"level": "error", "accesslog": {"disabled": True}}, "http": {"addr": host, "secret": "bench"},
        "storage": {"filesystem": {"rootdirectory": str(data)}},
    }
    path = data / "config.yml"
    path.write_text(json.dumps(config))   # JSON is YAML
    with open(data / "log", "wb") as log:
        process = subprocess.Popen([program, "serve", str(path)], stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    try:
        _wait(host, process)
        yield host
    finally:
        process.kill()
        process.wait()


@contextmanager
def own_loopback(megabits: int) -> Iterator[None]:
    """As long as it lasts, this process and its children have a loopback of their own, over which so much goes in a second.

    CannotError where that cannot be: without root, iproute2, or a kernel that can (``sch_tbf``).
    """
    machine.need_root("a narrow network")
    machine.need("ip", "tc")
    before = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        own_network()
        try:
            _set(["ip", "link", "set", "lo", "up"])
            _set(["tc", "qdisc", "add", "dev", "lo", "root", "tbf", "rate", f"{megabits}mbit", "burst", "256kb", "latency", "400ms"])
            yield
        finally:
            enter_network(before)
    finally:
        os.close(before)


def _set(command: list[str]) -> None:
    done = subprocess.run([machine.which(command[0]) or "", *command[1:]], capture_output=True, text=True, check=False)
    if done.returncode:
        raise machine.CannotError(f"{' '.join(command)}: {done.stderr.strip()}")


def _wait(host: str, process: subprocess.Popen[bytes]) -> None:
    name, port = host.split(":")
    deadline = time.monotonic() + _PATIENCE
    while time.monotonic() < deadline and process.poll() is None:
        with suppress(OSError):
            socket.create_connection((name, int(port))).close()
            return
        time.sleep(0.05)
    raise machine.CannotError("docker-registry does not listen")
