"""The journal's own records and the two tables that they project into. Pure, like any projector.

Records of the entity ``journal``; its triggers, their payloads, and what they change:

==============  ==================================================  ==================================================
``create``      uuid, format, schema, tables                        the row ``journal`` of ``.meta``
``checkpoint``  low_water                                           ``low_water`` there
``archive``     name, first, last, prev_link, last_link, digest     a row of ``.segments``; ``archived``, ``archived_link``
``drop``        names                                               those rows of ``.segments`` go
``restore``     last, last_link, segments (as for ``archive``)      both, after the log was lost (see ``rebuild``)
==============  ==================================================  ==================================================
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from layerjournal.errors import ProjectionError, UsageError
from layerjournal.record import Record, genesis
from layerjournal.views import Projector, Restricted, Row, TableView, check_table_names

CONTROL = "journal"
FORMAT = 1
META, SEGMENTS = ".meta", ".segments"
OWN_TABLES = (META, SEGMENTS)
META_KEY = "journal"


class Whole:
    """A projector for everything: the journal's own records here, all others by the user's projector."""

    def __init__(self, projector: Projector | None, tables: Sequence[str]) -> None:
        check_table_names(tables)
        self.users = tuple(sorted(tables))
        self.tables = (*OWN_TABLES, *self.users)
        self._projector, self._allowed = projector, frozenset(tables)

    def project(self, view: TableView, record: Record) -> None:
        """ProjectionError for what the projector, or the journal itself, does not allow."""
        if record.entity != CONTROL:
            if self._projector is None:
                raise UsageError("this needs a projector: only it knows what the records mean")
            self._projector.project(Restricted(view, self._allowed), record)
            return
        rule = _RULES.get(record.trigger)
        if rule is None:
            raise ProjectionError(f"record {record.seq}: the journal knows no {record.trigger!r}")
        try:
            rule(view, record.payload)
        except (KeyError, TypeError, ValueError) as error:
            raise ProjectionError(f"record {record.seq}: a wrong {record.trigger!r}: {error!r}") from error


def _create(view: TableView, payload: Mapping[str, Any]) -> None:
    if payload["format"] != FORMAT:
        raise ValueError(f"format {payload['format']}; this reader knows {FORMAT}")
    view.put(META, META_KEY, {
        "uuid": payload["uuid"], "schema": payload["schema"], "tables": payload["tables"], "low_water": 0,
        "archived": 0, "archived_link": genesis(payload["uuid"]),
    })


def _checkpoint(view: TableView, payload: Mapping[str, Any]) -> None:
    view.put(META, META_KEY, {**_meta(view), "low_water": int(payload["low_water"])})


def _archive(view: TableView, payload: Mapping[str, Any]) -> None:
    meta = _meta(view)
    if payload["first"] != meta["archived"] + 1 or payload["prev_link"] != meta["archived_link"]:
        raise ValueError(f"a segment from {payload['first']} does not follow record {meta['archived']}")
    view.put(SEGMENTS, payload["name"], _segment_row(payload))
    view.put(META, META_KEY, {**meta, "archived": payload["last"], "archived_link": payload["last_link"]})


def _drop(view: TableView, payload: Mapping[str, Any]) -> None:
    for name in payload["names"]:
        view.delete(SEGMENTS, name)


def _restore(view: TableView, payload: Mapping[str, Any]) -> None:
    last = payload["last"]
    for name, _ in list(view.scan(SEGMENTS)):
        view.delete(SEGMENTS, name)
    for each in payload["segments"]:
        view.put(SEGMENTS, each["name"], _segment_row(each))
    # what is archived lies below a mark that was durable before: nothing of it needs to be redone
    low = max(_meta(view)["low_water"], last)
    view.put(META, META_KEY, {
        **_meta(view), "low_water": low, "archived": last, "archived_link": payload["last_link"],
    })


def _segment_row(payload: Mapping[str, Any]) -> Row:
    return {key: payload[key] for key in ("first", "last", "prev_link", "last_link", "digest")}


def _meta(view: TableView) -> Row:
    row = view.get(META, META_KEY)
    if row is None:
        raise ValueError("before 'create'")
    return row


_RULES: dict[str, Callable[[TableView, Mapping[str, Any]], None]] = {
    "create": _create, "checkpoint": _checkpoint, "archive": _archive, "drop": _drop, "restore": _restore,
}
