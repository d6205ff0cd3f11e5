"""TLS contexts: whom a connection trusts, and what it shows of itself. Certificates are always verified.

The system's certificates; those of ``ca_file``; and, for the registry itself only, the files in the first of the
``certs.d/HOST[:PORT]`` directories that is there: ``*.crt`` to trust, ``*.cert`` with ``*.key`` to show
(containers-certs.d(5)).
"""

from __future__ import annotations

import os
import ssl

from layerstore.errors import SourceError

__all__ = ["make_context"]


def make_context(ca_file: str | None, host: str | None) -> ssl.SSLContext:
    """A context for *host* (``HOST[:PORT]``; None: for anybody else). SourceError for certificates that cannot be read."""
    context = ssl.create_default_context()
    if ca_file is not None:
        _trust(context, ca_file)
    directory = _certs_d(host) if host is not None else None
    for name in sorted(os.listdir(directory)) if directory else ():
        path, (stem, suffix) = f"{directory}/{name}", os.path.splitext(name)
        if suffix == ".crt":
            _trust(context, path)
        elif suffix == ".cert":
            _show(context, path, f"{directory}/{stem}.key")
    return context


def _certs_d(host: str) -> str | None:
    own = os.environ.get("XDG_CONFIG_HOME") or os.path.expanduser("~/.config")
    bases = (f"{own}/containers/certs.d", "/etc/containers/certs.d", "/etc/docker/certs.d")
    return next((path for base in bases if os.path.isdir(path := f"{base}/{host}") and os.access(path, os.R_OK)), None)


def _trust(context: ssl.SSLContext, path: str) -> None:
    try:
        context.load_verify_locations(cafile=path)
    except OSError as error:   # ssl.SSLError is one
        raise SourceError(
            f"cannot use the certificates in {path}: {error.strerror or error}", hint="name a file of PEM certificates",
        ) from None


def _show(context: ssl.SSLContext, path: str, key: str) -> None:
    try:
        context.load_cert_chain(path, key, password=lambda: "")   # never ask at the terminal
    except (OSError, ValueError) as error:
        raise SourceError(
            f"cannot use the client certificate {path} with its key {key}: {type(error).__name__}",
            hint="both must be PEM files, and the key not encrypted",
        ) from None
