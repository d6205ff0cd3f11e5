"""The options of commands that may speak with a registry, gathered into one ``RegistryOptions``. Nothing else."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from layerstore.sources.registry import RegistryOptions

__all__ = ["registry_options"]


def registry_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options to *command*, which is given ``registry``."""

    @click.option("--creds", metavar="USER[:PASSWORD]", help="For a registry; the password is asked for if left out.")
    @click.option("--authfile", metavar="FILE", help="Look for credentials here only (default: the usual files).")
    @click.option("--tls-ca", metavar="FILE", help="Certificates (PEM) to trust besides the system's.")
    @click.option("--plain-http", is_flag=True, help="Speak with the registry without TLS.")
    @functools.wraps(command)
    def gathering(
        *arguments: Any, creds: str | None, authfile: str | None, tls_ca: str | None, plain_http: bool, **named: Any,
    ) -> Any:
        return command(*arguments, registry=_gathered(creds, authfile, tls_ca, plain_http), **named)

    return gathering


def _gathered(creds: str | None, authfile: str | None, tls_ca: str | None, plain_http: bool) -> RegistryOptions:
    from layerstore.sources.registry import Credentials, RegistryOptions  # noqa: PLC0415

    if creds is not None and ":" not in creds:
        creds += ":" + click.prompt(f"Password of {creds}", hide_input=True, err=True)
    return RegistryOptions(
        credentials=Credentials.parse(creds) if creds is not None else None, auth_file=authfile, ca_file=tls_ca,
        plain_http=plain_http,
    )
