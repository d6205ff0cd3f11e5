"""Credentials: values that show themselves nowhere, neither in a repr nor in a message. Nothing is looked up here."""

from __future__ import annotations

import base64
from typing import Any

from layerstore.errors import InvalidArgumentError

__all__ = ["Credentials"]


class Credentials:
    """A user's name and password, or an identity token (OAuth2 refresh token). Immutable; its repr tells neither."""

    __slots__ = ("_password", "_token", "_username")

    def __init__(self, username: str = "", password: str = "", *, identity_token: str = "") -> None:
        self._username, self._password, self._token = username, password, identity_token
        if ":" in username:
            raise InvalidArgumentError("a registry user's name holds a colon, which HTTP does not allow")

    @classmethod
    def parse(cls, text: str) -> Credentials:
        """From ``USER:PASSWORD``; InvalidArgumentError (without the text) for anything else."""
        username, colon, password = text.partition(":")
        if not colon or not username:
            raise InvalidArgumentError("credentials are to be USER:PASSWORD", hint="write --creds USER:PASSWORD")
        return cls(username, password)

    @property
    def username(self) -> str:
        return self._username

    @property
    def identity_token(self) -> str:
        return self._token

    def basic(self) -> str:
        """The value of an ``Authorization`` header (RFC 7617)."""
        return "Basic " + base64.b64encode(f"{self._username}:{self._password}".encode()).decode()

    def __bool__(self) -> bool:
        return bool(self._username or self._token)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Credentials) and self._all() == other._all()

    def __hash__(self) -> int:
        return hash(self._all())

    def __repr__(self) -> str:
        return "<credentials>"

    def __reduce__(self) -> Any:
        raise TypeError("credentials are not to be pickled")

    def _all(self) -> tuple[str, str, str]:
        return self._username, self._password, self._token
