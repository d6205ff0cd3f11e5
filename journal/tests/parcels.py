"""A toy machine for the tests: parcels that move between states. It stands for whatever a user journals."""

import json
import os
import signal

from layerjournal import Journal, ProjectionError

UUID = "0b5c0f4e-parcels"
STATES = {"": {"packed"}, "packed": {"sent", "lost"}, "sent": {"here", "lost"}, "here": set(), "lost": {"packed"}}


class Parcels:
    """``parcels``: entity → state and payload; ``where``: ``<state>/<entity>``."""

    tables = ("parcels", "where")

    def project(self, view, record):
        row = view.get("parcels", record.entity)
        state = row["state"] if row else ""
        if state != record.from_state or record.to_state not in STATES[state]:
            raise ProjectionError(f"{record.entity} is {state!r}: not from {record.from_state!r} to {record.to_state!r}")
        if row:
            view.delete("where", f"{state}/{record.entity}")
        view.put("parcels", record.entity, {"state": record.to_state, **record.payload})
        view.put("where", f"{record.to_state}/{record.entity}", {"since": record.seq})


class Clock:
    """One millisecond later every time."""

    def __init__(self, now=1_700_000_000_000_000_000):
        self.now = now

    def __call__(self):
        self.now += 1_000_000
        return self.now


def create(path, **options):
    return Journal.create(path, Parcels(), uuid=UUID, clock=Clock(), **options)


def reopen(path, **options):
    return Journal.open(path, Parcels(), clock=Clock(1_800_000_000_000_000_000), **options)


def move(txn, parcel, to_state, **payload):
    row = txn.get("parcels", parcel)
    return txn.append(
        txid=f"tx-{parcel}", entity=parcel, from_state=row["state"] if row else "", to_state=to_state,
        trigger=to_state, payload=payload,
    )


def pack(journal, *parcels, **payload):
    """Pack all of them in one transaction."""
    return journal.update("pack", lambda txn: [move(txn, parcel, "packed", **payload) for parcel in parcels])


def mark(journal):
    """A checkpoint that covers everything."""
    return journal.checkpoint(lambda: None, lambda view: None)


def state(journal):
    with journal.read() as view:
        return {key: row["state"] for key, row in view.scan("parcels")}


def in_child(action):
    """Run *action* in a forked child; ``(exit status or -signal, what it returned, as JSON)``."""
    read_fd, write_fd = os.pipe()
    pid = os.fork()
    if pid == 0:
        status = 70
        try:
            os.close(read_fd)
            os.write(write_fd, json.dumps(action()).encode())
            status = 0
        except BaseException as error:  # noqa: BLE001 - the parent judges
            os.write(write_fd, json.dumps(f"{type(error).__name__}: {error}").encode())
        finally:
            os._exit(status)
    os.close(write_fd)
    with open(read_fd, "rb") as pipe:
        said = pipe.read()
    _, status = os.waitpid(pid, 0)
    return os.waitstatus_to_exitcode(status), json.loads(said) if said else None


def killer(point, when, nth=1):
    """A hook that SIGKILLs this process at the *nth* passing of *point*."""
    passed = 0

    def hook(name, phase):
        nonlocal passed
        if (name, phase) == (point, when):
            passed += 1
            if passed == nth:
                os.kill(os.getpid(), signal.SIGKILL)

    return hook


def recorder(into):
    return lambda name, when: into.append((name, when))
