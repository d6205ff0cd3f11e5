"""Credential helpers: programs ``docker-credential-NAME`` that the user configured, asked for one registry's secret.

Nothing of what they print is ever shown.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess

from layerstore.errors import SourceError
from layerstore.sources.registry.secrets import Credentials

__all__ = ["ask_helper"]

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}\Z")
_SECONDS = 60.0   # a person may be asked to unlock something
_ABSENT = b"credentials not found"
_TOKEN_USER = "<token>"  # noqa: S105 - how helpers mark an identity token


def ask_helper(name: str, host: str, *, required: bool = True) -> Credentials | None:
    """The credentials that the helper *name* has for *host*; None if it has none.

    *required* false: a helper that is not installed has none. SourceError for what fails, or takes more than a minute.
    """
    if not isinstance(name, str) or not _NAME.match(name):
        raise SourceError("a credential helper has an unusable name", hint="correct credHelpers or credsStore")
    program = f"docker-credential-{name}"
    hint = f"try it by hand: echo {host} | {program} get"
    path = shutil.which(program)
    if path is None:
        if not required:
            return None
        raise SourceError(f"the credential helper {program} for {host} is not installed", hint="install it, or say --creds")
    try:
        ran = subprocess.run(  # noqa: S603 - the user's own configuration says so
            [path, "get"], input=host.encode(), capture_output=True, timeout=_SECONDS, check=False,
        )
    except subprocess.TimeoutExpired:
        raise SourceError(f"the credential helper {program} did not answer in {_SECONDS:.0f} s", hint=hint) from None
    except OSError as error:
        raise SourceError(f"cannot run the credential helper {program}: {error.strerror}", hint=hint) from error
    if ran.returncode:
        if ran.stdout.strip().startswith(_ABSENT):
            return None
        raise SourceError(f"the credential helper {program} failed with status {ran.returncode}", hint=hint)
    return _answer(ran.stdout, program, hint)


def _answer(output: bytes, program: str, hint: str) -> Credentials | None:
    try:
        answer = json.loads(output)
        username, secret = answer["Username"], answer["Secret"]
    except (ValueError, LookupError, TypeError, RecursionError):
        username = secret = None
    if not isinstance(username, str) or not isinstance(secret, str):
        raise SourceError(f"the credential helper {program} answered something else than credentials", hint=hint) from None
    if not username and not secret:
        return None
    return Credentials(identity_token=secret) if username == _TOKEN_USER else Credentials(username, secret)
