"""What commands share: the options before them (``Settings``), options of several of them, and the exit statuses."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from layerstore.cli import output

if TYPE_CHECKING:
    from layerstore.observe import Observer
    from layerstore.store import Store

OK, FAILED, USAGE, DAMAGE = 0, 1, 2, 3

damaged_option = click.option("--damaged", is_flag=True, help="Also if a layer is quarantined: with what is bad in it.")
json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")


def complete_references(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[Any]:
    from layerstore.cli.completing import references  # noqa: PLC0415

    return references(context, parameter, incomplete)


reference_argument = click.argument("reference", metavar="ID", shell_complete=complete_references)


class Settings:
    """The options before the command."""

    def __init__(
        self, root: str | None, allow: tuple[str, ...], debug: bool, watcher: Observer | None = None,
        beneath: tuple[str, ...] = (),
    ) -> None:
        self._root, self.allow, self.debug, self.watcher = root, allow, debug, watcher
        self.beneath = None if not beneath else [] if beneath == ("none",) else list(beneath)

    @property
    def root(self) -> str:
        if self._root is None:
            raise click.UsageError("no store: give --root DIR, or set LAYERSTORE_ROOT")
        return self._root

    def open(self, *, write: bool = False, verbs: Sequence[str] = ()) -> Store:
        """The store; to *write* by these *verbs* alone, if any are given (``store.open_for``)."""
        from layerstore.store import open as open_store  # noqa: PLC0415
        from layerstore.store import open_for  # noqa: PLC0415

        if write and verbs:
            store = open_for(
                verbs, self.root, allow_filesystem=self.allow, observer=self.watcher, beneath=self.beneath,
            )
        else:
            store = open_store(
                self.root, readonly=not write, allow_filesystem=self.allow, observer=self.watcher, beneath=self.beneath,
            )
        for each in store.beneath:
            if each.missing is not None:
                click.echo(f"note: the store {each.uuid} beneath is missing: {each.path}: {each.missing}", err=True)
        if write:
            for line in output.recovery_lines(store.recovery):
                click.echo(line, err=True)
            if store.durability != "proven":
                click.echo(f"note: {store.root} is on {store.filesystem}: durability unproven", err=True)
        return store
