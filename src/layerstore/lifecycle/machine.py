"""The lifecycle machine: the only way a state changes. The only module that imports ``transitions``.

One machine a kind, built from ``states.TRANSITIONS``. A machine runs inside one write transaction of the journal,
on a ``Subject`` that lives and dies with it: the row is the state. The journal record is appended in
``before_state_change``; if that fails, the state has not changed, and there is no change without a record.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from transitions import EventData, Machine, MachineError

from layerstore.lifecycle.states import TRANSITIONS, Kind, State, Trigger
from layerstore.values import dataclass


class IllegalTransitionError(RuntimeError):
    """A bug in layerstore, or a damaged catalog: the table has no such transition from the row's state."""


class Appender(Protocol):
    """What the machine needs of a write transaction."""

    def get(self, table: str, key: str) -> dict[str, Any] | None: ...

    def append(
        self, *, txid: str, entity: str, from_state: str, to_state: str, trigger: str, payload: Mapping[str, Any],
    ) -> Any: ...


@dataclass(slots=True)
class Subject:
    """What one firing is about. ``state`` is read from the row, never remembered."""

    txn: Appender
    kind: Kind
    key: str
    txid: str
    state: str


ROW_TABLE = {
    Kind.LAYER: "layers", Kind.IMAGE: "images", Kind.NAME: "names", Kind.LEASE: "leases", Kind.MOUNT: "mounts",
}


def _journal(event: EventData) -> None:
    subject = event.model
    assert isinstance(subject, Subject)
    assert event.transition is not None
    subject.txn.append(
        txid=subject.txid,
        entity=f"{subject.kind.value}:{subject.key}",
        from_state=subject.state,
        to_state=event.transition.dest or subject.state,
        trigger=event.event.name,
        payload=event.kwargs["payload"],
    )


def _machine(kind: Kind) -> Machine:
    rows = [t for t in TRANSITIONS if t.kind is kind]
    return Machine(
        model=None,
        states=[state.value for state in State],
        initial=State.ABSENT.value,
        transitions=[[t.trigger.value, t.source.value, t.dest.value] for t in rows],
        auto_transitions=False,   # the default would add a way from every state to every other
        send_event=True,
        before_state_change=_journal,
    )


_MACHINES = {kind: _machine(kind) for kind in Kind}


def state_of(txn: Any, kind: Kind, key: str) -> State:
    """The state of *key* as its row says; ``absent`` without a row."""
    row = txn.get(ROW_TABLE[kind], key)
    if row is None:
        return State.ABSENT
    return State(row.get("state", State.HELD.value))


def fire(
    txn: Appender, kind: Kind, key: str, trigger: Trigger, *, txid: str, payload: Mapping[str, Any] | None = None,
) -> None:
    """Move *key* by *trigger*, journaling it first, in the transaction *txn*.

    Raises IllegalTransitionError, with nothing appended, when the table does not allow it.
    """
    subject = Subject(txn, kind, key, txid, state_of(txn, kind, key).value)
    event = _MACHINES[kind].events.get(trigger.value)
    try:
        moved = event is not None and event.trigger(subject, payload=dict(payload or {}))
    except MachineError:
        moved = False
    if not moved:
        raise IllegalTransitionError(f"{kind.value} {key}: no {trigger.value!r} from state {subject.state!r}")
